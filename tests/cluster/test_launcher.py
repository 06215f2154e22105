"""The launcher of a cluster, with an engine that plays what jobs and a scheduler can do to it."""

import io
import itertools
import re
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.cells import tiny_dataset
from unlearnbench.datasets import Source
from unlearnbench.errors import UsageError
from unlearnbench.plugins.registry import Registry
from unlearnbench.run.benchmark import Benchmark
from unlearnbench.run.cluster import launcher as module
from unlearnbench.run.cluster import standing
from unlearnbench.run.cluster.config import ClusterConfig
from unlearnbench.run.cluster.engine import Queued
from unlearnbench.run.cluster.folder import PREPARE, Journal, PartStore, Request, RunFolder, find_run, runs, write_json
from unlearnbench.run.cluster.launcher import ClusterLauncher
from unlearnbench.run.cluster.packing import kind_of, packed
from unlearnbench.run.execution import Execution
from unlearnbench.run.plan import make_plan
from unlearnbench.run.recording import Recorder
from unlearnbench.run.workers import Outcome
from unlearnbench.store.records import ResultStore

DEVICE = {"type": "cuda", "name": "NVIDIA H100", "uuid": "GPU-1", "driver": "570"}
DONE = {"done": ()}  # a job that does all its cells


class Play:
    """An engine whose jobs do at once what a play says: {part: [what its first job does, ...]}.

    What a job does: `after`, the number of cells that it finishes first; `begins`, how many more it begins; `word`, the
    scheduler's on its end; `refused`, its reason; `silent`, if it never wrote a word. All its cells by default.
    """

    def __init__(self, run, plan, play):
        self.run, self.plan, self.play = run, plan, {part: list(jobs) for part, jobs in play.items()}
        self.words, self.ids, self.there = {}, itertools.count(1), {}

    def submit(self, parts, options, after=""):
        jobs = {part: str(next(self.ids)) for part in parts}
        self.run.note_jobs(jobs)
        for part, job in jobs.items():
            acts = self.play.get(part, [])
            self.act(part, job, **(acts.pop(0) if acts else {}))
        return jobs

    def act(self, part, job, after=None, begins=0, word="COMPLETED", refused="", silent=False, skips=(), told=False):
        self.words[job] = word
        if silent:
            return
        attempt = self.run.path / part / f"{job}.0"
        journal = Journal(attempt)
        journal.write("start", node=f"n{job}", job=job)
        journal.write("device", identity=DEVICE)
        if refused:
            journal.write("refused", reason=refused)
        elif part == PREPARE:
            write_json(self.run.path / "prepared.json", {"identity": DEVICE})
        else:
            left = [name for name in self.run.parts[part] if name not in self.run.finished(part)]
            for name in [left[k] for k in skips]:
                journal.write("skip", cell=name)
                left.remove(name)
            self.work(part, journal, attempt, left, len(left) if after is None else after, begins)
            if told:
                journal.write("stop", signal=signal.SIGUSR2)

    def work(self, part, journal, attempt, left, after, begins):
        cells, recorder = {cell.id: cell for cell in self.plan.cells}, Recorder(self.plan, {"node": "n"})
        hashes = self.plan.source_hashes
        declared = {spec.name: spec.declaration(hashes[f"metric:{spec.name}"]) for spec in self.plan.metrics}
        metrics = {name: {**entry, "value": 1.0, "n": 1} for name, entry in declared.items()}
        for name in left[: after + begins]:
            journal.write("begin", cell=name)
            if name in left[:after]:
                outcome = Outcome("ok", {"metrics": metrics, "wall_seconds": 2.0})
                record = recorder.record(cells[name], outcome, DEVICE, started="2026-01-01T00:00:00Z", seconds=2.0)
                PartStore(self.run, part, attempt).append(record)
                journal.write("end", cell=name)
        if after == len(left):
            journal.write("done", signal=None)

    def queue(self):
        return dict(self.there)

    def ending(self, job):
        return self.words.get(job, "")

    def cancel(self, jobs):
        self.cancelled = list(jobs)


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Return a function that plays a run of six cells in two parts, and returns what became of it."""
    monkeypatch.setattr(module, "READ_SECONDS", 0.0)
    monkeypatch.setattr(module, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(module, "ASK_SECONDS", (0.0, 0.0))

    def launch(play=None, *, classes="0-5", retries=2, workers=2, engine=None, attach=None, detach=False):
        asked = {"methods": "original", "classes": classes, "metrics": "ua", "sweeps": [], "controls": "none"}
        plan = make_plan(Registry(), source=Source(), **asked)
        plan = replace(plan, dataset=tiny_dataset())
        execution = Execution(tmp_path / "cache")
        store, said = ResultStore(tmp_path / "results"), io.StringIO()
        config = ClusterConfig(workers, retries=retries, slurm={"time": 10})
        request = Request(asked, Source(), execution, tmp_path)
        made = [engine] if engine else []

        def engine_of(run):
            made.extend([] if any(one.run.name == run.name for one in made) else [Play(run, plan, play or {})])
            return next(one for one in made if one.run.name == run.name)

        monkeypatch.setattr(module, "engine_of", engine_of)
        monkeypatch.setattr(standing, "engine_of", engine_of)
        ours = ClusterLauncher(plan, store, request, config, attach, detach=detach)
        summary = Benchmark(plan, ours, store, Console(file=said, width=200), execution).run()
        records = {record.cell.forget_class: record for record in store.read().records}
        return SimpleNamespace(
            summary=summary, records=records, said=said.getvalue(), run=ours.run_folder, problems=ours.problems,
            engine=made[-1] if made else None, lines=list((tmp_path / "results").glob("*/*.jsonl")),
            status={number: record.status for number, record in sorted(records.items())},
        )  # fmt: skip

    return launch


def test_every_cell_is_gathered_once_and_the_run_is_over(launch):
    found = launch()
    assert found.status == dict.fromkeys(range(6), "ok")
    assert sum(len(path.read_bytes().splitlines()) for path in found.lines) == 6
    assert found.summary.ran == 6
    assert found.run.is_closed
    assert launch().run is None  # nothing is left to submit
    assert re.search(r"original forgets 0 on n2: ok \(UA 1.0%\) in 2s", found.said)


@pytest.mark.parametrize(
    ("word", "after", "status"),
    [
        ("OUT_OF_MEMORY", 0, "oom"), ("OUT_OF_MEMORY", 1, "oom"), ("TIMEOUT", 0, "timeout"), ("TIMEOUT", 1, "ok"),
        ("NODE_FAIL", 1, "ok"), ("PREEMPTED", 0, "ok"), ("BOOT_FAIL", 0, "ok"), ("FAILED", 1, "ok"), ("", 1, "ok"),
    ],
)  # fmt: skip
def test_the_word_on_a_job_that_vanished_decides_on_its_running_cell(launch, word, after, status):
    found = launch({"part-0": [{"after": after, "begins": 1, "word": word}]})
    running = (0, 2, 4)[after]
    assert found.status == {**dict.fromkeys(range(6), "ok"), running: status}
    assert found.problems == []
    assert len(found.engine.run.jobs()["part-0"]) == 2  # the rest was submitted again
    if status != "ok":
        assert "on n2" in found.records[running].reason
        assert found.records[running].provenance["device"]["name"] == "NVIDIA H100"
        assert found.summary.failed == [found.records[running]]


@pytest.mark.parametrize(("after", "times", "status"), [(0, 2, "ok"), (0, 3, "timeout"), (1, 2, "ok")])
def test_a_cell_that_no_job_has_time_for_is_a_timeout(launch, after, times, status):
    told = {"begins": 1, "told": True}
    found = launch({"part-0": [{"after": after, **told}, *[{"after": 0, **told}] * (times - 1)]})
    assert found.status == {**dict.fromkeys(range(6), "ok"), (0, 2)[after]: status}


def test_a_cell_that_was_measured_before_its_job_died_keeps_its_record(launch, monkeypatch):
    monkeypatch.setattr(Journal, "write", lambda self, what, write=Journal.write, **facts: (
        None if what == "end" and "c0-" in facts["cell"] else write(self, what, **facts)  # it died in an attack
    ))  # fmt: skip
    found = launch({"part-0": [{"after": 1, "word": "OUT_OF_MEMORY"}] * 3})
    assert found.records[0].status == "ok"


def test_cells_that_a_job_finds_recorded_are_done(launch):
    found = launch({"part-0": [{"skips": [0, 2]}]})
    assert found.status == {1: "ok", 2: "ok", 3: "ok", 5: "ok"}
    assert "2 cells of part-0 are recorded already" in found.said
    assert "[4/4]" in found.said
    assert len(found.run.finished("part-0")) == 3
    assert found.problems == []


def test_of_several_cells_at_once_nobody_is_to_blame(launch):
    found = launch({"part-0": [{"after": 0, "begins": 2, "word": "OUT_OF_MEMORY"}]})
    assert set(found.status.values()) == {"ok"}


@pytest.mark.parametrize("word", ["CANCELLED", "CANCELLED by 1000"])
def test_a_cancelled_job_stays_so(launch, word):
    found = launch({"part-1": [{"after": 1, "begins": 1, "word": word}]})
    assert found.status == {0: "ok", 1: "ok", 2: "ok", 3: "interrupted", 4: "ok"}
    assert f"job 3 ended ({word})" in found.records[3].reason
    assert len(found.problems) == 1
    assert "and 1 more: job 3 ended (CANCELLED" in found.problems[0]
    assert found.run.is_closed
    assert set(launch().status.values()) == {"ok"}  # the same command measures the rest


@pytest.mark.parametrize("retries", [0, 2])
def test_retries_are_bounded_for_a_cell(launch, retries):
    dies = {"after": 0, "begins": 1, "word": "NODE_FAIL"}
    found = launch({"part-0": [dies] * 9}, retries=retries)
    assert len(found.engine.run.jobs()["part-0"]) == retries + 1
    assert {1, 3, 5} <= found.status.keys()
    assert len(found.problems) == 1


@pytest.mark.parametrize("retries", [0, 2])
def test_retries_are_bounded_for_jobs_that_never_start(launch, retries):
    found = launch({"part-0": [{"silent": True, "word": "FAILED"}] * 9}, retries=retries)
    assert len(found.engine.run.jobs()["part-0"]) == retries + 1
    assert "FAILED" in found.problems[0]


def test_progress_renews_the_retries_of_a_job(launch):
    found = launch({"part-0": [{"after": 1, "word": "FAILED"}] * 3}, retries=0)
    assert set(found.status.values()) == {"ok"}


def test_what_a_job_refuses_is_said_and_not_tried_again(launch):
    found = launch({"part-0": [{"refused": "this node has another GPU"}]})
    assert found.status == {1: "ok", 3: "ok", 5: "ok"}
    assert "this node has another GPU" in found.problems[0]
    assert len(found.engine.run.jobs()["part-0"]) == 1


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ({"refused": "the base model diverged"}, "the run cannot start: the base model diverged"),
        ({"silent": True, "word": "FAILED"}, r"job 1, which prepares it, ended early \(FAILED\); logs: "),
        ({"silent": True, "word": ""}, "the scheduler does not say why"),
    ],
)
def test_a_run_that_cannot_be_prepared_is_cancelled(launch, act, reason):
    play = {PREPARE: [act], "part-0": [{"silent": True}], "part-1": [{"silent": True}]}
    with pytest.raises(UsageError, match=reason):
        launch(play)


def test_of_a_run_by_hand_a_refusal_to_prepare_is_said(launch, monkeypatch):
    first = launch({PREPARE: [{"refused": "no such device"}], "part-0": [{"silent": True}]}, detach=True)
    monkeypatch.setattr(RunFolder, "is_by_hand", True)
    monkeypatch.setattr(Play, "queue", lambda self: None)
    with pytest.raises(UsageError, match="the run cannot start: no such device"):
        launch(attach=RunFolder(first.run.path), engine=first.engine)
    assert not first.run.is_closed  # the user may submit it again


def test_a_scheduler_that_does_not_answer_decides_nothing(launch, monkeypatch):
    answers = itertools.chain([None] * 50, itertools.repeat({}))
    monkeypatch.setattr(Play, "queue", lambda self: next(answers))
    found = launch({"part-0": [{"after": 0, "begins": 1, "word": "NODE_FAIL"}]})
    assert set(found.status.values()) == {"ok"}


def test_ctrl_c_detaches_and_attaching_gathers_the_rest_once(launch, monkeypatch):
    stops = iter([KeyboardInterrupt, None])

    def queue(self):
        if (stop := next(stops, None)) is not None:
            raise stop
        return {}

    monkeypatch.setattr(Play, "queue", queue)
    first = launch({"part-1": [{"after": 1, "begins": 1, "word": "NODE_FAIL"}]})
    assert first.summary.interrupted
    assert not first.run.is_closed
    assert len(first.status) == 4
    second = launch(attach=RunFolder(first.run.path), engine=first.engine)
    assert second.status == dict.fromkeys(range(6), "ok")
    assert sum(len(path.read_bytes().splitlines()) for path in second.lines) == 6
    assert second.summary.ran == 2


def test_what_nobody_watches_is_gathered_before_more_is_submitted(launch):
    first = launch(detach=True)
    assert first.status == {}  # all has been measured, and nothing gathered
    again = launch()
    assert again.status == dict.fromkeys(range(6), "ok")
    assert again.run is None
    assert "6 records of run" in again.said
    assert RunFolder(first.run.path).is_closed


def test_while_the_scheduler_does_not_answer_all_cells_of_a_run_are_under_way(launch, monkeypatch):
    monkeypatch.setattr(Play, "queue", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    first = launch({"part-0": [{"silent": True}], "part-1": [{"silent": True}]})
    monkeypatch.setattr(Play, "queue", lambda self: None)
    found = launch(engine=first.engine)
    assert f"6 cells are under way in run {first.run.name}" in found.said
    assert found.run is None


def test_a_resubmission_that_is_refused_is_tried_again(launch, monkeypatch):
    submit, refusals = Play.submit, iter([None, None, UsageError("Slurm did not take the jobs: controller is down")])

    def sometimes(self, parts, options, after=""):
        if (error := next(refusals, None)) is not None:
            raise error
        return submit(self, parts, options, after)

    monkeypatch.setattr(Play, "submit", sometimes)
    found = launch({"part-0": [{"after": 1, "word": "NODE_FAIL"}]}, retries=0)
    assert "cannot be submitted again now: Slurm did not take the jobs" in found.said
    assert set(found.status.values()) == {"ok"}


def test_torn_lines_of_killed_launchers_and_jobs_are_passed_over(launch):
    run = launch().run
    with (run.path / "jobs.jsonl").open("ab") as file:
        file.write(b'{"part": "pa')
    run.note_jobs({"part-0": "77"})
    assert run.jobs()["part-0"] == ["2", "77"]
    (run.path / "jobs.jsonl").write_bytes(b"\0\0\n7\n")
    assert run.jobs() == {}


def test_one_process_at_a_time_watches_a_run(launch, tmp_path):
    found = launch()
    with standing.watching(found.run), pytest.raises(UsageError, match="another process watches run"):
        launch(attach=found.run, engine=found.engine)


def test_cells_under_way_in_another_run_are_left_to_it(launch, monkeypatch):
    monkeypatch.setattr(Play, "queue", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    first = launch({"part-0": [{"silent": True}], "part-1": [{"silent": True}]})
    monkeypatch.setattr(Play, "queue", lambda self: dict(self.there))
    first.engine.there = {"2": Queued("PENDING", "Resources", "")}  # part-0 waits, part-1 has gone
    found = launch(engine=first.engine)
    assert f"3 cells are under way in run {first.run.name}" in found.said
    assert sorted(len(run.parts["part-0"]) for run in runs(first.run.results)) == [2, 3]


def test_a_run_is_found_by_its_name_or_as_the_newest(launch, tmp_path):
    first = launch(classes="0").run
    second = launch(classes="1").run
    assert find_run(tmp_path / "results").name == second.name
    assert find_run(tmp_path / "results", first.name).name == first.name
    with pytest.raises(UsageError, match=f"there is no run x in .*: there are {second.name}, {first.name}"):
        find_run(tmp_path / "results", "x")
    with pytest.raises(UsageError, match="there is no run on a cluster in"):
        find_run(tmp_path)


def test_no_trace_of_jobs_that_were_refused(launch, monkeypatch, tmp_path):
    def refuse(self, parts, options, after=""):
        raise UsageError("Slurm did not take the jobs: Invalid qos")

    monkeypatch.setattr(Play, "submit", refuse)
    with pytest.raises(UsageError, match="Invalid qos"):
        launch()
    assert runs(tmp_path / "results") == []


def cells(methods, classes="0-9", **more):
    return make_plan(
        Registry(), source=Source(), methods=methods, classes=classes, metrics="ua", sweeps=[], controls="none", **more
    ).cells


class TestPacking:
    def test_unknown_times_give_each_worker_its_share_of_every_method(self):
        parts = packed(cells("original,salun"), {}, 5, minutes=1.0)
        assert [[cell.method for cell in part] for part in parts] == [["original"] * 2 + ["salun"] * 2] * 5

    def test_known_times_even_out_and_fill_jobs_of_these_minutes(self):
        chosen = cells("original,salun")
        seconds = {kind_of(cell): 10.0 if cell.method == "original" else 110.0 for cell in chosen}
        loads = [sum(seconds[kind_of(cell)] for cell in part) for part in packed(chosen, seconds, 2, minutes=4.0)]
        assert loads == [240.0] * 5
        assert [len(part) for part in packed(chosen, seconds, 2, minutes=None)] == [10, 10]

    def test_steps_of_a_sequence_stay_together(self):
        chosen = cells("original,salun", "", sequence="0,1,2")
        parts = packed(chosen, {}, 4, None)
        assert [[cell.method for cell in part] for part in parts] == [["original"] * 3, ["salun"] * 3]

    def test_no_part_is_empty(self):
        assert [len(part) for part in packed(cells("original", "0,1"), {}, 64, 1.0)] == [1, 1]
