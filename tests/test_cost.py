import os
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unlearnbench.cost import Cost, Meter, PolledPeak, RssPeak, available_probes, nvml_process_reader


class FakeClock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class FakeProbe:
    """A level that a test raises, and the peak since the last reset."""

    name = "fake"

    def __init__(self):
        self.level = self._peak = 10

    def use(self, level):
        self.level, self._peak = level, max(self._peak, level)

    def reset(self):
        self._peak = self.level

    def peak(self):
        return self._peak


@pytest.fixture
def parts():
    clock, probe = FakeClock(), FakeProbe()
    return clock, probe, Meter([probe], clock=clock)


def test_phases_never_overlap(parts):
    clock, _, meter = parts
    with meter.phase("forget"):
        clock.now += 2
        with meter.phase("prior"):
            clock.now += 5
        clock.now += 1
    clock.now += 100  # outside every phase
    assert {phase: cost.seconds for phase, cost in meter.costs.items()} == {"forget": 3, "prior": 5}


def test_time_outside_phases_is_nobodys(parts):
    clock, _, meter = parts
    with meter.phase("forget"), meter.phase(None):
        clock.now += 7
    assert meter.costs["forget"].seconds == 0


def test_a_peak_belongs_to_the_phase_it_happened_in(parts):
    _, probe, meter = parts
    with meter.phase("forget"):
        with meter.phase("prior"):
            probe.use(500)
            probe.use(10)
        probe.use(50)
        probe.use(10)
    with meter.phase("sample"):
        probe.use(20)
    peaks = {phase: cost.memory_bytes["fake"] for phase, cost in meter.costs.items()}
    assert peaks == {"prior": 500, "forget": 50, "sample": 20}


def test_the_device_is_synchronised_before_the_clock_is_read():
    clock = FakeClock()
    pending = [0.0]

    def synchronize():
        clock.now += pending[0]
        pending[0] = 0.0

    meter = Meter([], synchronize=synchronize, clock=clock)
    with meter.phase("forget"):
        pending[0] = 4.0  # launched, not waited for
    with meter.phase("sample"):
        clock.now += 1
    assert meter.costs["forget"].seconds == 4
    assert meter.costs["sample"].seconds == 1


def test_a_stretch_yields_its_own_cost_and_the_total_adds_up(parts):
    clock, _, meter = parts
    stretches = []
    for seconds in (1, 2):
        with meter.phase("prior") as cost:
            clock.now += seconds
        stretches.append(cost.seconds)
    assert stretches == [1, 2]
    assert meter.costs["prior"].seconds == 3


def test_a_charge_is_flagged_as_reused(parts):
    meter = parts[2]
    meter.charge("prior", Cost(9.0, {"fake": 77}))
    assert meter.costs["prior"].to_json() == {"seconds": 9.0, "memory_bytes": {"fake": 77}, "reused": True}


def test_an_error_in_a_phase_closes_it(parts):
    clock, _, meter = parts
    with pytest.raises(RuntimeError), meter.phase("forget"):
        clock.now += 1
        raise RuntimeError
    clock.now += 5
    with meter.phase("sample"):
        pass
    assert meter.costs["forget"].seconds == 1


def test_real_resident_peak_is_reset_at_the_edge():
    probe = available_probes(torch.device("cpu"))[0]
    if not isinstance(probe, RssPeak):
        pytest.skip("this kernel does not let a process reset its peak resident size")
    meter = Meter([probe])
    with meter.phase("prior"):
        block = np.ones(200 * 2**20, dtype=np.uint8)
        del block
    with meter.phase("forget"):
        pass
    difference = meter.costs["prior"].memory_bytes["rss_peak"] - meter.costs["forget"].memory_bytes["rss_peak"]
    assert difference == pytest.approx(200 * 2**20, rel=0.05)


def test_a_polled_probe_keeps_the_highest_reading():
    level = [1]
    probe = PolledPeak("test", lambda: level[0])
    probe.reset()
    level[0] = 5
    time.sleep(0.3)  # many polling periods
    level[0] = 2
    assert probe.peak() == 5
    probe.reset()
    assert probe.peak() == 2


def test_cpu_has_a_memory_probe():
    assert available_probes(torch.device("cpu"))[0].name.startswith("rss")


class FakeNvml:
    """Stands in for the pynvml module."""

    class NVMLError(Exception):
        pass

    def __init__(self, used, fails=()):
        self.used, self.fails, self.uuids = used, set(fails), []

    def nvmlInit(self):
        self._maybe_fail("init")

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self._maybe_fail("handle")
        self.uuids.append(uuid)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        self._maybe_fail("read")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.used]

    def _maybe_fail(self, call):
        if call in self.fails:
            raise self.NVMLError(call)


@pytest.mark.parametrize(
    ("used", "fails", "expected"),
    [
        ([(os.getpid(), 700), (1, 999)], (), 700),  # another process is not ours
        ([(os.getpid(), None)], (), None),  # the driver does not tell
        ([(1, 999)], (), None),  # the container hides our process id
        ([], (), None),
        ([(os.getpid(), 700)], ("init",), None),
        ([(os.getpid(), 700)], ("handle",), None),
        ([(os.getpid(), 700)], ("read",), None),
    ],
)
def test_nvml_counts_this_process_or_says_it_cannot(monkeypatch, used, fails, expected):
    nvml = FakeNvml(used, fails)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    read = nvml_process_reader("1234")
    assert (read() if read else None) == expected
    assert nvml.uuids == ([] if set(fails) & {"init", "handle"} else ["GPU-1234"])


def test_a_device_lost_later_does_not_stop_the_poll(monkeypatch):
    nvml = FakeNvml([(os.getpid(), 700)])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    probe = PolledPeak("nvml_process", nvml_process_reader("GPU-1"))
    nvml.fails.add("read")
    assert probe.peak() == 700


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_probes_see_a_known_tensor():
    meter = Meter.for_device(torch.device("cuda"))
    with meter.phase("prior"):
        pass
    with meter.phase("forget"):
        block = torch.ones(256 * 2**20, dtype=torch.uint8, device="cuda")
        del block
    before, after = (meter.costs[phase].memory_bytes["torch_allocated"] for phase in ("prior", "forget"))
    assert after - before == pytest.approx(256 * 2**20, rel=0.02)
