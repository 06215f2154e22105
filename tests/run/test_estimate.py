"""An estimate: a few pieces tell of all, nothing is written, and what was extrapolated is marked."""

import io
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from tests.conftest import cifar_weights, fake_record
from unlearnbench import method
from unlearnbench.cli import commands as cli
from unlearnbench.cli.estimate import disk_bytes, lines, preparation_seconds, published, row_seconds, total_seconds
from unlearnbench.cost.meter import Meter
from unlearnbench.datasets import Source, imagefolder, load_dataset
from unlearnbench.datasets.recipes import GivenJudge
from unlearnbench.errors import UsageError
from unlearnbench.models.diffusion import predict_noise
from unlearnbench.plugins.registry import Registry
from unlearnbench.report.data.published import load_source
from unlearnbench.run import pilot, trial
from unlearnbench.run.at_hand import Missing
from unlearnbench.run.estimate import (
    AROUND,
    Making,
    MethodCost,
    Outlook,
    Preparation,
    Prior,
    Rate,
    Row,
    Surroundings,
    Unknown,
    draws,
    estimate,
    recorded,
)
from unlearnbench.run.execution import Execution
from unlearnbench.run.plan import make_plan
from unlearnbench.run.trial import NotKnown, Trial, TrialClock, TrialStore
from unlearnbench.run.unlearning import unlearn
from unlearnbench.run.workers import Workers
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cell import Cell
from unlearnbench.store.hashing import file_digest
from unlearnbench.store.records import ResultStore, device_model
from unlearnbench.unlearn.context import Context

CPU = torch.device("cpu")
SILENT = lambda what, done, total: None  # noqa: E731


class World:
    """A clock that work moves on, and an account of that work."""

    def __init__(self):
        self.now, self.done = 0.0, 0
        self.clock = TrialClock(CPU, lambda: self.now)

    def pieces(self, n, costs):
        """Yield n numbers; piece k takes costs(k) seconds, and does ten times as much work as that."""
        for k in range(n):
            self.now += costs(k)
            self.done += round(10 * costs(k))
            yield k

    def run(self, n, costs, total=None):
        """Do pieces in brief; return how many were done, and what the clock says of all."""
        few = self.clock.few(self.pieces(n, costs), n if total is None else total, lambda: (self.done,))
        return len(list(few)), self.clock()


class TestClock:
    def test_like_pieces_tell_of_all(self):
        world = World()
        count, seconds = world.run(1000, lambda k: 0.5)
        assert (count, seconds) == (4, pytest.approx(500))
        assert world.clock.reckoned and world.clock.rate.seconds == pytest.approx(0.5)
        assert world.clock.rate.pieces == 1000

    def test_what_first_use_takes_is_counted_once(self):
        world = World()

        def pieces():
            for k in range(100):
                world.now += 0.5 if k else 6.5
                world.done += 5
                yield k

        assert len(list(world.clock.few(pieces(), 100, lambda: (world.done,)))) == 4
        assert world.clock() == pytest.approx(6.5 + 99 * 0.5)

    def test_few_pieces_are_all_done_and_nothing_is_extrapolated(self):
        world = World()
        assert world.run(3, lambda k: 5.0) == (3, 15.0)
        assert not world.clock.reckoned
        assert world.run(0, lambda k: 5.0) == (0, 15.0)

    def test_a_fraction_of_a_piece(self):
        count, seconds = World().run(9, lambda k: 1.0, total=8.25)
        assert (count, seconds) == (4, pytest.approx(8.25))

    @pytest.mark.parametrize("n", [50, 250])
    def test_a_period_is_done_whole(self, n):
        costs = lambda k: 3.0 if k % 10 == 0 else 0.1  # noqa: E731
        world = World()
        count, seconds = world.run(n, costs)
        assert (count, seconds) == (11, pytest.approx(sum(map(costs, range(n)))))

    def test_what_does_not_come_again_is_not_known(self):
        with pytest.raises(NotKnown, match="none repeated it in 60 s"):
            World().run(1000, lambda k: 3.0 if k == 0 else 1.0)

    def test_pieces_within_pieces(self):
        world = World()

        def outer():
            for k in range(20):
                list(world.clock.few(world.pieces(100, lambda k: 0.5), 100, lambda: (world.done,)))
                yield k

        list(world.clock.few(outer(), 20, lambda: ()))
        assert world.clock() == pytest.approx(20 * 100 * 0.5)

    def test_what_is_rewound_took_no_time(self):
        world = World()
        world.now = 7.0
        world.clock.rewind(2.0)
        assert world.clock() == 2.0 and not world.clock.reckoned


