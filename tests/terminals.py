"""A terminal of a chosen width for tests: a program runs on a pseudo-terminal, and what it writes comes back."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

SETTINGS = (
    "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LC_ALL", "LC_CTYPE",
    "PYTHONIOENCODING", "PYTHONUTF8", "BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "CI", "SSH_CONNECTION",
)  # fmt: skip
PATIENCE = 60.0  # seconds until a program that does not end is stopped


def environment(**more):
    """Return the environment without what changes the output, and with `more`."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return {**kept, "TERM": "xterm-256color", "LANG": "C.UTF-8", **more}


def in_a_terminal(arguments, widths=(80,), pause=1.0, **more):
    """Run Python with arguments in a terminal that has each width for a pause; return (exit status, what it wrote)."""
    ours, theirs = pty.openpty()
    resize(ours, widths[0])
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**more),
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)
    written, began = b"", time.monotonic()
    while True:
        passed = time.monotonic() - began
        resize(ours, widths[min(int(passed / pause), len(widths) - 1)])
        ended = process.poll() is not None
        try:
            written += os.read(ours, 1 << 16)
            continue
        except BlockingIOError:
            if ended:
                break
        except OSError:  # the other side is closed
            break
        assert passed < PATIENCE, process.kill()
        time.sleep(0.02)
    os.close(ours)
    return process.wait(), written.decode()


def resize(terminal, width):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))


def visible(written):
    """Return the lines of what a terminal was sent, without what steers it."""
    plain = re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|\]8;[^\x1b]*\x1b\\)", "", written)
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
