"""Device memory as NVML counts it, watched from outside the measured process. Free of torch.

A cell starts a monitor before it touches its device. The monitor is a process of its own, so that its polls take no
time from the cell, whatever the cell is doing. It answers each line on its stdin with one line of JSON and ends when
stdin closes, so it never outlives the cell.

`nvml_process` is what NVML counts for the cell's process; where NVML lists process ids of another namespace
(containers) or tells no memory per process, there is `nvml_device`: what all processes use of the device, less what
they used when the monitor started. It is right as long as nobody else's use changes, which `foreign` helps to judge.
Foreign are processes with a compute context. Processes that only draw are left out: a desktop's are always there, and
what they hold is in the device's use at the start.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

import psutil

from unlearnbench.errors import one_line, spell_error

# Torch keeps what it takes from the device until an edge, where there is a reading anyway: no need to poll faster.
PERIOD_SECONDS = 0.05
START_SECONDS = 30.0  # NVML's first call may have to start the driver
ANSWER_SECONDS = 5.0  # a monitor that needs longer for an answer is given up
PROBES = ("nvml_process", "nvml_device")


def is_stopped(pid: int) -> bool:
    """Say whether a process is stopped: by Ctrl-Z, SIGSTOP or a debugger."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


class NvmlMonitor:
    """Peaks of the memory in use on one device, by probe, from edge to edge.

    Nothing here raises for want of NVML: a probe that cannot be had is missing from the peaks, and `problems` says why.
    `close` leaves the attributes as they are.

    Attributes:
        foreign: the highest number of other processes computing on the device at once in the last interval, None where
            they cannot be seen. As long as this process holds no device memory, it may be one too low.
        polls: the number of readings in the last interval, those at its two edges included.
        problems: for each probe missing at the last edge, why.
    """

    def __init__(self, uuid: str, period: float = PERIOD_SECONDS) -> None:
        """Start the monitor and wait for its first reading, against which the device's use is counted.

        Args:
            uuid: of the device, on which this process has allocated nothing yet; `GPU-` or `MIG-` may be left out.
            period: seconds between readings; peaks shorter than that can be missed.
        """
        self.foreign: int | None = None
        self.polls = 0
        self.problems: dict[str, str] = {}
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None  # None: it never was, or is given up
        self._ended = ""  # why
        # -P: a folder `unlearnbench` where the user stands is not this package.
        command = [sys.executable, "-P", "-m", "unlearnbench.monitor", uuid, str(os.getpid()), str(period)]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=nowhere, encoding="utf-8", errors="replace"
            )
        except OSError as error:
            self._ended = f"the NVML monitor did not start: {spell_error(error)}"
        else:
            threading.Thread(target=self._listen, args=(self._process,), daemon=True, name="NVML monitor").start()
        self._ask(START_SECONDS)

    def edge(self) -> dict[str, int]:
        """Take a reading, which ends one interval and begins the next, and return the peaks of the one that ended.

        Returns:
            Bytes by name of the probe, of those probes alone that could be read at this edge.
        """
        return self._ask(ANSWER_SECONDS)

    def close(self) -> None:
        """End the monitor; later edges have no peaks."""
        self._end("the NVML monitor was closed")

    def __enter__(self) -> "NvmlMonitor":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, seconds: float) -> dict[str, int]:
        """Return the monitor's answer, waiting so long at most; a monitor that fails is not asked again."""
        if self._process is not None and self._process.stdin is not None:
            line = ""
            try:
                print(file=self._process.stdin, flush=True)
                line = self._lines.get(timeout=seconds)
                if line:
                    answer = json.loads(line)
                    peaks = {str(name): int(peak) for name, peak in answer["peaks"].items()}
                    self.foreign, self.polls, self.problems = answer["foreign"], answer["polls"], answer["problems"]
                    return peaks
                self._end("the NVML monitor died")
            except queue.Empty:
                self._end(f"the NVML monitor gave no answer for {seconds:g} seconds")
            except OSError:
                self._end("the NVML monitor died")
            except (ValueError, TypeError, KeyError, AttributeError):
                self._end(f"the NVML monitor talks nonsense: {one_line(line, 80)}")
        self.foreign, self.polls, self.problems = None, 0, dict.fromkeys(PROBES, self._ended)
        return {}

    def _listen(self, process: subprocess.Popen[str]) -> None:
        """Pass the monitor's lines on; in a thread, because a wait for a whole line cannot be cut short."""
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._lines.put(line)
        self._lines.put("")

    def _end(self, why: str) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        self._ended = why
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # it can hang in the driver, where no signal reaches it
            process.wait(timeout=1)