def write_weights(path):
    save_file(cifar_weights(), path)
    return path


def blank(side):
    """Return an image as `imagefolder` reads it."""
    return np.zeros((side, side, 3), dtype=np.uint8), ()


def spec_of(function, **declared):
    return method(title="Mine", **declared)(function).__unlearnbench__


def cell_of(settings=None, name="mine"):
    return Cell("digits", "digits-ddim25", name, settings or {}, 3, 0)


@pytest.fixture
def quick(monkeypatch):
    """Let a few pieces take little time."""
    monkeypatch.setattr(trial, "ENOUGH_SECONDS", 0.1)
    monkeypatch.setattr(trial, "SAMPLE_SECONDS", 0.05)
    monkeypatch.setattr(trial, "PRIOR_SECONDS", 0.3)


@pytest.fixture
def cost_of(make_harness, tmp_path, quick):
    """Return what estimates a method on the tiny model."""

    def run(function, settings=None, streams=("forget", "retain"), labels=()):
        clock, store = TrialClock(CPU), TrialStore(tmp_path / "cache")
        harness = make_harness(streams=streams, meter=Meter(clock=clock), store=store)
        spec = spec_of(function, streams=streams)
        cost = pilot._method_cost(spec, cell_of(settings), harness, store, clock, labels)
        assert not (tmp_path / "cache").exists()
        return cost

    return run


class Nap:
    """Work that takes some time; on a busy machine longer, so it notes how long."""

    def __init__(self, seconds):
        self.seconds, self.count, self.spent = seconds, 0, 0.0

    def __call__(self):
        began = time.perf_counter()
        time.sleep(self.seconds)
        self.count, self.spent = self.count + 1, self.spent + time.perf_counter() - began

    def mean(self):
        return self.spent / self.count


def train(ctx, seconds, batch=4):
    """Take one optimiser step, and some time."""
    time.sleep(seconds)
    optimizer = torch.optim.SGD(ctx.model.parameters(), lr=1e-6)
    ctx.eps_loss(*ctx.forget.draw(batch)).backward()
    optimizer.step()


def predict(ctx, n):
    """Send n images through the model."""
    numbers = torch.zeros(n, dtype=torch.long)
    return predict_noise(ctx.model, torch.zeros(n, 1, 8, 8), numbers, numbers)


class TestMethods:
    def test_steps_of_a_known_length(self, cost_of):
        nap = Nap(0.02)

        def mine(ctx):
            time.sleep(0.1)
            for step in ctx.steps(500):
                nap()
                ctx.log(step=step)

        cost = cost_of(mine)
        assert cost.rte == pytest.approx(0.1 + 500 * nap.mean(), rel=0.2)
        assert cost.rate.step_seconds == pytest.approx(nap.mean(), rel=0.2)
        assert cost.reckoned == {"rte"} and cost.untouched
        assert (cost.prior, cost.sample, cost.priors) == (0.0, 0.0, {})
        assert nap.count < 50

    def test_seconds_are_those_of_an_optimiser_step(self, cost_of):
        def mine(ctx, *, steps: int = 40):
            for _ in ctx.steps(steps):
                train(ctx, 0.02)
                train(ctx, 0.02)

        cost = cost_of(mine, {"steps": 60})
        assert cost.rate.optimizer_steps == 2 and cost.rate.pieces == 60
        assert cost.rate.seconds == pytest.approx(2 * cost.rate.step_seconds)
        assert not cost.untouched

    def test_rounds_that_begin_with_more_work(self, cost_of):
        def mine(ctx):
            for step in ctx.steps(200):
                for _ in range(10 if step % 10 == 0 else 1):
                    train(ctx, 0.02)

        cost = cost_of(mine)
        assert cost.rate.optimizer_steps == pytest.approx(1.9)
        assert cost.rte == pytest.approx(380 * cost.rate.step_seconds, rel=0.2)

    def test_a_method_without_steps_is_run_whole(self, cost_of):
        cost = cost_of(lambda ctx: time.sleep(0.2))
        assert cost.rte == pytest.approx(0.2, rel=0.2)
        assert cost.rate is None and not cost.reckoned

    def test_samples(self, cost_of, tiny):
        many, few = (  # milliseconds, which a busy machine only lengthens
            min(cost_of(lambda ctx: None, labels=[0] * n).sample for _ in range(3)) for n in (100, 5)
        )
        assert many == pytest.approx(20 * few, rel=0.8)


