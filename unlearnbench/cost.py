"""The clock and the memory probes of a cell's phases.

The phases `prior`, `forget`, `sample` and `judge` never overlap: entering one suspends the one around it. The device is
synchronised at both edges of every stretch of time, and every memory peak is reset there.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil
import torch

Phase = Literal["prior", "forget", "sample", "judge"]
POLL_SECONDS = 0.02  # period of probes that have no peak counter of their own


class Probe(Protocol):
    """A source of peak memory."""

    name: str

    def reset(self) -> None:
        """Forget the peak so far."""

    def peak(self) -> int:
        """Return the peak since `reset`, in bytes."""


class RssPeak:
    """Peak resident size of this process, by the kernel's own counter (Linux: VmHWM, reset through clear_refs)."""

    name = "rss_peak"

    def reset(self) -> None:  # noqa: D102 - as the protocol says
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:  # noqa: D102
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise OSError("/proc/self/status has no VmHWM")


class PolledPeak:
    """Peak of any reading, taken by a thread every 20 ms; misses peaks shorter than that."""

    def __init__(self, name: str, read: Callable[[], int]) -> None:
        self.name, self._read = name, read
        self._peak, self._lock = read(), threading.Lock()
        threading.Thread(target=self._poll, daemon=True, name=f"poll {name}").start()

    def _poll(self) -> None:
        while True:
            time.sleep(POLL_SECONDS)
            self._take(self._read())

    def _take(self, reading: int) -> None:
        with self._lock:
            self._peak = max(self._peak, reading)

    def reset(self) -> None:  # noqa: D102
        with self._lock:
            self._peak = 0
        self._take(self._read())

    def peak(self) -> int:  # noqa: D102
        self._take(self._read())
        return self._peak


class TorchPeak:
    """Peak of torch's CUDA allocator: bytes in tensors (`allocated`) or taken from the device (`reserved`)."""

    def __init__(self, device: torch.device, counter: Literal["allocated", "reserved"]) -> None:
        self.name, self._device, self._counter = f"torch_{counter}", device, counter

    def reset(self) -> None:  # noqa: D102
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:  # noqa: D102
        read = torch.cuda.max_memory_allocated if self._counter == "allocated" else torch.cuda.max_memory_reserved
        return read(self._device)


def nvml_process_reader(uuid: str) -> Callable[[], int] | None:
    """Return a reader of the device memory NVML counts for this process, or None where NVML cannot tell.

    In a container NVML may list the host's process ids, and some drivers report no memory per process: it cannot tell.

    Args:
        uuid: of the device, on which this process has allocated something.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except pynvml.NVMLError:
        return None

    def read() -> int:
        try:
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except pynvml.NVMLError:
            return 0
        return sum(p.usedGpuMemory or 0 for p in processes if p.pid == os.getpid())

    return read if read() > 0 else None


def available_probes(device: torch.device) -> list[Probe]:
    """Return the probes that work here, best first."""
    probes: list[Probe] = []
    if device.type == "cuda":
        torch.zeros(1, device=device)  # NVML lists a process once it holds device memory
        if (read := nvml_process_reader(str(torch.cuda.get_device_properties(device).uuid))) is not None:
            probes.append(PolledPeak("nvml_process", read))
        probes += [TorchPeak(device, "reserved"), TorchPeak(device, "allocated")]
    try:
        rss = RssPeak()
        rss.reset()
        rss.peak()
        probes.append(rss)
    except OSError:  # not Linux, or a kernel that forbids the reset
        probes.append(PolledPeak("rss_polled", lambda: int(psutil.Process().memory_info().rss)))
    return probes


@dataclass
class Cost:
    """What one phase took so far."""

    seconds: float = 0.0
    memory_bytes: dict[str, int] = field(default_factory=dict)  # probe name -> peak
    reused: bool = False  # part of it is the original cost of a cached prior

    def add(self, seconds: float, memory_bytes: dict[str, int]) -> None:
        """Add a stretch of time and raise the peaks."""
        self.seconds += seconds
        for name, peak in memory_bytes.items():
            self.memory_bytes[name] = max(peak, self.memory_bytes.get(name, 0))

    def to_json(self) -> dict[str, Any]:
        """Return the cost as a JSON object."""
        return {"seconds": self.seconds, "memory_bytes": self.memory_bytes, "reused": self.reused}


class Meter:
    """Splits a cell's time and memory into phases."""

    def __init__(
        self,
        probes: Sequence[Probe],
        synchronize: Callable[[], None] = lambda: None,
        release: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start outside every phase.

        Args:
            probes: memory probes, read and reset at each edge.
            synchronize: waits for all work launched on the device.
            release: gives cached memory back to the device, so that no phase carries another's peak.
            clock: monotonic seconds.
        """
        self._probes, self._synchronize, self._release, self._clock = probes, synchronize, release, clock
        self._phase: Phase | None = None
        self._since = clock()
        self._open: list[Cost] = []
        self.costs: dict[Phase, Cost] = {}

    @classmethod
    def for_device(cls, device: torch.device) -> "Meter":
        """Return a meter with every probe that works on a device."""
        if device.type == "cpu":
            return cls(available_probes(device))
        release = torch.cuda.empty_cache if device.type == "cuda" else lambda: None
        return cls(available_probes(device), lambda: torch.accelerator.synchronize(device), release)

    @contextmanager
    def phase(self, phase: Phase | None) -> Iterator[Cost]:
        """Attribute the time inside to a phase (None: to no phase) and yield the cost of this stretch alone."""
        outer, cost = self._phase, Cost()
        self._switch(phase)
        self._open.append(cost)
        try:
            yield cost
        finally:
            self._switch(outer)
            self._open.pop()

    def charge(self, phase: Phase, cost: Cost) -> None:
        """Add a cost that was measured earlier, when a cached prior was first made."""
        total = self.costs.setdefault(phase, Cost())
        total.add(cost.seconds, cost.memory_bytes)
        total.reused = True

    def _switch(self, phase: Phase | None) -> None:
        """Close the running stretch and open the next; what happens in here belongs to no phase."""
        self._synchronize()
        seconds = self._clock() - self._since
        if self._phase is not None:
            peaks = {probe.name: probe.peak() for probe in self._probes}
            self.costs.setdefault(self._phase, Cost()).add(seconds, peaks)
            if self._open:
                self._open[-1].add(seconds, peaks)
        self._phase = phase
        self._release()
        for probe in self._probes:
            probe.reset()
        self._since = self._clock()
