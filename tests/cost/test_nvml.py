"""The real monitor process, its pipes and its polls, over an NVML that the test commands through a file."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import ClassVar

import psutil
import pytest

from unlearnbench.cost import nvml as module
from unlearnbench.cost.nvml import PROBES, NvmlMonitor, Sampler, _others, _run_of

FAKE_NVML = '''
import json, os, sys, time
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
served = [0, 0]  # version of the state, polls that ended on it


class NVMLError(Exception):
    pass


class NVMLError_NotFound(NVMLError):
    pass


def state(call):
    """Return what the test wants, or fail as it wants."""
    wanted = json.loads((HERE / "state.json").read_text())
    if words := wanted["fail"].get(call):
        raise type(f"NVMLError_{words.replace(' ', '')}", (NVMLError,), {})(words)
    return wanted


def nvmlInit():
    state("init")
    (HERE / "torch").write_text(str("torch" in sys.modules))


def nvmlDeviceGetHandleByUUID(uuid):
    if uuid not in state("handle")["devices"]:
        raise NVMLError_NotFound("Not Found")
    return uuid


def nvmlDeviceGetComputeRunningProcesses(handle):
    return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in state("processes")["processes"]]


def nvmlDeviceGetMemoryInfo(handle):
    """Count the polls of each state: this is the last call of a poll."""
    version = json.loads((HERE / "state.json").read_text())["version"]
    served[:] = [version, served[1] + 1 if served[0] == version else 1]
    (HERE / "served.new").write_text(json.dumps(served))
    os.replace(HERE / "served.new", HERE / "served.json")
    wanted = state("memory")
    if wanted["say"]:
        sys.stdout.buffer.write(wanted["say"].encode("latin-1"))
        sys.stdout.buffer.flush()
    return SimpleNamespace(used=wanted["used"])
'''
ERRORS = ["Not Supported", "GPU is lost", "Insufficient Permissions", "Uninitialized", "Not Found", "Unknown Error"]
ME = os.getpid()


def wait_until(true, seconds=30):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


class FakeDevice:
    """What the fake NVML tells: processes as (pid, bytes), bytes in use, and the calls that fail, with what words."""

    def __init__(self, folder):
        self.folder = folder
        self.state = {"version": 0, "devices": ["GPU-1"], "processes": [], "used": 0, "fail": {}, "say": ""}
        (folder / "pynvml.py").write_text(FAKE_NVML)
        self.set()

    def set(self, **changes):
        """Change the state."""
        self.state = {**self.state, **changes, "version": self.state["version"] + 1}
        new = self.folder / "state.new"
        new.write_text(json.dumps(self.state))
        new.replace(self.folder / "state.json")

    def show(self, **changes):
        """Change the state and wait until a whole poll has seen it; the first that ends on it may have begun before."""
        self.set(**changes)
        served = self.folder / "served.json"
        wait_until(lambda: served.exists() and json.loads(served.read_text()) >= [self.state["version"], 2])


@pytest.fixture
def device(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return FakeDevice(tmp_path)


@pytest.fixture
def start(device):
    """Return a function that starts a monitor of the fake device, fast, and ends it with the test."""
    started = []

    def start(uuid="1", period=0.005):
        started.append(NvmlMonitor(uuid, period))
        return started[-1]

    yield start
    for monitor in started:
        monitor.close()


def child(monitor):
    return monitor._process.pid


def ended(pid):
    """True when a process is gone; where nobody collects orphans, it stays as a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_peak_between_two_edges_is_seen_and_belongs_to_that_interval_alone(device, start):
    device.set(used=1000)
    monitor = start()
    device.show(processes=[(ME, 700)], used=1700)
    device.show(processes=[(ME, 300)], used=1400)
    assert monitor.edge() == {"nvml_process": 700, "nvml_device": 700}
    assert monitor.polls > 4
    device.show(processes=[(ME, 200)], used=1250)
    assert monitor.held() == {"nvml_process": 300, "nvml_device": 400}
    assert monitor.edge() == {"nvml_process": 300, "nvml_device": 400}, "the level at an edge is in both intervals"
    assert monitor.held() == {"nvml_process": 200, "nvml_device": 250}
    assert monitor.edge() == {"nvml_process": 200, "nvml_device": 250}
    assert monitor.problems == {}


