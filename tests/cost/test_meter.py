import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from unlearnbench.cost.meter import Meter, compiling_is_warmup
from unlearnbench.cost.nvml import StopSampler
from unlearnbench.cost.phases import Cost
from unlearnbench.cost.probes import (
    ForeignCpu,
    ForeignProcesses,
    Instruments,
    PolledRss,
    RssPeak,
    Sleep,
    _own_cpu_seconds,
)


class FakeClock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class FakeProbe:
    """A level that a test raises, and the peak since the last edge."""

    def __init__(self):
        self.level = self._peak = 10

    def use(self, level):
        self.level, self._peak = level, max(self._peak, level)

    def edge(self):
        peak, self._peak = self._peak, self.level
        return {"fake": peak}

    def held(self):
        return {"fake": self.level}


class FakeWatch:
    """Amounts that a test adds, and what was added since the last edge."""

    def __init__(self):
        self.amounts = {}

    def edge(self):
        amounts, self.amounts = self.amounts, {}
        return amounts


@pytest.fixture
def parts():
    clock, probe = FakeClock(), FakeProbe()
    return clock, probe, Meter(Instruments([probe]), clock=clock)


def seconds(meter):
    return {phase: cost["seconds"] for phase, cost in meter.phases().items()}


def test_phases_never_overlap(parts):
    clock, _, meter = parts
    with meter.phase("forget"):
        clock.now += 2
        with meter.phase("prior"):
            clock.now += 5
        clock.now += 1
    clock.now += 100  # outside every phase
    assert seconds(meter) == {"prior": 5, "forget": 3}


def test_time_outside_phases_is_named_and_all_of_it_adds_up(parts):
    clock, _, meter = parts
    with meter.phase("load"):
        clock.now += 7
    with meter.phase("forget"):
        clock.now += 2
        with meter.phase("load"):
            clock.now += 1
    clock.now += 4
    meter.charge("prior", Cost(50.0, reused_seconds=50.0))
    assert meter.untimed() == {"load": 8, "rest": 4}
    own = sum(cost["seconds"] - cost["reused_seconds"] for cost in meter.phases().values())
    assert own + sum(meter.untimed().values()) == meter.elapsed() == 14


def test_a_pause_is_not_timed_and_takes_no_peak_away(parts):
    clock, probe, meter = parts
    with meter.phase("forget"):
        probe.use(500)
        probe.use(10)
        clock.now += 2
        with meter.paused():
            clock.now += 30
        clock.now += 1
    assert meter.costs["forget"].seconds == 3
    assert meter.costs["forget"].memory_bytes == {"fake": 500}
    assert meter.untimed()["rest"] == 30


def test_a_pause_waits_for_what_was_launched_before_it():
    clock, pending = FakeClock(), [0.0]

    def synchronize():
        clock.now += pending[0]
        pending[0] = 0.0

    meter = Meter(synchronize=synchronize, clock=clock)
    with meter.phase("forget"):
        pending[0] = 4.0
        with meter.paused():
            clock.now += 10
            pending[0] = 20.0  # launched by what is not timed
    assert meter.costs["forget"].seconds == 4


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
    peaks = {phase: cost["memory_bytes"]["fake"] for phase, cost in meter.phases().items()}
    assert peaks == {"prior": 500, "forget": 50, "sample": 20}


def grown(meter):
    return {phase: cost["memory_growth_bytes"] for phase, cost in meter.phases().items()}


def test_growth_is_over_what_was_held_when_the_phase_began(parts):
    _, probe, meter = parts
    probe.use(100)  # the base model
    with meter.phase("forget"):
        probe.use(500)
        probe.use(300)
    with meter.phase("sample"):
        probe.use(320)
    with meter.phase("judge"):
        probe.use(50)
    assert grown(meter) == {"forget": {"fake": 400}, "sample": {"fake": 20}, "judge": {"fake": 0}}


def test_the_largest_growth_of_all_stretches_of_a_phase_counts(parts):
    clock, probe, meter = parts
    with meter.phase("forget"):
        clock.now += 1
        probe.use(40)
        with meter.phase("prior"):
            probe.use(200)
        probe.use(210)
        clock.now += 1
    assert grown(meter) == {"prior": {"fake": 160}, "forget": {"fake": 30}}


def test_a_growth_that_missed_a_stretch_is_none(parts):
    clock, probe, meter = parts
    with meter.phase("sample"):
        clock.now += 1
    probe.held = dict  # NVML did not answer
    with meter.phase("sample"):
        clock.now += 1
    with meter.phase("judge"):
        clock.now += 1
    assert grown(meter) == {"sample": {}, "judge": {}}
    assert meter.phases()["sample"]["memory_bytes"] == {"fake": 10}


