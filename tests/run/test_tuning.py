import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.cells import SMALL
from tests.conftest import reading
from tests.server import run_command
from unlearnbench.datasets import Source, load_dataset
from unlearnbench.errors import UsageError
from unlearnbench.plugins.space import Choices, Range
from unlearnbench.run.cluster.folder import Request
from unlearnbench.run.execution import Execution
from unlearnbench.run.plan import make_plan
from unlearnbench.run.rehearsal import _work
from unlearnbench.run.tuning import SHARE, Loop, Trial, Tuning, Work, _points, draw_trials, fitted, tuned_metrics
from unlearnbench.unlearn.context import Context, counted


class TestTheList:
    def test_it_is_as_long_for_every_method_and_the_same_every_time(self, registry):
        specs = registry.select_methods("all")
        tuning, again = (draw_trials(registry, specs, 5, 1000) for _ in range(2))
        assert tuning == again
        assert {len(trials) for trials in tuning.trials.values()} == {5}
        assert tuning.trials.keys() == {spec.name for spec in specs if spec.role == "method"}

    def test_its_points_are_those_of_a_sobol_sequence_from_the_first_on(self):
        points = _points(["", "batch", "lr"], 16)
        for size in (4, 8, 16):  # as many points as equal parts of a side: one in each
            for side in points[0]:
                assert sorted(int(point[side] * size) for point in points[:size]) == list(range(size))

    def test_a_trial_has_the_values_at_its_point(self, registry):
        spec = registry.method("esd")
        trials = draw_trials(registry, [spec], 4, 1000).trials["esd"]
        for trial, places in zip(trials, _points(sorted(["", *spec.search]), 4), strict=True):
            assert trial.settings == {name: domain.at(places[name]) for name, domain in spec.search.items()}
            assert trial.share == SHARE.at(places[""])

    def test_a_longer_one_begins_with_the_shorter(self, registry):
        specs = [registry.method("sa")]
        assert draw_trials(registry, specs, 7, 1000).trials["sa"][:3] == draw_trials(registry, specs, 3, 9).trials["sa"]

    def test_a_point_that_gives_the_same_settings_is_left_out(self, registry):
        spec = replace(registry.method("uce"), search={"preserve": Choices((True, False))})
        trials = draw_trials(registry, [spec], 6, 1000).trials["uce"]
        assert len(trials) == 2
        assert all(trial.share is None for trial in trials)  # it has no steps

    def test_without_a_space_there_is_nothing_to_draw(self, registry):
        with pytest.raises(UsageError, match="declares where its settings are searched"):
            draw_trials(registry, registry.select_methods("original"), 3, 1000)

    @pytest.mark.parametrize(
        ("domain", "ends"),
        [
            (Range(1e-5, 1e-2, True), (1e-5, 3.16e-4, 1e-2)), (Range(0.8, 0.99, False), (0.8, 0.895, 0.99)),
            (Range(1, 20, True, True), (1, 4, 20)), (Choices((16, 32, 64)), (16, 32, 64)),
        ],
    )  # fmt: skip
    def test_a_place_is_a_value(self, domain, ends):
        assert tuple(map(domain.at, (0.0, 0.5, 1.0))) == ends
        assert all(type(domain.at(place)) is type(ends[0]) for place in (0.0, 0.3, 1.0))

    def test_metrics_are_found_by_what_they_declare(self, registry):
        assert tuned_metrics(registry) == {"forgetting": "forgotten", "retention": "retained", "ties": "fid"}


class TestSpaces:
    def test_every_method_has_one_and_it_covers_what_was_tuned(self, registry):
        for spec in registry.select_methods("all"):
            if spec.role == "method":
                assert spec.search, spec.name
                assert "steps" not in spec.search
                assert set(spec.tuned.get("digits", {})) <= {*spec.search, "steps"}, spec.name
                batches = [domain for name, domain in spec.search.items() if name in ("batch", "retain_batch")]
                assert batches == [Choices((32, 64))] * len(batches)
                assert ("batch" in spec.settings) == ("batch" in spec.search)