def test_an_edge_reads_for_itself(device, start):
    monitor = start(period=3600)
    device.set(processes=[(ME, 5)], used=6)
    assert monitor.edge() == {"nvml_process": 5, "nvml_device": 6}
    assert monitor.polls == 2


def test_a_process_is_summed_over_its_entries_and_told_from_others(device, start):
    device.set(processes=[(ME, 5), (1, 999), (ME, 7)])
    assert start().edge()["nvml_process"] == 12


def test_the_devices_use_never_falls_below_the_start(device, start):
    device.set(used=1000)
    monitor = start()
    device.set(used=400)  # another process left
    assert [monitor.edge()["nvml_device"] for _ in range(2)] == [0, 0]


def test_a_foreign_process_that_comes_and_goes_within_an_interval_is_seen(device, start):
    device.set(processes=[(ME, 5)])
    monitor = start()
    monitor.edge()
    assert monitor.foreign == 0
    device.show(processes=[(ME, 5), (1, 9), (1, 9), (2, None)])
    device.show(processes=[(ME, 5)])
    monitor.edge()
    assert monitor.foreign == 2
    monitor.edge()
    assert monitor.foreign == 0


@pytest.mark.parametrize(("pids", "foreign"), [([], None), ([1], 0), ([1, 2, 3], 2)])
def test_a_container_hides_this_process_but_not_the_devices_use(device, start, pids, foreign):
    device.set(used=100)
    monitor = start()
    device.show(processes=[(pid, 10) for pid in pids], used=150)
    assert monitor.edge() == {"nvml_device": 50}
    monitor.edge()
    assert monitor.foreign == foreign
    assert "does not list this process" in monitor.problems["nvml_process"]


@pytest.mark.parametrize("told", [None, 0])
def test_a_driver_may_not_tell_the_memory_of_a_process(device, start, told):
    device.set(processes=[(ME, told), (1, 10)])
    monitor = start()
    assert monitor.edge() == {"nvml_device": 0}
    assert monitor.problems == {"nvml_process": "the driver does not report memory per process"}
    assert monitor.foreign == 1


@pytest.mark.parametrize(
    ("asked", "known"), [("1", "GPU-1"), ("GPU-1", "GPU-1"), ("1", "MIG-1"), ("MIG-1", "MIG-1"), ("GPU-1/2", "GPU-1/2")]
)
def test_a_device_is_found_with_or_without_the_prefix_of_its_uuid(device, start, asked, known):
    device.set(devices=[known])
    assert start(asked).edge() == {"nvml_device": 0}


@pytest.mark.parametrize("words", ERRORS)
@pytest.mark.parametrize("call", ["init", "handle"])
def test_nvml_that_cannot_start_is_said_and_survived(device, start, call, words):
    device.set(fail={call: words})
    monitor = start()
    for _ in range(2):
        assert monitor.edge() == {}
        assert monitor.foreign is None
        assert monitor.problems.keys() == set(PROBES)
        assert all(words in problem for problem in monitor.problems.values())


@pytest.mark.parametrize("words", ERRORS)
@pytest.mark.parametrize(("call", "lost"), [("processes", "nvml_process"), ("memory", "nvml_device")])
def test_nvml_that_fails_at_an_edge_loses_the_probe_until_it_works_again(device, start, call, lost, words):
    device.set(processes=[(ME, 5)])
    monitor = start()
    device.set(fail={call: words})
    assert monitor.edge().keys() == monitor.held().keys() == set(PROBES) - {lost}
    assert words in monitor.problems[lost]
    device.show(fail={})
    assert monitor.edge().keys() == set(PROBES)
    assert monitor.problems == {}


def test_a_poll_that_fails_between_edges_is_a_poll_missed(device, start):
    device.set(processes=[(ME, 5)])
    monitor = start()
    device.show(processes=[(ME, 900)], used=900)
    device.show(fail={"processes": "Unknown Error", "memory": "Unknown Error"})
    device.show(processes=[(ME, 8)], used=8, fail={})
    assert monitor.edge() == {"nvml_process": 900, "nvml_device": 900}


