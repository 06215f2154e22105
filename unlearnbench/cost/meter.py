"""The clock of a cell's phases, with readings of instruments at their edges.

The phases never overlap: entering one suspends the enclosing one. The device is synchronised and memory peaks are reset
at both edges of every stretch. Untimed stretches are accounted for by name, so that they add up to the wall time.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, get_args

import torch

from unlearnbench.cost.phases import PHASES, Cost, Phase, Untimed
from unlearnbench.cost.probes import Instruments

FOREIGN_SHARE = 0.1  # of all cores: a disturbance if other processes take more
SHORTEST_STRETCH = 0.5  # seconds; the kernel counts CPU time in hundredths, too coarse for less


class Meter:
    """Splits a cell's time and memory into phases."""

    def __init__(
        self,
        instruments: Instruments | None = None,
        synchronize: Callable[[], None] = lambda: None,
        release: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start without a phase.

        Args:
            instruments: are read and reset at each edge; None for none.
            synchronize: waits for all work launched on the device.
            release: returns cached memory to the device, so that peaks of phases are independent.
            clock: monotonic seconds.
        """
        self.instruments = instruments if instruments is not None else Instruments()
        self._synchronize, self._release, self._clock = synchronize, release, clock
        self._account: Phase | Untimed | None = None
        self._started = self._since = clock()
        self._open: list[Cost] = []
        self._held: Mapping[str, int] = {}  # probe name -> use at the start of the current stretch
        self._stopped = 0.0  # seconds that this process was stopped (Ctrl-Z, a scheduler), in no phase
        self.clock_went_back = False
        self.costs: dict[Phase | Untimed, Cost] = {}

    @classmethod
    def for_device(
        cls,
        device: torch.device,
        uuid: str,
        beside: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> "Meter":
        """Return a meter with every instrument that works on a device; arguments as for `Instruments.of`."""
        instruments = Instruments.of(device, uuid, beside)
        if device.type == "cpu":
            return cls(instruments, clock=clock)
        release = torch.cuda.empty_cache if device.type == "cuda" else lambda: None
        return cls(instruments, lambda: torch.accelerator.synchronize(device), release, clock)

    @contextmanager
    def phase(self, account: Phase | Untimed) -> Iterator[Cost]:
        """Attribute the time inside to a phase or an untimed account; yield the cost of this stretch."""
        outer, cost = self._account, Cost()
        self._switch(account)
        self._open.append(cost)
        try:
            yield cost
        finally:
            self._switch(outer)
            self._open.pop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for a moment (checks, logging); memory peaks go on."""
        self._synchronize()
        began = self._clock()
        try:
            yield
        finally:
            self._synchronize()
            self._since += self._clock() - began

    def fresh(self) -> "Meter":
        """Return a new meter with the same instruments, for repeats."""
        return Meter(self.instruments, self._synchronize, self._release, self._clock)

    def charge(self, phase: Phase, cost: Cost) -> None:
        """Add a cost that was measured earlier, on building a cached artifact."""
        self.costs.setdefault(phase, Cost()).add(cost)

    def phases(self) -> dict[str, Any]:
        """Return {phase: cost as JSON}, in the order of PHASES."""
        return {phase: self.costs[phase].to_json() for phase in PHASES if phase in self.costs}

    def untimed(self) -> dict[str, float]:
        """Return the seconds since the start outside all phases, by account; `rest` has no account."""
        named = {name: self.costs[name].seconds for name in get_args(Untimed) if name in self.costs}
        own = sum(cost.seconds - cost.reused_seconds for cost in self.costs.values())
        stopped = {"stopped": self._stopped} if self._stopped else {}
        return {**named, **stopped, "rest": max(self.elapsed() - own - self._stopped, 0.0)}

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return self._clock() - self._started

    def _switch(self, account: Phase | Untimed | None) -> None:
        """Close the running stretch and open the next; the time of this call itself belongs to no phase."""
        self._synchronize()
        seconds = self._clock() - self._since
        if seconds < 0:
            self.clock_went_back, seconds = True, 0.0
        peaks, load = self._read()
        stopped = min(load.get("stopped_seconds", 0.0), seconds)
        self._stopped, seconds = self._stopped + stopped, seconds - stopped
        growth = {name: max(0, peak - self._held[name]) for name, peak in peaks.items() if name in self._held}
        stretch = Cost(seconds, peaks, growth, load=load)
        if self._account is not None:
            self.costs.setdefault(self._account, Cost()).add(stretch)
            if self._open:
                self._open[-1].add(stretch)
        self._account = account
        self._release()
        self._read()  # a new stretch starts from what is left after the release
        self._held = {name: held for probe in self.instruments.probes for name, held in probe.held().items()}
        self._since = self._clock()

    def _read(self) -> tuple[dict[str, int], dict[str, float]]:
        """Return peaks and load since the last reading."""
        peaks = {name: peak for probe in self.instruments.probes for name, peak in probe.edge().items()}
        load = {name: amount for watch in self.instruments.watches for name, amount in watch.edge().items()}
        return peaks, load

    def disturbances(self, cores: int) -> list[dict[str, str]]:
        """Return the disturbances of each phase: {"phase", "what"}, `what` in words.

        Args:
            cores: number of cores that this process may use.
        """
        found: list[tuple[Phase, str]] = []
        for phase in PHASES:
            cost = self.costs.get(phase, Cost())
            foreign = cost.load.get("foreign_cpu_seconds", 0.0)
            stopped = cost.load.get("stopped_seconds", 0.0)
            watched = cost.seconds + stopped
            if watched >= SHORTEST_STRETCH and foreign > FOREIGN_SHARE * cores * watched:
                found.append((phase, f"other processes used {foreign / watched:.1f} of {cores} cores"))
            if processes := round(cost.load.get("foreign_processes", 0)):
                found.append((phase, f"{processes} other process{'es' * (processes > 1)} on the device"))
            if (slept := cost.load.get("slept_seconds", 0.0)) > SHORTEST_STRETCH:
                found.append((phase, f"the machine slept for {slept:.0f} s, which are not counted"))
            if stopped > SHORTEST_STRETCH:
                found.append((phase, f"the process was stopped for {stopped:.0f} s, which are not counted"))
        if self.clock_went_back:
            found.append(("forget", "the clock went back; that stretch counts as 0 s"))
        return [{"phase": phase, "what": what} for phase, what in found]


@contextmanager
def compiling_is_warmup(meter: Meter) -> Iterator[None]:
    """Attribute the time of torch.compile inside to phase `warmup`."""
    from torch._dynamo.callback import callback_handler

    compiling = ExitStack()

    def start(*_: Any) -> None:
        compiling.enter_context(meter.phase("warmup"))

    def end(*_: Any) -> None:
        compiling.close()

    callback_handler.register_start_callback(start)
    callback_handler.register_end_callback(end)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(start)
        callback_handler.remove_end_callback(end)