class TestTheBudget:
    def test_a_loop_repeats_or_goes_on_at_its_mean(self):
        assert [Loop(1.0, [5, 1, 1], True).through(n) for n in (1, 2, 3, 4, 7)] == [5, 6, 7, 12, 19]
        assert [Loop(1.0, [5, 1, 3], False).through(n) for n in (1, 2, 3, 5)] == [5, 6, 9, 13]
        assert Loop(0.5, [4], True).through(6) == 12

    def test_steps_are_as_many_as_fit_into_the_share_of_what_priors_leave(self, registry):
        spec = registry.method("neggrad")
        work = Work(100, [Loop(1.0, [9], True)])
        for share, steps in ((1.0, 100), (0.5, 50), (0.001, 1)):
            trial = fit(spec, Trial(0, {"lr": 1e-5}, share), work, images=1000)
            assert (trial.settings, trial.problem) == ({"lr": 1e-5, "steps": steps}, "")

    @pytest.mark.parametrize(
        ("work", "words"),
        [
            (Work(2000, [Loop(1.0, [9], True)]), "infeasible: its priors alone take 2,009 images"),
            (Work(995, [Loop(1.0, [9], True)]), "infeasible: its priors and a single step take 1,004 images"),
            (Work(0, failure="it broke"), "it broke"),
            (Work(50), "no image goes through the model in a step"),
        ],
    )
    def test_a_trial_that_cannot_fit_says_so(self, registry, work, words):
        trial = fit(registry.method("neggrad"), Trial(0, {}, 1.0), work, images=1000)
        assert trial.problem.startswith(words)
        assert trial.settings == {"steps": 1}

    @pytest.mark.parametrize("method", ["erasediff", "sa", "sfron"])
    def test_a_rehearsal_counts_what_a_run_counts(self, registry, make_harness, method):
        spec = registry.method(method)
        small = {**SMALL, "batch": 128 if method == "sfron" else 4}  # which goes through all images
        settings = {name: value for name, value in small.items() if name in spec.settings and name != "steps"}
        work = _work(spec, make_harness(method), settings)
        assert not work.failure
        for steps in (1, 5):
            harness = make_harness(method)
            context = Context(harness)
            with counted(harness, context), harness.meter.phase("forget"):
                spec.function(context, **spec.resolve((), {**settings, "steps": steps}))
            assert work.images(steps) == harness.counts.forward_images + harness.counts.backward_images

    def test_a_loop_that_the_method_leaves_is_one_round(self, registry, make_harness):
        def leaves(ctx, *, steps):
            for step in ctx.steps(steps):
                if step == 2:
                    break
                x0, y = ctx.forget.draw(4 - step)
                ctx.eps_loss(x0, y).backward()

        spec = replace(
            registry.method("neggrad"),
            function=leaves,
            settings={"steps": registry.method("neggrad").settings["steps"]},
        )
        work = _work(spec, make_harness("neggrad"), {})
        assert (work.fixed, work.loops) == (0, [Loop(1.0, [8, 6], True)])

    def test_a_method_that_breaks_has_a_reason(self, registry, make_harness):
        spec = replace(registry.method("neggrad"), function=lambda ctx, **settings: 1 / 0)
        assert "ZeroDivisionError" in _work(spec, make_harness("neggrad"), {}).failure


def fit(spec, trial, work, images):
    tuning = Tuning(images, 1, {spec.name: [trial]}, {})
    return fitted(tuning, {spec.name: [work]}, {spec.name: spec}).trials[spec.name][0]


class TestTracks:
    @pytest.fixture
    def planned(self, registry):
        def plan(track, sweeps=(), dataset="digits"):
            given = {"classes": "3", "source": Source(dataset), "metrics": "ua", "controls": "none"}
            made = make_plan(registry, methods="original,esd", sweeps=sweeps, track=track, **given)
            return {made.label(cell): (cell, made.tracks.get(cell.id)) for cell in made.cells}

        return plan

    def test_tuned_values_are_the_usual_ones(self, planned, registry):
        found = planned("tuned")
        assert {label: track for label, (_, track) in found.items()} == {"Original": None, "ESD": "tuned"}
        assert found["ESD"][0].settings == registry.method("esd").resolve(("digits",), {})

    def test_published_ones_are_those_of_the_signature(self, planned, registry):
        cell, track = planned("published")["ESD (as published)"]
        assert (dict(cell.settings), track) == (registry.method("esd").defaults, "published")

    def test_both_make_two_rows(self, planned):
        assert [(label, track) for label, (_, track) in planned("both").items()] == [
            ("Original", None), ("ESD", "tuned"), ("ESD (as published)", "published")
        ]  # fmt: skip

    def test_a_changed_setting_belongs_to_neither(self, planned):
        assert planned("tuned", ["esd.eta=2"])["ESD, eta=2.0"][1] is None

    def test_without_tuned_values_there_is_one_track(self, planned):
        assert planned("both", dataset="stl10").keys() == {"Original", "ESD"}


