"""Instruments read at the edges of a phase: peak memory by named probes, and disturbances.

Unavailable probes are not read; `Instruments.missing` says why, so that a missing measurement is
never shown as a number.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil
import torch

from unlearnbench.cost.nvml import NvmlMonitor, StopMonitor

POLL_SECONDS = 0.02  # polling period of the probe without a peak counter
NO_CUDA = "the device is not a CUDA device"


class Probe(Protocol):
    """A source of peak memory."""

    def edge(self) -> Mapping[str, int]:
        """Return the peaks since the last edge, in bytes by the probe's name, and reset them."""

    def held(self) -> Mapping[str, int]:
        """Return the use right after an edge, in bytes by the probe's name: the baseline of a peak."""


class Watch(Protocol):
    """A source of disturbances of the measured work."""

    def edge(self) -> Mapping[str, float]:
        """Return the disturbances since the last edge: seconds, or the largest number of processes."""


class RssPeak:
    """Peak resident size of this process, by the kernel's own counter (Linux: VmHWM, reset through clear_refs)."""

    def edge(self) -> dict[str, int]:
        """Return the peak since the last edge.

        Raises:
            OSError: this system has no such counter.
        """
        peak = _own_status("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")
        return {"rss_peak": peak}

    def held(self) -> dict[str, int]:
        """Return the present resident size."""
        return {"rss_peak": _own_status("VmRSS")}


def _own_status(name: str) -> int:
    """Return a value of /proc/self/status in bytes.

    Raises:
        OSError: the system has no such value.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


class PolledRss:
    """Peak of readings of the resident size, taken by a thread every 20 ms; misses peaks shorter than that."""

    def __init__(self, read: Callable[[], int] = lambda: int(psutil.Process().memory_info().rss)) -> None:
        self._read, self._peak, self._lock = read, 0, threading.Lock()
        threading.Thread(target=self._poll, daemon=True, name="poll resident size").start()

    def _poll(self) -> None:
        while True:
            self._take()
            time.sleep(POLL_SECONDS)

    def _take(self) -> int:
        reading = self._read()
        with self._lock:
            self._peak = max(self._peak, reading)
            return self._peak

    def edge(self) -> dict[str, int]:
        """Return the highest reading since the last edge, the present one included."""
        peak = self._take()
        with self._lock:
            self._peak = 0
        return {"rss_polled": peak}

    def held(self) -> dict[str, int]:
        """Return the present reading."""
        return {"rss_polled": self._take()}


class TorchPeaks:
    """Peaks of torch's CUDA allocator: bytes taken from the device (reserved), and in tensors (allocated)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        torch.cuda.init()  # type: ignore[no-untyped-call]  # the allocator has no statistics to reset before

    def edge(self) -> dict[str, int]:
        """Return both peaks since the last edge."""
        peaks = {
            "torch_reserved": torch.cuda.max_memory_reserved(self._device),
            "torch_allocated": torch.cuda.max_memory_allocated(self._device),
        }
        torch.cuda.reset_peak_memory_stats(self._device)
        return peaks

    def held(self) -> dict[str, int]:
        """Return the bytes reserved by the allocator, and those in tensors."""
        return {
            "torch_reserved": torch.cuda.memory_reserved(self._device),
            "torch_allocated": torch.cuda.memory_allocated(self._device),
        }


def _own_cpu_seconds() -> float:
    """Return the CPU seconds of this process and its children, running or ended."""
    mine = os.times()
    seconds = mine.user + mine.system + mine.children_user + mine.children_system
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile; counted next time among the ended
            seconds += sum(process.cpu_times()[:4])
    return seconds


class ForeignCpu:
    """CPU seconds of other processes (and of a virtual machine's host) on the cores this one may use."""

    def __init__(self) -> None:
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        self._cores = sorted(cores) if cores is not None else None
        self._last = self._read()

    def _read(self) -> float:
        every = psutil.cpu_times(percpu=True)
        chosen = every if self._cores is None else [every[core] for core in self._cores if core < len(every)]
        names = ("user", "nice", "system", "irq", "softirq", "steal")
        busy = sum(getattr(core, name, 0.0) for core in chosen for name in names)
        return float(busy) - _own_cpu_seconds()

    def edge(self) -> dict[str, float]:
        """Return the seconds since the last edge."""
        now = self._read()
        seconds, self._last = now - self._last, now
        return {"foreign_cpu_seconds": max(seconds, 0.0)}


class Sleep:
    """Seconds that the machine slept (lid closed, virtual machine paused), which the clock does not count."""

    def __init__(self) -> None:
        self._last = self._read()

    def _read(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)

    def edge(self) -> dict[str, float]:
        """Return the seconds since the last edge."""
        now = self._read()
        seconds, self._last = now - self._last, now
        return {"slept_seconds": max(seconds, 0.0)}


@dataclass
class ForeignProcesses:
    """The largest number of other processes on the device at once, by NVML; read after the monitor's edge."""

    monitor: NvmlMonitor

    def edge(self) -> dict[str, float]:
        """Return the number in the stretch that ended last."""
        return {} if self.monitor.foreign is None else {"foreign_processes": float(self.monitor.foreign)}


@dataclass
class DevicesBeside:
    """The largest number of other devices of the run at work at once."""

    ask: Callable[[], int]  # asks the run's process for the maximum since the last request

    def edge(self) -> dict[str, float]:
        """Return the number since the last edge."""
        return {"devices_beside": float(self.ask())}


@dataclass
class Instruments:
    """The available instruments."""

    probes: Sequence[Probe] = ()
    watches: Sequence[Watch] = ()
    missing: dict[str, str] = field(default_factory=dict)  # probe -> why it is missing
    monitor: NvmlMonitor | None = None
    stops: StopMonitor | None = None

    @classmethod
    def of(cls, device: torch.device, uuid: str, beside: Callable[[], int] | None = None) -> "Instruments":
        """Return the instruments that work on a device.

        Args:
            device: of the cell, before anything was allocated on it.
            uuid: of that device, for NVML.
            beside: with several devices, returns the largest number of others at work; None for a single device.
        """
        probes: list[Probe] = []
        stops = StopMonitor()
        watches: list[Watch] = [stops, *([Sleep()] if hasattr(time, "CLOCK_BOOTTIME") else [])]
        monitor = None
        missing = dict.fromkeys(("nvml_process", "nvml_device", "torch_reserved", "torch_allocated"), NO_CUDA)
        if device.type == "cuda":
            monitor, missing = NvmlMonitor(uuid, alone=beside is not None), {}
            probes += [monitor, TorchPeaks(device)]
            watches.append(ForeignProcesses(monitor))
        elif device.type == "cpu":
            watches.append(ForeignCpu())
        if beside is not None:
            watches.append(DevicesBeside(beside))
        try:
            rss = RssPeak()
            rss.edge()
            probes.append(rss)
        except OSError as error:
            missing["rss_peak"] = f"the kernel does not let a process reset its peak resident size ({error})"
            probes.append(PolledRss())
        return cls(probes, watches, missing, monitor, stops)

    def reasons(self) -> dict[str, str]:
        """Return why probes are missing, or failed later."""
        stops = {"stopped_seconds": self.stops.problem} if self.stops is not None and self.stops.problem else {}
        return self.missing | (self.monitor.problems if self.monitor is not None else {}) | stops

    def close(self) -> None:
        """Stop the monitor processes."""
        for monitor in (self.monitor, self.stops):
            if monitor is not None:
                monitor.close()