def test_a_phase_grows_from_what_is_left_after_the_release():
    probe = FakeProbe()
    meter = Meter(Instruments([probe]), release=lambda: probe.use(10))
    probe.use(90)  # in the allocator's cache
    with meter.phase("forget"):
        probe.use(60)
    assert grown(meter) == {"forget": {"fake": 50}}


def test_a_peak_that_missed_a_stretch_is_none(parts):
    _, probe, meter = parts
    clock = parts[0]
    with meter.phase("sample"):
        clock.now += 1
    probe.edge = dict  # NVML no longer answers
    with meter.phase("sample"):
        clock.now += 1
    assert meter.phases()["sample"]["memory_bytes"] == {}


def test_a_phase_starts_from_what_is_left_after_the_release():
    probe = FakeProbe()
    meter = Meter(Instruments([probe]), release=lambda: probe.use(10))
    with meter.phase("prior"):
        probe.use(500)  # stays in the allocator's cache
    with meter.phase("forget"):
        pass
    assert meter.costs["forget"].memory_bytes == {"fake": 10}


def test_the_device_is_synchronised_before_the_clock_is_read():
    clock = FakeClock()
    pending = [0.0]

    def synchronize():
        clock.now += pending[0]
        pending[0] = 0.0

    meter = Meter(synchronize=synchronize, clock=clock)
    with meter.phase("forget"):
        pending[0] = 4.0  # launched, not waited for
    with meter.phase("sample"):
        clock.now += 1
    assert seconds(meter) == {"forget": 4, "sample": 1}


def test_a_stretch_yields_its_own_cost_and_the_total_adds_up(parts):
    clock, _, meter = parts
    stretches = []
    for amount in (1, 2):
        with meter.phase("prior") as cost:
            clock.now += amount
        stretches.append(cost.seconds)
    assert stretches == [1, 2]
    assert meter.costs["prior"].seconds == 3


def test_a_charge_is_flagged_as_reused_and_keeps_what_disturbed_it(parts):
    meter = parts[2]
    first = Cost(9.0, {"fake": 77}, {"fake": 7}, load={"foreign_cpu_seconds": 8.0})
    meter.charge("prior", Cost.earlier(first.to_json()))
    assert meter.phases()["prior"] == {
        "seconds": 9.0, "memory_bytes": {"fake": 77}, "memory_growth_bytes": {"fake": 7}, "reused_seconds": 9.0,
        "reused": True,
        "load": {"foreign_cpu_seconds": 8.0},
    }  # fmt: skip
    assert [found["phase"] for found in meter.disturbances(cores=2)] == ["prior"]


def test_a_charge_from_before_growth_was_measured_has_none(parts):
    clock, probe, meter = parts
    old = {"seconds": 9.0, "memory_bytes": {"fake": 77}, "load": {}, "side_by_side": False}
    meter.charge("prior", Cost.earlier(old))
    with meter.phase("prior"):
        clock.now += 1
        probe.use(500)
    assert (meter.costs["prior"].memory_bytes, meter.costs["prior"].memory_growth_bytes) == ({"fake": 500}, {})


def test_an_error_in_a_phase_closes_it(parts):
    clock, _, meter = parts
    with pytest.raises(RuntimeError), meter.phase("forget"):
        clock.now += 1
        raise RuntimeError
    clock.now += 5
    with meter.phase("sample"):
        pass
    assert meter.costs["forget"].seconds == 1


def test_a_clock_that_goes_back_gives_no_negative_time_and_is_reported(parts):
    clock, _, meter = parts
    with meter.phase("forget"):
        clock.now -= 100
    assert seconds(meter) == {"forget": 0}
    assert meter.untimed()["rest"] == 0
    assert "went back" in meter.disturbances(cores=2)[0]["what"]


def test_another_meter_times_again_and_leaves_the_first_one_alone(parts):
    clock, _, meter = parts
    with meter.phase("forget"):
        clock.now += 5
    with meter.phase("repeat"):
        again = meter.fresh()
        with again.phase("forget"):
            clock.now += 6
    assert again.costs["forget"].seconds == 6
    assert seconds(meter) == {"forget": 5}
    assert meter.untimed() == {"repeat": 6, "rest": 0}