def test_without_a_reading_at_the_start_there_is_no_difference_to_it(device, start):
    device.set(fail={"memory": "Unknown Error"})
    monitor = start()
    device.set(fail={}, used=700)
    assert "nvml_device" not in monitor.edge()
    assert "when the monitor started" in monitor.problems["nvml_device"]


def assert_given_up(monitor, words):
    """Assert that the monitor says why it has no peaks, now and later."""
    for _ in range(2):
        assert monitor.edge() == monitor.held() == {}
        assert (monitor.foreign, monitor.polls) == (None, 0)
        assert monitor.problems.keys() == set(PROBES)
        assert all(words in problem for problem in monitor.problems.values()), monitor.problems


def test_a_killed_monitor_is_said_and_survived(device, start):
    device.set(processes=[(ME, 5), (1, 5)])
    monitor = start()
    monitor.edge()
    os.kill(child(monitor), signal.SIGKILL)
    assert_given_up(monitor, "died")


@pytest.mark.parametrize("said", ["", '{"peaks"'])  # half a line is no answer either
def test_a_monitor_that_hangs_is_given_up_in_time(device, start, monkeypatch, said):
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.5)
    monitor = start()
    pid = child(monitor)
    device.show(say=said)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert_given_up(monitor, "no answer for 0.5 seconds")
    assert time.monotonic() - began < 20
    assert ended(pid)


@pytest.mark.parametrize("text", ["good morning\n", "[]\n", "{}\n", '{"peaks": {"nvml_device": null}}\n', "\xff\n"])
def test_nonsense_is_said_and_survived(device, start, text):
    monitor = start()
    device.show(say=text)
    assert_given_up(monitor, f"invalid reply: {text.strip()}".replace("\xff", "\N{REPLACEMENT CHARACTER}"))


def test_a_monitor_that_cannot_be_started_is_said_and_survived(device, start, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(device.folder / "nothing"))
    assert_given_up(start(), "did not start")


def test_closing_ends_the_process_and_keeps_what_was_said(device):
    with NvmlMonitor("2") as monitor:
        pid = child(monitor)
    assert ended(pid)
    assert all("Not Found" in problem for problem in monitor.problems.values())
    monitor.close()
    assert_given_up(monitor, "closed")


@pytest.mark.parametrize("uuid", ["1", "2"])  # one that is found, one that is not
def test_the_monitor_ends_when_its_cell_is_killed(device, uuid):
    code = f"""
import time
from unlearnbench.cost.nvml import NvmlMonitor
monitor = NvmlMonitor({uuid!r})
print(monitor._process.pid, flush=True)
time.sleep(600)
"""
    cell = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(cell.stdout.readline())
    assert not ended(pid)
    cell.kill()
    cell.communicate()
    wait_until(lambda: ended(pid))


def test_control_c_is_for_the_cell_to_hear(device, start):
    monitor = start()
    os.kill(child(monitor), signal.SIGINT)
    device.show(used=3)
    assert monitor.edge()["nvml_device"] == 3


def test_a_folder_of_the_same_name_where_the_user_stands_is_not_taken(device, start, monkeypatch):
    shadow = device.folder / "here" / "unlearnbench"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(shadow.parent)
    assert "nvml_device" in start().edge()


def test_the_monitor_does_without_torch(device, start):
    start()
    assert (device.folder / "torch").read_text() == "False"


class FakeProcess:
    """A process of a tree of them: {pid: (parent, words of its command)}."""

    tree: ClassVar = {}

    def __init__(self, pid):
        if pid not in self.tree:
            raise psutil.NoSuchProcess(pid)
        self.pid = pid

    def __eq__(self, other):
        return self.pid == other.pid

    def parent(self):
        parent = self.tree[self.pid][0]
        return FakeProcess(parent) if parent in self.tree else None

    def cmdline(self):
        return self.tree[self.pid][1]

    def children(self, recursive=False):
        found = [FakeProcess(pid) for pid, (parent, _) in self.tree.items() if parent == self.pid]
        return found + [deeper for child in found for deeper in child.children(True)] if recursive else found


