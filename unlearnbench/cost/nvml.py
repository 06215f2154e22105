"""Monitors of the measured process: device memory by NVML, and stops of the process. Free of torch.

A cell starts its monitors before it touches its device. A monitor is a separate process, so that its polls do not take
time from the cell. It answers each line on its stdin with one line of JSON and ends when stdin closes, so it does not
outlive the cell.

`nvml_process` is what NVML counts for the cell's process; where NVML lists process ids of another namespace
(containers) or does not report memory per process, there is `nvml_device`: the device's total use minus that at the
start of the monitor. It is correct while the use of other processes is constant, which `foreign` helps to judge.
Foreign are processes with a compute context. Graphics-only processes are left out: a desktop's are always there, and
their use is part of that at the start.
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
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import psutil

from unlearnbench.errors import one_line, spell_error

# Torch keeps allocated device memory until an edge, where it is read anyway, so faster polls are not needed.
PERIOD_SECONDS = 0.05
START_SECONDS = 30.0  # NVML's first call may have to start the driver
ANSWER_SECONDS = 5.0  # a monitor that takes longer to answer is given up
PROBES = ("nvml_process", "nvml_device")
ALONE = "alone"  # tells a monitor that other cells of the run use other devices
STOP_PERIOD_SECONDS = 0.1
LATE_SECONDS = 0.5  # a poll this late, without waiting for a core, means that the monitor was stopped


def is_stopped(pid: int) -> bool:
    """Say whether a process is stopped: by Ctrl-Z, SIGSTOP or a debugger."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