class Reading(NamedTuple):
    """What one poll saw."""

    levels: dict[str, int]  # probe name -> bytes
    problems: dict[str, str]  # probe name -> why it has no level
    foreign: int | None


class Sampler:
    """Reads NVML and keeps the peaks since the last edge, inside the monitor's process.

    A poll that fails is a poll missed. A reading that fails at an edge leaves its probe out: what ails it may have
    ailed it all along.
    """

    def __init__(self, uuid: str, pid: int) -> None:
        """Find the device and take the first reading.

        Args:
            uuid: of the device, with or without its prefix.
            pid: of the measured process.
        """
        import pynvml

        self._nvml, self._pid, self._lock = pynvml, pid, threading.Lock()
        pynvml.nvmlInit()
        self._handle = self._find(uuid)
        self._start: int | None = None  # bytes in use on the device before the cell took any
        with suppress(Exception):
            self._start = self._device_use()
        self._begin(self._read())

    def poll(self) -> None:
        """Take a reading into the running interval."""
        with self._lock:
            self._take()

    def edge(self) -> dict[str, Any]:
        """Take a reading that ends one interval and begins the next; return what the one that ended saw, as JSON."""
        with self._lock:
            last = self._take()
            peaks = {name: self._peaks[name] for name in last.levels}
            answer = {"peaks": peaks, "foreign": self._foreign, "polls": self._polls, "problems": last.problems}
            self._begin(last)
            return answer

    def _begin(self, reading: Reading) -> None:
        self._peaks, self._foreign, self._polls = dict(reading.levels), reading.foreign, 1

    def _take(self) -> Reading:
        reading = self._read()
        self._polls += 1
        for name, level in reading.levels.items():
            self._peaks[name] = max(level, self._peaks.get(name, 0))
        if reading.foreign is not None:
            self._foreign = max(reading.foreign, self._foreign or 0)
        return reading

    def _read(self) -> Reading:
        levels: dict[str, int] = {}
        problems: dict[str, str] = {}
        foreign = None
        try:
            processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
            if pids := {process.pid for process in processes}:
                foreign = len(pids) - 1  # one is ours, in a container perhaps by an id we do not know
            ours = [process.usedGpuMemory for process in processes if process.pid == self._pid]
            if not ours:
                problems["nvml_process"] = "NVML does not list this process: it holds nothing, or a container hides it"
            elif not all(ours):  # None; or 0, although a process that is listed holds something
                problems["nvml_process"] = "the driver does not tell the memory of a process"
            else:
                levels["nvml_process"] = sum(ours)
        except Exception as error:  # the bindings' own too: no error may end the polls
            problems["nvml_process"] = f"NVML does not tell who uses the device: {spell_error(error)}"
        try:
            use = self._device_use()
            if self._start is None:
                problems["nvml_device"] = "NVML did not tell the device's memory when the monitor started"
            else:
                levels["nvml_device"] = max(0, use - self._start)  # others may have left since
        except Exception as error:
            problems["nvml_device"] = f"NVML does not tell the device's memory: {spell_error(error)}"
        return Reading(levels, problems, foreign)

    def _device_use(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def _find(self, uuid: str) -> Any:
        """Return NVML's handle of a device; torch tells a UUID without its prefix."""
        by_uuid = self._nvml.nvmlDeviceGetHandleByUUID
        if uuid.startswith(("GPU-", "MIG-")):
            return by_uuid(uuid)
        try:
            return by_uuid(f"GPU-{uuid}")
        except self._nvml.NVMLError:
            with suppress(self._nvml.NVMLError):
                return by_uuid(f"MIG-{uuid}")
            raise  # the first error: the second is only that there is no such instance


def main(uuid: str, pid: int, period: float) -> None:
    """Poll until stdin closes, and answer each line on it with what was seen since the line before.

    Args:
        uuid: of the device.
        pid: of the measured process.
        period: seconds between readings.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the cell decides
    try:
        sampler = Sampler(uuid, pid)
    except Exception as error:  # no library, no driver, no permission, no such device
        problems = dict.fromkeys(PROBES, f"NVML cannot be used for device {uuid}: {spell_error(error)}")
        for _ in sys.stdin:
            print(json.dumps({"peaks": {}, "foreign": None, "polls": 0, "problems": problems}), flush=True)
        return

    def poll() -> None:
        while True:
            time.sleep(period)
            sampler.poll()

    threading.Thread(target=poll, daemon=True).start()
    for _ in sys.stdin:
        print(json.dumps(sampler.edge()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