def test_a_job_of_a_cluster_plans_the_same_trials(registry):
    tuning = draw_trials(registry, [registry.method("esd")], 3, 1000)
    asked = {"methods": "esd", "classes": "2,5", "metrics": "ua", "sweeps": [], "seeds": "1000", "controls": "none"}
    request = Request({**asked, "trials": tuning.to_run()}, Source(), Execution(Path("cache")), Path())
    sent = msgspec.json.decode(msgspec.json.encode(request, enc_hook=str), type=Request, dec_hook=lambda k, v: k(v))
    plans = [make_plan(registry, source=Source(), **each.asked) for each in (request, sent)]
    assert [cell.id for cell in plans[0].cells] == [cell.id for cell in plans[1].cells]
    assert plans[0].trials == plans[1].trials
    assert len(plans[0].trials) == 6
    for cell in plans[0].cells:  # what is not searched is as published, whatever was tuned before
        assert cell.settings["clip"] == registry.method("esd").defaults["clip"]
        assert cell.settings["steps"] == registry.method("esd").defaults["steps"]  # until the budget is known


def test_digits_declares_its_classes_and_records_have_them():
    assert load_dataset("digits").to_json()["tuning_classes"] == [2, 5, 8]
    assert "tuning_classes" not in load_dataset("cifar10").to_json()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, cache):
    """A folder in which two methods were tuned, one of them with a budget that is too small for a trial."""
    folder = tmp_path_factory.mktemp("tuned")
    asked = ("tune", "--methods", "neggrad,sfron", "--trials", "2", "--images", "700", "--classes", "2")
    return folder, asked, run_command(folder, *asked)


class TestTheCommand:
    def test_every_trial_is_a_record_with_seeds_of_its_own(self, tuned):
        folder, _, (status, output) = tuned
        assert status == 0, output
        records = reading(folder / "results" / "tuning").records
        assert {record.cell.seeds for record in records} == {(1000, 1000, 1000)}
        assert {(r.cell.method, r.tuning["trial"], r.status) for r in records} == {
            ("neggrad", 0, "ok"), ("neggrad", 1, "ok"), ("sfron", 0, "failed"), ("sfron", 1, "failed"),
        }  # fmt: skip
        for record in records:
            assert set(record.metrics) == ({"forgotten", "retained", "fid"} if record.status == "ok" else set())
            if record.status == "ok":
                assert 0 < record.counts["forward_images"] + record.counts["backward_images"] <= 700

    def test_its_report_says_what_to_write(self, tuned):
        folder, _, (_, output) = tuned
        place = folder / "reports" / "tuning" / "digits"
        page = (place / "tuning.md").read_text()
        assert (place / "figures" / "tuning.png").read_bytes().startswith(b"\x89PNG")
        assert re.search(r'# neggrad: tuned=\{"digits": \{"batch": \d+, "lr": \S+, "steps": \d+\}\}', page)
        assert "# sfron: no trial counts" in page
        assert "infeasible: its priors alone take" in page
        assert "# neggrad: tuned=" in output

    def test_the_same_command_measures_nothing_again(self, tuned):
        folder, asked, _ = tuned
        file = folder / "results" / "tuning" / "digits" / "neggrad.jsonl"
        other = folder / "results" / "tuning" / "digits" / "sfron.jsonl"
        before = file.read_bytes(), other.read_bytes()
        status, output = run_command(folder, *asked)
        assert status == 0
        assert "2 of 2 cells are recorded" in output
        assert (file.read_bytes(), other.read_bytes()) == before

    def test_a_dry_run_writes_nothing(self, tuned, tmp_path):
        _, asked, _ = tuned
        status, output = run_command(tmp_path, *asked, "--dry-run")
        assert status == 0
        assert "sfron, trial 0: infeasible" in output
        assert "to measure: 2" in output
        assert not list(tmp_path.iterdir())

    def test_a_dataset_without_classes_asks_for_them(self, tmp_path, cache):
        status, output = run_command(tmp_path, "tune", "--dataset", "stl10")
        assert status == 2
        assert "name some with --classes" in output