class TestPriors:
    def test_batches_of_an_epoch(self, cost_of):
        nap = Nap(0.05)

        def build(ctx, *, batch):
            for _, _ in ctx.forget.epoch(batch):
                nap()
            return {"x": torch.zeros(3)}

        def mine(ctx):
            assert ctx.prior("mask", build, batch=4)["x"].shape == (3,)

        cost = cost_of(mine)
        batches = int(np.sum(load_dataset("digits").load(None, None).train.labels == 3)) / 4
        assert cost.prior == pytest.approx(nap.mean() * batches, rel=0.2)
        assert cost.reckoned == {"prior"} and nap.count < batches / 2
        assert (cost.priors["mask"].shared, cost.priors["mask"].cached, cost.priors["mask"].size) == (False, False, 12)

    def test_replayed_images_are_sampled_in_part_and_there_in_full(self, cost_of):
        seen = []

        def build(ctx):
            return {"x0": ctx.sample(torch.arange(300) % 10)}

        def mine(ctx):
            seen.append(ctx.prior("replay", build, shared=True)["x0"])

        cost = cost_of(mine)
        assert {tuple(images.shape) for images in seen} == {(300, 1, 8, 8)}
        assert len(torch.unique(seen[0], dim=0)) <= 5  # as many as a batch of the tiny protocol
        assert cost.prior > 0 and cost.reckoned == {"prior"} and cost.priors["replay"].shared

    def test_a_loop_over_images_is_measured_with_few_of_them(self, cost_of):
        nap = Nap(0.05)

        def build(ctx, *, images, factor):
            for _ in range(images):
                predict(ctx, factor)
                nap()
            return {"x": torch.zeros(1)}

        def mine(ctx):
            ctx.prior("fisher", build, images=400, factor=2)

        cost = cost_of(mine)
        assert nap.mean() * 360 <= cost.prior <= nap.mean() * 800  # what it predicts takes some time too
        assert cost.reckoned == {"prior"} and nap.count < 40

    def test_what_grows_unevenly_is_not_known(self, cost_of):
        def build(ctx, *, images):
            for _ in range(images**2):
                predict(ctx, 1)
                time.sleep(0.01)
            return {"x": torch.zeros(1)}

        with pytest.raises(NotKnown, match="its prior fisher takes long"):
            cost_of(lambda ctx: ctx.prior("fisher", build, images=400))

    def test_one_of_the_cache_is_taken_as_it_is(self, make_harness, tmp_path, quick):
        def build(ctx):
            time.sleep(0.1)
            return {"x": torch.zeros(2)}

        def mine(ctx):
            ctx.prior("mask", build)

        spec = spec_of(mine)
        real = make_harness(store=ArtifactStore(tmp_path / "cache"))
        unlearn(spec, real, cell_of(), Context)
        before = sorted(tmp_path.rglob("*"))
        clock, store = TrialClock(CPU), TrialStore(tmp_path / "cache")
        harness = make_harness(meter=Meter(clock=clock), store=store)
        cost = pilot._method_cost(spec, cell_of(), harness, store, clock, [])
        assert cost.prior == pytest.approx(real.meter.costs["prior"].seconds, rel=0.01)
        assert cost.priors["mask"].cached and not cost.reckoned
        assert sorted(tmp_path.rglob("*")) == before