class TestDisturbances:
    @pytest.mark.parametrize(
        ("took", "foreign", "sentences"),
        [
            (10.0, 1.9, []),  # less than a tenth of two cores
            (10.0, 16.0, ["other processes used 1.6 of 2 cores"]),
            (0.4, 0.8, []),  # the kernel's clock is too coarse to tell
        ],
    )
    def test_other_processes_on_the_cores(self, parts, took, foreign, sentences):
        clock, _, meter = parts
        watch = FakeWatch()
        meter.instruments.watches = [watch]
        with meter.phase("forget"):
            clock.now += took
            watch.amounts["foreign_cpu_seconds"] = foreign
        assert [found["what"] for found in meter.disturbances(cores=2)] == sentences

    def test_stretches_of_a_phase_add_up(self, parts):
        clock, _, meter = parts
        watch = FakeWatch()
        meter.instruments.watches = [watch]
        for _ in range(4):
            with meter.phase("sample"):
                clock.now += 0.3
                watch.amounts = {"foreign_cpu_seconds": 0.2, "foreign_processes": 1}
        assert meter.costs["sample"].load == {"foreign_cpu_seconds": pytest.approx(0.8), "foreign_processes": 1}

    def test_processes_on_the_device_and_a_sleeping_machine(self, parts):
        _, _, meter = parts
        watch = FakeWatch()
        meter.instruments.watches = [watch]
        with meter.phase("prior"):
            watch.amounts = {"foreign_processes": 2, "slept_seconds": 40.0}
        assert meter.disturbances(cores=2) == [
            {"phase": "prior", "what": "2 other processes on the device"},
            {"phase": "prior", "what": "the machine slept for 40 s, which are not counted"},
        ]


OURS = {"user": 0.0, "system": 0.0, "children_user": 0.0, "children_system": 0.0}


def test_time_that_the_process_is_stopped_is_not_run_time(parts):
    clock, _, meter = parts
    watch = FakeWatch()
    meter.instruments.watches = [watch]
    with meter.phase("forget"):
        clock.now += 10
        watch.amounts = {"stopped_seconds": 6.0, "foreign_cpu_seconds": 1.5}
    assert seconds(meter) == {"forget": 4.0}
    assert meter.untimed() == {"stopped": 6.0, "rest": 0.0}
    what = "the process was stopped for 6 s, which are not counted"
    assert meter.disturbances(2) == [{"phase": "forget", "what": what}]


STOPPED = """
import re, sys, time
import torch
from unlearnbench.cost.meter import Meter
meter = Meter.for_device(torch.device("cpu"), "x")
with meter.phase("forget"):
    print("begun", flush=True)
    re.match(r"(a+)+$", "a" * 25 + "b")  # keeps the interpreter's lock
print(meter.costs["forget"].load["stopped_seconds"])
"""


def test_a_stop_is_noticed_while_the_interpreters_lock_is_kept():
    process = subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=120)
    assert float(output) == pytest.approx(2, abs=0.5)


def test_a_process_that_was_frozen_with_its_monitor_was_stopped(monkeypatch):
    now = FakeClock()
    monkeypatch.setattr("unlearnbench.cost.nvml.time.monotonic", now)
    monkeypatch.setattr("unlearnbench.cost.nvml._waited_for_a_core", lambda: 0.0)
    sampler = StopSampler(os.getpid(), 0.1)
    now.now += 0.1
    sampler.poll()
    now.now += 5.1
    assert sampler.edge() == {"stopped_seconds": pytest.approx(5.0)}
    now.now += 0.3  # late, as on a busy machine
    assert sampler.edge() == {"stopped_seconds": 0.0}