SERVER = ["python", "-c", "from multiprocessing.forkserver import main; main(5, 6)"]
TREE = {  # a run, its server, three guards, their jobs, and what these started
    1: (0, ["unlearnbench", "run"]), 2: (1, SERVER), 10: (2, SERVER), 11: (10, SERVER), 12: (11, ["python"]),
    20: (2, SERVER), 21: (20, SERVER), 22: (21, ["python"]), 30: (2, SERVER), 31: (30, SERVER), 99: (0, ["game"]),
}  # fmt: skip


@pytest.fixture
def tree(monkeypatch):
    """The processes of a run with three jobs, and of somebody else."""
    monkeypatch.setattr(FakeProcess, "tree", dict(TREE))
    monkeypatch.setattr(module.psutil, "Process", FakeProcess)
    return FakeProcess.tree


class TestWhoElseUsesTheDevice:
    def test_a_job_and_the_other_jobs_of_its_run(self, tree):
        assert _run_of(11) == ({11, 12}, [{20, 21, 22}, {30, 31}])

    def test_a_process_without_a_server_is_alone(self, tree):
        tree[2] = (1, ["bash"])
        assert _run_of(11) == ({11, 12}, [])
        assert _run_of(99) == ({99}, [])

    def test_one_that_is_gone_is_alone(self, tree):
        assert _run_of(77) == ({77}, [])

    @pytest.mark.parametrize(
        ("listed", "foreign", "beside"),
        [
            ({11}, 0, 0),
            ({11, 12}, 0, 0),  # what the job itself started
            ({11, 21}, 0, 1),
            ({11, 22, 31}, 0, 2),  # a program that another job started
            ({11, 21, 99}, 1, 1),
            ({11, 99}, 1, 0),
            ({11, 1}, 1, 0),  # a run computes nothing itself, so this is no cell of it
        ],
    )
    def test_cells_of_the_same_run_are_not_foreign(self, tree, listed, foreign, beside):
        assert _others(listed, 11) == (foreign, beside)

    @pytest.mark.parametrize(
        ("listed", "foreign", "beside"), [({500}, 0, 0), ({500, 501}, 0, 1), ({500, 501, 502, 503}, 1, 2)]
    )
    def test_ids_of_another_namespace_are_counted(self, tree, listed, foreign, beside):
        assert _others(listed, 11) == (foreign, beside)

    @pytest.mark.parametrize("alone", [True, False])
    def test_a_monitor_knows_whether_other_cells_have_other_devices(self, monkeypatch, alone):
        told, started = [], []
        monkeypatch.setattr(module.Monitor, "__init__", lambda self, name, *arguments: told.extend(arguments))
        monkeypatch.setattr(NvmlMonitor, "_edge", lambda self, seconds: {})
        monkeypatch.setattr(module, "Sampler", lambda *arguments: started.append(arguments))
        monkeypatch.setattr(module, "_serve", lambda sampler, period: None)
        monkeypatch.setattr(module.signal, "signal", lambda number, handler: None)
        NvmlMonitor("GPU-1", 0.5, alone=alone)
        module.main(int(told[0]), float(told[1]), *told[2:])
        assert started == [("GPU-1", ME, alone)]

    @pytest.mark.parametrize(("pids", "seen"), [([11], {"nvml_process", "nvml_device"}), ([11, 21], {"nvml_process"})])
    def test_the_devices_use_is_not_a_cells_own_while_another_cell_holds_some(self, tree, monkeypatch, pids, seen):
        processes = [SimpleNamespace(pid=pid, usedGpuMemory=5) for pid in pids]
        monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(
            NVMLError=RuntimeError, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
            nvmlDeviceGetComputeRunningProcesses=lambda handle: processes,
            nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=100),
        ))  # fmt: skip
        answer = Sampler("GPU-1", 11).edge()
        assert answer["peaks"].keys() == seen
        assert answer["peaks"]["nvml_process"] == 5
        assert answer["foreign"] == 0
        assert ("another process of this run" in answer["problems"].get("nvml_device", "")) == (len(pids) > 1)