def test_built_in_methods_run_in_brief(make_harness, registry, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(trial, "PRIOR_SECONDS", 2.0)
    for plugin in registry.plugins("method"):
        spec, clock = registry.method(plugin.name), TrialClock(CPU)
        if spec.requires:
            continue  # another kind of model
        settings = spec.resolve(("digits",), {"batch": 4} if "batch" in spec.settings else {})
        harness = make_harness(plugin.name, meter=Meter(clock=clock), store=TrialStore(tmp_path / "cache"))
        context = unlearn(spec, harness, cell_of(settings, plugin.name), partial(Trial, clock=clock))
        assert harness.meter.costs["forget"].seconds >= 0, plugin.name
        assert context.model is not None
    assert not (tmp_path / "cache").exists()


class TestSubject:
    def test_noise_stands_for_images_that_are_not_here(self, tiny, tmp_path):
        def load(store, progress):
            raise Missing("images")

        absent = replace(tiny, load=load, train_counts=tuple(range(1, 11)))
        subject = pilot.subject_of(absent, tmp_path / "cache", CPU)
        assert subject.train.images.shape == (55, 1, 8, 8)
        assert np.bincount(subject.train.labels).tolist() == list(range(1, 11))
        assert subject.base_digest == "" and not subject.base.training
        with pytest.raises(UsageError, match="an estimate downloads nothing"):
            pilot.subject_of(replace(absent, train_counts=()), tmp_path / "cache", CPU)
        assert not list(tmp_path.iterdir())


class TestMaking:
    """What making takes that a run does first."""

    def making(self, dataset, tmp_path):
        cache, found = tmp_path / "cache", {"device": "cpu"}
        (there, lacking, size), _ = pilot.look_around(dataset, ["forget_probs"], [0], cache, found, SILENT)
        making = {name: pilot.measure_making(dataset, name, cache, found, SILENT)[0] for name in lacking}
        assert (there, size) == (["images"], making[lacking[-1]].size)
        assert not cache.exists()
        return making

    def test_a_time_box_is_known_and_a_judge_from_a_file_is_tested_alone(self, tiny, tmp_path):
        judge = GivenJudge("cifar_resnet20", file_digest(write_weights(tmp_path / "w.safetensors")))
        dataset = replace(
            tiny, judge=judge, weights={judge.sha256: tmp_path / "w.safetensors"}, base=replace(tiny.base, minutes=3.0)
        )
        found = self.making(dataset, tmp_path)
        assert set(found) == {"judge", "base model (seed 0, 3 minutes)"}
        assert found["base model (seed 0, 3 minutes)"].seconds == 180
        assert found["judge"].seconds > 0
        assert found["judge"].size == pytest.approx(4 * 271_098, rel=0.01)

    def test_a_data_set_that_is_not_here_is_not_downloaded(self, tmp_path):
        dataset, cache = load_dataset(Source("cifar10", "smoke")), tmp_path / "cache"
        (there, lacking, _), _ = pilot.look_around(dataset, ["forget_probs"], [0], cache, {"device": "cpu"}, SILENT)
        assert (there, lacking) == ([], ["CIFAR-10 (to download)", "judge", "base model (seed 0)"])
        making, _ = pilot.measure_making(dataset, lacking[0], cache, {"device": "cpu"}, SILENT)
        assert making == Making(None, 0)
        assert not cache.exists()

    def test_images_of_a_folder_are_decoded_in_part(self, tmp_path, monkeypatch):
        for part, n in (("train", 20), ("test", 4)):
            for name in ("cat", "dog"):
                (tmp_path / "pets" / part / name).mkdir(parents=True)
                for k in range(n):
                    Image.new("RGB", (32, 32), (k, k, k)).save(tmp_path / "pets" / part / name / f"{k}.png")
        pets = load_dataset(Source("imagefolder", "smoke", tmp_path / "pets"))
        monkeypatch.setattr(pilot, "TRAIN_SECONDS", 0.0)
        read = []
        monkeypatch.setattr(imagefolder, "_read", lambda path, side: read.append(path) or blank(side))
        making, _ = pilot.measure_making(pets, "images", tmp_path / "cache", {"device": "cpu"}, SILENT)
        assert 0 < len(read) < 48
        assert making.seconds > 0
        assert making.size == 40 * 3 * 32 * 32
        assert not (tmp_path / "cache").exists()

    @pytest.mark.parametrize(("seconds", "steps"), [(0.5, 5), (3.0, 3), (20.0, 1)])
    def test_few_steps_of_a_training_tell_how_long_it_is(self, seconds, steps):
        world, taken = World(), []

        def make(watch):
            for step in range(100):
                watch("train", step, 100)
                world.now += seconds + 5 * (step == 0 and seconds < 10)  # what first use takes
                taken.append(step)

        maker = pilot._Maker(None, None, 0, None, CPU, world.clock, SILENT)
        assert maker._seconds(make) == pytest.approx(100 * seconds)
        assert len(taken) == steps
        assert maker._seconds(lambda watch: watch("read", 0, 0)) == 0


def plan_of(**changes):
    asked = {"methods": "original,safemax", "classes": "0,1", "metrics": "ua,fid", "controls": "none", **changes}
    source = asked.pop("source", Source("digits"))
    return make_plan(Registry(), source=source, sweeps=asked.pop("sweeps", []), **asked)


def cost(**changes):
    given = {
        "rte": 10.0, "prior": 3.0, "sample": 4.0, "rate": Rate(0.1, 100, 1), "memory": {"rss_peak": 10**9},
        "priors": {}, "warmup": 0.0, "untouched": False, "reckoned": frozenset({"rte"}),
    }  # fmt: skip
    return MethodCost(**{**given, **changes})


def outlook_of(plan, costs, **changes):
    rows = [
        Row(name, plan.methods[name].title, cells, plan.unlearns(cells[0]), True, costs[name])
        for name in costs
        if (cells := [cell for cell in plan.cells if cell.method == name])
    ]
    given = {
        "plan": plan, "device_info": {"device": "cpu", "identity": {"type": "cpu", "name": "A CPU", "uuid": "1"}},
        "rows": rows, "surroundings": Surroundings({"load": 1.0, "judge": 2.0, "attack": 8.0}, 0),
        "preparation": Preparation(["images"], {}, 4000), "kept": 0,
        "execution": Execution(Path("/nowhere/cache")),
    }  # fmt: skip
    return Outlook(**{**given, **changes})


class TestSums:
    def test_cells_of_a_method(self):
        plan = plan_of(methods="original,safemax")
        priors = {"shared": Prior(5.0, True, False, 100), "own": Prior(2.0, False, False, 10)}
        outlook = outlook_of(plan, {"safemax": cost(priors=priors)})
        [row] = outlook.rows
        around = 1.0 + 2.0 + 8.0
        assert row_seconds(outlook, row, row.cost) == pytest.approx(2 * (around + 10 + 4) + 5 + 2 * 2)
        again = replace(outlook, execution=replace(outlook.execution, repeats=3))
        assert row_seconds(again, row, row.cost) == pytest.approx(2 * (around + 30 + 4) + 5 + 2 * 2)
        assert disk_bytes(outlook) == 100 + 2 * 10

    def test_a_cached_prior_is_not_built(self):
        outlook = outlook_of(plan_of(), {"safemax": cost(priors={"shared": Prior(5.0, True, True, 0)})})
        [row] = outlook.rows
        assert row_seconds(outlook, row, row.cost) == pytest.approx(2 * (11 + 10 + 4))

    def test_an_untouched_model_is_sampled_once_and_not_attacked(self):
        plan = plan_of(classes="0-9")
        outlook = outlook_of(plan, {"original": cost(untouched=True, rte=0.0)})
        [row] = outlook.rows
        images = 10 * 100 + 10 * 50  # each class as one that is forgotten, and as one that is not
        assert row_seconds(outlook, row, row.cost) == pytest.approx(10 * 3.0 + 4.0 * images / (100 + 9 * 50))
        assert disk_bytes(outlook) == pytest.approx(64 * images)

    def test_a_sequence_unlearns_the_step_before_again(self):
        outlook = outlook_of(plan_of(classes="", sequence="0,1,2"), {"safemax": cost()})
        [row] = outlook.rows
        assert row_seconds(outlook, row, row.cost) == pytest.approx(3 * (11 + 10 + 4) + 2 * 10)

    def test_what_is_made_first(self):
        making = {"judge": Making(20.0, 100), "images": Making(None, 7)}
        outlook = outlook_of(plan_of(), {"safemax": cost()}, preparation=Preparation([], making, 4000))
        assert preparation_seconds(outlook) == 20
        assert total_seconds(outlook) == pytest.approx(20 + 2 * 25)
        assert disk_bytes(outlook) == 107

    def test_metrics_say_what_is_sampled(self):
        plan = plan_of(metrics="ua")
        assert draws(plan.cells[0], plan) == [(0, 100)]
        both = plan_of(metrics="ua,fid")
        assert draws(both.cells[0], both) == [(0, 100), *[(c, 50) for c in range(1, 10)]]


class TestText:
    def test_what_was_extrapolated_is_marked(self):
        outlook = outlook_of(plan_of(), {"original": cost(rte=0.0, reckoned=frozenset(), rate=None), "safemax": cost()})
        text = list(lines(outlook))
        original, safemax = (next(line for line in text if line.startswith(name)) for name in ("Original", "SAFEMax"))
        assert original.split() == ["Original", "2", "-", "3s", "0s", "3s", "~4s", "1.00", "~7s"]
        assert safemax.split() == ["SAFEMax", "2", "0.1", "3s", "~10s", "~13s", "~4s", "1.00", "~25s"]
        assert any(line.startswith("the whole run: ~1m04s for 4 cells") for line in text)
        assert max(len(line) for line in text[2:6]) <= 80

    def test_what_is_not_known_is_said(self):
        outlook = outlook_of(
            plan_of(), {"original": cost(), "safemax": Unknown("it is a riddle")},
            preparation=Preparation([], {"judge": Making(None, 0, "it is slow")}, 1),
            surroundings=Surroundings({"load": 1.0}, 0, "judging: it took too long"),
        )  # fmt: skip
        text = list(lines(outlook))
        assert "SAFEMax: unknown (it is a riddle)" in text
        assert next(line for line in text if line.startswith("SAFEMax ")).split()[2:] == ["?"] * 7
        total = next(line for line in text if line.startswith("the whole run"))
        assert "at least ~" in total and "(SAFEMax, judge, a part of judging)" in total
        assert "to be made first: judge (unknown: it is slow)" in text
        assert any("unknown: judging: it took too long" in line for line in text)

    def test_nothing_to_run(self):
        assert "nothing would run" in list(lines(outlook_of(plan_of(), {})))[-1]


class TestPublished:
    @pytest.fixture
    def plan(self):
        return plan_of(methods="paper", metrics="ua", source=Source("cifar10", protocol="paper"))

    def test_the_papers_table_stands_beside_the_estimate(self, plan):
        memory = lambda gb: {"nvml_process": round(gb * 1e9), "rss_peak": 1}  # noqa: E731
        outlook = outlook_of(plan, {
            "safemax": cost(rte=60.0, prior=0.0, memory=memory(5)),
            "salun": cost(rte=120.0, prior=6.0, memory=memory(10)),
            "sa": cost(rte=1800.0, prior=12000.0, memory=memory(20)),
        })  # fmt: skip
        text = list(lines(outlook))
        row = next(line for line in text[text.index("") + 8 :] if line.startswith("SA ")).split()
        source = load_source("spartalis2025")
        printed = [source.printed("sa", metric, "mean").text for metric in ("rte", "gpu_memory")]
        assert row == ["SA", printed[0], "~30.00", printed[1], "20.00", "-", "~230.00"]
        claims = [line.split("  ") for line in text if "/ SAFEMax" in line or line.startswith("Memory, 1 -")]
        assert [parts[-1].strip() for parts in claims] == ["~30.0x", "~230.0x", "~2.0x", "75.0 %", "50.0 %"]
        assert "45 % less GPU memory than SA" in "\n".join(text)

    def test_resident_memory_is_not_held_against_that_of_a_gpu(self, plan):
        text = list(published(outlook_of(plan, {"safemax": cost()}), load_source("spartalis2025")))
        assert any(line.startswith("Memory: no probe here is comparable") for line in text)
        assert not any("%" in line.split("  ")[-1] for line in text if line.startswith("Memory, 1 -"))

    def test_changed_settings_are_no_row_of_the_papers(self, plan):
        outlook = outlook_of(plan, {"safemax": cost()})
        changed = replace(outlook, rows=[replace(row, default=False) for row in outlook.rows])
        assert list(published(changed, load_source("spartalis2025"))) == []

    def test_another_protocol_has_no_such_table(self):
        assert not any("spartalis2025" in line for line in lines(outlook_of(plan_of(), {"safemax": cost()})))


class TestRecorded:
    def test_records_of_this_device_tell_what_surrounds_a_method(self):
        plan = plan_of()
        identity = {"type": "cpu", "name": "A CPU", "uuid": "device-1"}
        record = fake_record("safemax", outside={"start": 0.1, "load": 0.4, "rest": 0.2, "wait": 9.0})
        own = {**record.dataset, "digest": plan.dataset.digest, "panel": plan.dataset.judges_digest}
        entries = {spec.name: {**record.metrics["fake_ua"]} for spec in plan.metrics}
        cell = replace(record.cell, protocol=plan.dataset.protocol.name)
        record = replace(record, cell=cell, dataset=own, metrics=entries)
        here = device_model(identity)
        assert recorded([record], plan, here) == {"start": [0.1], "load": [0.4], "rest": [0.2], "judge": [0.5]}
        elsewhere = replace(record, cell=replace(record.cell, dataset="digits-bf16"))
        assert recorded([elsewhere], plan, here) == {}
        shared = {**record.cost, "judge": {**record.cost["judge"], "side_by_side": True}}
        assert "judge" not in recorded([replace(record, cost=shared)], plan, here)
        assert "judge" not in recorded([replace(record, metrics={})], plan, here)
        assert recorded([record], plan, device_model({**identity, "name": "Another"})) == {}
        assert recorded([replace(record, dataset={**own, "digest": "old"})], plan, here) == {}


BROKEN = "from unlearnbench import method\n@method(title='Broken')\ndef broken(ctx):\n    raise ValueError('not today')"


def test_from_end_to_end_nothing_is_written_and_a_method_that_breaks_harms_no_other(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("unlearnbench.run.workers.GRACE_SECONDS", 0.0)
    files = [tmp_path / "broken.py"]
    files[0].write_text(BROKEN)
    plan = make_plan(
        Registry(files), methods="broken,original,sa", classes="0,1", source=Source("digits"),
        metrics="ua,fid,relearn_1", sweeps=[], controls="none",
    )  # fmt: skip
    plan = replace(plan, dataset=tiny)
    few = {"batch": 4, "fisher_images": 2, "fisher_timesteps": 10, "fisher_chunk": 5}  # steps are as many as ever
    cells = [replace(cell, settings={**cell.settings, **few}) if cell.settings else cell for cell in plan.cells]
    plan = replace(plan, cells=cells, overrides={cell.id: {} for cell in cells})
    console = Console(file=io.StringIO())
    execution = Execution(tmp_path / "cache", "cpu", plugin_files=tuple(files))
    outlook = estimate(plan, Workers(), ResultStore(tmp_path / "results"), console, execution)
    assert list(tmp_path.iterdir()) == files
    assert sorted((row.method, len(row.cells)) for row in outlook.rows) == [("broken", 2), ("original", 2), ("sa", 2)]
    costs = {row.method: row.cost for row in outlook.rows}
    assert "not today" in costs.pop("broken").reason
    assert not [cost for cost in costs.values() if isinstance(cost, Unknown)], costs
    assert costs["original"].untouched and costs["original"].rate is None
    assert 0 < costs["sa"].rate.step_seconds < costs["sa"].rte
    assert set(costs["sa"].priors) == {"replay", "fisher"} and costs["sa"].prior > 0
    assert outlook.surroundings.unknown == ""
    assert set(outlook.surroundings.seconds) == set(AROUND) - {"rest"}
    judges = {"judge", "rejecting judge", "feature extractor"}
    lacking = judges | {"features of the training images", "base model (seed 0)"}
    assert set(outlook.preparation.making) == lacking
    assert all(making.seconds > 0 and making.size > 0 for making in outlook.preparation.making.values())
    assert "the whole run: at least ~" in "\n".join(lines(outlook))


def test_it_takes_the_options_of_a_run():
    commands = typer.main.get_command(cli.app).commands
    run, ours = ({name for p in commands[name].params for name in p.opts} for name in ("run", "estimate"))
    assert ours <= run
    assert run - ours == {
        "--devices", "--timeout", "--minutes", "--stop-if-weak", "--cluster", "--detach", "--print-jobs", "--dry-run",
        "--no-report", "--out",
    }  # fmt: skip


def test_every_class_where_none_is_named():
    plan = make_plan(
        Registry(), methods="original", classes="", source=Source("digits"), metrics="ua", sweeps=[], controls="none",
        every_class=True,
    )  # fmt: skip
    assert [cell.forget_class for cell in plan.cells] == list(range(10))