def test_what_a_child_computes_is_not_a_strangers_work():
    watch = ForeignCpu()
    before = _own_cpu_seconds()
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint(1, flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    alive = _own_cpu_seconds()
    child.communicate(b"\n")
    assert alive - before >= 0.45
    assert _own_cpu_seconds() >= alive - 0.02
    assert watch.edge()["foreign_cpu_seconds"] >= 0


class TestInstruments:
    def test_cpu_has_a_memory_probe_and_says_why_it_has_no_other(self):
        instruments = Instruments.of(torch.device("cpu"), "")
        names = {name for probe in instruments.probes for name in probe.edge()}
        assert names <= {"rss_peak", "rss_polled"} and len(names) == 1
        assert instruments.reasons()["nvml_process"] == "the device is not a CUDA device"

    def test_a_kernel_without_a_peak_counter_is_polled_and_it_is_said(self, monkeypatch):
        def refuse(self):
            raise PermissionError("not permitted")

        monkeypatch.setattr(RssPeak, "edge", refuse)
        instruments = Instruments.of(torch.device("cpu"), "")
        assert [set(probe.edge()) for probe in instruments.probes] == [{"rss_polled"}]
        assert "not permitted" in instruments.reasons()["rss_peak"]

    def test_what_a_monitor_could_not_read_is_a_reason(self):
        monitor = SimpleNamespace(problems={"nvml_process": "it is not listed"}, close=lambda: None)
        assert Instruments(monitor=monitor).reasons() == {"nvml_process": "it is not listed"}

    def test_real_resident_peak_is_reset_at_the_edge(self):
        instruments = Instruments.of(torch.device("cpu"), "")
        if not isinstance(instruments.probes[0], RssPeak):
            pytest.skip("this kernel does not let a process reset its peak resident size")
        meter = Meter(instruments)
        with meter.phase("prior"):
            block = np.ones(200 * 2**20, dtype=np.uint8)
            del block
        with meter.phase("forget"):
            pass
        difference = meter.costs["prior"].memory_bytes["rss_peak"] - meter.costs["forget"].memory_bytes["rss_peak"]
        assert difference == pytest.approx(200 * 2**20, rel=0.05)
        growth = {phase: cost.memory_growth_bytes["rss_peak"] for phase, cost in meter.costs.items()}
        assert growth["prior"] == pytest.approx(200 * 2**20, rel=0.05)
        assert growth["forget"] < 10 * 2**20

    def test_a_polled_probe_keeps_the_highest_reading(self):
        level = [1]
        probe = PolledRss(lambda: level[0])
        probe.edge()
        level[0] = 5
        time.sleep(0.3)  # many polling periods
        level[0] = 2
        assert probe.edge() == {"rss_polled": 5}
        assert probe.held() == {"rss_polled": 2}
        assert probe.edge() == {"rss_polled": 2}

    def test_only_others_on_our_cores_count(self, monkeypatch):
        busy, mine = [0.0, 0.0, 0.0], [0.0]
        times = SimpleNamespace(nice=0.0, system=0.0, irq=0.0, softirq=0.0, steal=0.5)
        monkeypatch.setattr(
            psutil, "cpu_times", lambda percpu: [SimpleNamespace(user=amount, **vars(times)) for amount in busy]
        )
        monkeypatch.setattr("unlearnbench.cost.probes.os.times", lambda: SimpleNamespace(**{**OURS, "user": mine[0]}))
        monkeypatch.setattr("unlearnbench.cost.probes.os.sched_getaffinity", lambda pid: {0, 2}, raising=False)
        monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(children=lambda recursive: []))
        watch = ForeignCpu()
        busy[:], mine[0] = [3.0, 100.0, 1.0], 2.5  # the second core is not ours
        assert watch.edge() == {"foreign_cpu_seconds": pytest.approx(1.5)}
        mine[0] += 1.0  # accounted before the kernel's sum was: no negative time
        assert watch.edge() == {"foreign_cpu_seconds": 0.0}

    def test_a_machine_that_slept_is_noticed(self, monkeypatch):
        if not hasattr(time, "CLOCK_BOOTTIME"):
            pytest.skip("this system has no clock that goes on while it sleeps")
        now = {time.CLOCK_BOOTTIME: 100.0, time.CLOCK_MONOTONIC: 90.0}
        monkeypatch.setattr("unlearnbench.cost.probes.time.clock_gettime", now.__getitem__)
        watch = Sleep()
        now[time.CLOCK_BOOTTIME] += 60
        now[time.CLOCK_MONOTONIC] += 20
        assert watch.edge() == {"slept_seconds": 40.0}
        assert watch.edge() == {"slept_seconds": 0.0}

    def test_processes_that_nvml_cannot_see_are_not_counted_as_none(self):
        assert ForeignProcesses(SimpleNamespace(foreign=None)).edge() == {}
        assert ForeignProcesses(SimpleNamespace(foreign=3)).edge() == {"foreign_processes": 3.0}


def test_compiling_is_warmup_wherever_it_happens():
    clock = FakeClock()
    meter = Meter(clock=clock)

    def backend(graph, example_inputs):
        clock.now += 30
        return graph.forward

    compiled = torch.compile(lambda x: x * 2 + 1, backend=backend)
    with compiling_is_warmup(meter), meter.phase("forget"):
        clock.now += 1
        compiled(torch.ones(2))
        clock.now += 1
        compiled(torch.ones(2))  # not compiled again
    assert seconds(meter) == {"warmup": 30, "forget": 2}
    torch.compile(lambda x: x * 3, backend=backend)(torch.ones(2))  # not ours any more
    assert seconds(meter) == {"warmup": 30, "forget": 2}