class Monitor:
    """A process that watches this one and answers questions.

    Methods do not raise without an answer: a failed monitor is given up, with a reason.
    """

    def __init__(self, name: str, *arguments: str) -> None:
        """Start the process.

        Args:
            name: for messages.
            *arguments: of this module as a program.
        """
        self._name = name
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None  # None: not started, or given up
        self._ended = ""  # why
        # -P: do not import a folder `unlearnbench` in the current folder.
        command = [sys.executable, "-P", "-m", "unlearnbench.cost.nvml", *arguments]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=nowhere, encoding="utf-8", errors="replace",
                start_new_session=True,  # signals to the group are handled by the cell
            )  # fmt: skip
        except OSError as error:
            self._ended = f"{name} did not start: {spell_error(error)}"
        else:
            threading.Thread(target=self._listen, args=(self._process,), daemon=True, name=name).start()

    def close(self) -> None:
        """End the process."""
        self._end("was closed")

    def _ask(self, seconds: float) -> dict[str, Any]:
        """Return the monitor's answer within `seconds`; a failed monitor is not asked again."""
        if self._process is not None and self._process.stdin is not None:
            line = ""
            try:
                print(file=self._process.stdin, flush=True)
                line = self._lines.get(timeout=seconds)
                if line:
                    return self._understood(json.loads(line))
                self._end("died")
            except queue.Empty:
                self._end(f"gave no answer for {seconds:g} seconds")
            except OSError:
                self._end("died")
            except (ValueError, TypeError, KeyError, AttributeError):
                self._end(f"sent an invalid reply: {one_line(line, 80)}")
        return {}

    def _understood(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the values of an answer."""
        raise NotImplementedError

    def _listen(self, process: subprocess.Popen[str]) -> None:
        """Queue the monitor's lines, in a thread, since reading a line has no timeout."""
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._lines.put(line)
        self._lines.put("")

    def _end(self, why: str) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        self._ended = f"{self._name} {why}"
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # it may hang in the driver, unreachable by signals
            process.wait(timeout=1)


class NvmlMonitor(Monitor):
    """Peaks of the memory in use on one device, by probe, from edge to edge.

    An unavailable probe is missing from the peaks, with the reason in `problems`. `close` keeps the attributes.

    Attributes:
        foreign: the highest number of other processes computing on the device at once in the last interval, None where
            unknown. While this process holds no device memory, it may be one too low.
        polls: the number of readings in the last interval, those at its two edges included.
        problems: for each probe missing at the last edge, why.
    """

    def __init__(self, uuid: str, period: float = PERIOD_SECONDS, *, alone: bool = False) -> None:
        """Start the monitor and wait for its first reading, against which the device's use is counted.

        Args:
            uuid: of the device, before this process allocated memory on it; with or without `GPU-` or `MIG-`.
            period: seconds between readings; shorter peaks can be missed.
            alone: whether other cells of the run are on other devices.
        """
        super().__init__("the NVML monitor", str(os.getpid()), str(period), uuid, *([ALONE] if alone else []))
        self.foreign: int | None = None
        self.polls = 0
        self.problems: dict[str, str] = {}
        self._held: dict[str, int] = {}
        self._edge(START_SECONDS)

    def edge(self) -> dict[str, int]:
        """Take a reading, which ends one interval and begins the next, and return the peaks of the one that ended.

        Returns:
            {probe: bytes}, of the probes that could be read at this edge.
        """
        return self._edge(ANSWER_SECONDS)

    def held(self) -> dict[str, int]:
        """Return the reading of the last edge, {probe: bytes}, of the probes that could be read."""
        return dict(self._held)

    def __enter__(self) -> "NvmlMonitor":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _edge(self, seconds: float) -> dict[str, int]:
        peaks = self._ask(seconds)
        if self._process is None:
            self.foreign, self.polls, self.problems = None, 0, dict.fromkeys(PROBES, self._ended)
            self._held = {}
        return peaks

    def _understood(self, answer: dict[str, Any]) -> dict[str, int]:
        peaks = {str(name): int(peak) for name, peak in answer["peaks"].items()}
        self._held = {str(name): int(level) for name, level in answer["levels"].items()}
        self.foreign, self.polls, self.problems = answer["foreign"], answer["polls"], answer["problems"]
        return peaks


class StopMonitor(Monitor):
    """Seconds that this process was stopped: Ctrl-Z, SIGSTOP, a scheduler's suspend, a frozen container.

    A process cannot detect that itself, especially while its method holds the interpreter's lock.
    """

    def __init__(self) -> None:
        """Start the monitor and wait for its first reading."""
        super().__init__("the monitor of stops", str(os.getpid()), str(STOP_PERIOD_SECONDS))
        self._ask(START_SECONDS)

    def edge(self) -> dict[str, float]:
        """Return the seconds since the last edge."""
        return self._ask(ANSWER_SECONDS)

    @property
    def problem(self) -> str:
        """Why the monitor was given up; empty while it works."""
        return self._ended

    def _understood(self, answer: dict[str, Any]) -> dict[str, float]:
        return {"stopped_seconds": float(answer["stopped_seconds"])}


class Reading(NamedTuple):
    """The result of one poll."""

    levels: dict[str, int]  # probe name -> bytes
    problems: dict[str, str]  # probe name -> why it has no level
    foreign: int | None


class Sampler:
    """Reads NVML and keeps the peaks since the last edge, inside the monitor's process.

    Failed polls are skipped. A probe that fails at an edge is left out, as it may have failed throughout.
    """

    def __init__(self, uuid: str, pid: int, alone: bool = False) -> None:
        """Find the device and take the first reading.

        Args:
            uuid: of the device, with or without its prefix.
            pid: of the measured process.
            alone: whether other cells of the run are on other devices.
        """
        import pynvml

        self._nvml, self._pid, self._alone, self._lock = pynvml, pid, alone, threading.Lock()
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
        """Take a reading that ends one interval and begins the next; return the ended interval's values as JSON."""
        with self._lock:
            last = self._take()
            peaks = {name: self._peaks[name] for name in last.levels}
            answer = {
                "peaks": peaks, "levels": last.levels, "foreign": self._foreign, "polls": self._polls,
                "problems": last.problems,
            }  # fmt: skip
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
        foreign, beside = None, 0
        try:
            processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
            if pids := {process.pid for process in processes}:
                foreign, beside = _others(pids, self._pid, self._alone)
            ours = [process.usedGpuMemory for process in processes if process.pid == self._pid]
            if not ours:
                problems["nvml_process"] = "NVML does not list this process: it holds nothing, or a container hides it"
            elif not all(ours):  # None, or an implausible 0
                problems["nvml_process"] = "the driver does not report memory per process"
            else:
                levels["nvml_process"] = sum(ours)
        except Exception as error:  # no error of the bindings may end the polls
            problems["nvml_process"] = f"NVML does not list the device's processes: {spell_error(error)}"
        try:
            use = self._device_use()
            if beside:
                problems["nvml_device"] = "another process of this run holds memory on the device"
            elif self._start is None:
                problems["nvml_device"] = "NVML did not report the device's memory when the monitor started"
            else:
                levels["nvml_device"] = max(0, use - self._start)  # other processes may have ended
        except Exception as error:
            problems["nvml_device"] = f"NVML does not report the device's memory: {spell_error(error)}"
        return Reading(levels, problems, foreign)

    def _device_use(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def _find(self, uuid: str) -> Any:
        """Return NVML's handle of a device; torch's UUIDs lack the prefix."""
        by_uuid = self._nvml.nvmlDeviceGetHandleByUUID
        if uuid.startswith(("GPU-", "MIG-")):
            return by_uuid(uuid)
        try:
            return by_uuid(f"GPU-{uuid}")
        except self._nvml.NVMLError:
            with suppress(self._nvml.NVMLError):
                return by_uuid(f"MIG-{uuid}")
            raise  # the first error is more informative


def _others(listed: set[int], pid: int, alone: bool = False) -> tuple[int, int]:
    """Return the numbers of foreign processes in NVML's list, and of processes of other cells of the run.

    Where the measured process is not listed, NVML lists ids of another namespace: then as many as there are other cells
    are attributed to them, unless they use other devices.
    """
    if len(listed) == 1:
        return 0, 0
    own, cells = _run_of(pid)
    if alone:
        cells = []
    if pid in listed:
        beside = listed & set().union(*cells)
        return len(listed - own - beside), len(beside)
    rest = len(listed) - 1
    return max(0, rest - len(cells)), min(rest, len(cells))


def _run_of(pid: int) -> tuple[set[int], list[set[int]]]:
    """Return the processes of a job, and those of each other job of its process server."""
    with suppress(psutil.Error):
        job = psutil.Process(pid)
        guard = job.parent()
        server = guard.parent() if guard is not None else None
        served = server is not None and any("forkserver" in word for word in server.cmdline())
        guards = [process for process in server.children() if process != guard] if served and server else []
        return _tree(job), [_tree(other) for other in guards]
    return {pid}, []


def _tree(process: psutil.Process) -> set[int]:
    """Return the ids of a process and its running descendants."""
    with suppress(psutil.Error):
        return {process.pid, *(child.pid for child in process.children(recursive=True))}
    return {process.pid}


class StopSampler:
    """Adds up the time that a process is stopped, inside the monitor's process.

    A stop of all processes at once stops this one too, which its late polls show.
    """

    def __init__(self, pid: int, period: float) -> None:
        self._pid, self._period, self._lock = pid, period, threading.Lock()
        self._stopped, self._waited, self._last = 0.0, _waited_for_a_core(), time.monotonic()

    def poll(self) -> None:
        """Count the time since the last poll."""
        with self._lock:
            now, waited = time.monotonic(), _waited_for_a_core()
            took, idle = now - self._last, waited - self._waited
            if is_stopped(self._pid):
                self._stopped += took
            elif (late := took - self._period - idle) > LATE_SECONDS:
                self._stopped += late
            self._last, self._waited = now, waited

    def edge(self) -> dict[str, Any]:
        """Return the seconds since the last edge, as JSON."""
        self.poll()
        with self._lock:
            stopped, self._stopped = self._stopped, 0.0
        return {"stopped_seconds": stopped}


def _waited_for_a_core() -> float:
    """Return the seconds that this process waited for a core (Linux), else 0."""
    try:
        return sum(int(path.read_text().split()[1]) for path in Path("/proc/self/task").glob("*/schedstat")) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _serve(sampler: "Sampler | StopSampler", period: float) -> None:
    """Poll until stdin closes, and answer each line with the values since the previous line."""

    def poll() -> None:
        while True:
            time.sleep(period)
            sampler.poll()

    threading.Thread(target=poll, daemon=True).start()
    for _ in sys.stdin:
        print(json.dumps(sampler.edge()), flush=True)


def main(pid: int, period: float, uuid: str | None = None, alone: str = "") -> None:
    """Watch a process until stdin closes.

    Args:
        pid: of the measured process.
        period: seconds between readings.
        uuid: of the device whose memory is read; None for the process's stops.
        alone: `ALONE` where no other cell of the run is on this device.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the cell handles it, and ends this process
    if uuid is None:
        _serve(StopSampler(pid, period), period)
        return
    try:
        sampler = Sampler(uuid, pid, alone == ALONE)
    except Exception as error:  # no library, no driver, no permission, no such device
        problems = dict.fromkeys(PROBES, f"NVML cannot be used for device {uuid}: {spell_error(error)}")
        for _ in sys.stdin:
            answer = {"peaks": {}, "levels": {}, "foreign": None, "polls": 0, "problems": problems}
            print(json.dumps(answer), flush=True)
        return
    _serve(sampler, period)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
