"""The jobs of a cell: what a method leaves changed does not reach its judges, and nothing is unlearned twice."""

from dataclasses import replace

import pytest
import torch

from tests.cells import tiny_dataset
from tests.run.test_run import lines, records
from tests.server import MAIN, run_command
from unlearnbench.models.weights import weights_of
from unlearnbench.plugins.registry import Registry
from unlearnbench.run import measuring, unlearning
from unlearnbench.run.jobs import resolve_device
from unlearnbench.run.unlearning import find_unlearned, keep_unlearned, unlearn
from unlearnbench.store.cell import UNLEARNED, Cell, Target

pytestmark = pytest.mark.usefixtures("cache")
NO_GRACE = "from unlearnbench.run import workers\nworkers.GRACE_SECONDS = 0.0\n"
POISONS = {  # what a method may leave behind that would change, or break, its own evaluation
    "autocast": "torch.autocast('cpu', dtype=torch.bfloat16).__enter__()",
    "mean": "numpy.mean = lambda *a, **k: 1.0",
    "softmax": "torch.nn.functional.softmax = torch.Tensor.softmax = lambda x, *a, **k: x",
    "verdicts": "from unlearnbench.judges import rejecting\n"
    "    rejecting.RejectingJudge.names = lambda self, images, device: numpy.full(len(images), -1)",
    "grad": "torch.set_grad_enabled(False)",
    "dtype": "torch.set_default_dtype(torch.float64)",
    "inference": "torch.inference_mode().__enter__()",
    "errors": "numpy.seterr(all='raise')",
    "flush": "torch.set_flush_denormal(True)",
    "convolution": "torch.nn.Conv2d.__call__ = lambda self, x: torch.zeros(len(x), self.out_channels, *x.shape[2:])",
    "json": "json.dumps = lambda *a, **k: '{}'",
    "sum": "from unlearnbench.models import diffusion\n    diffusion.sum = lambda *a: 0",
    "generators": "torch.manual_seed(5); numpy.random.seed(5); random.seed(5)",
}


def write_plugin(path, **methods):
    """Write a file with a method of each name, which shrinks all weights and then runs its code."""
    parts = ["import json, os, random, signal\nimport numpy, torch\nfrom unlearnbench import method"]
    parts += [
        f"@method(title={name!r})\ndef {name}(ctx):\n    with torch.no_grad():\n"
        f"        for weight in ctx.model.parameters(): weight.mul_(0.97)\n    {code}"
        for name, code in methods.items()
    ]  # fmt: skip
    path.write_text("\n\n".join(parts) + "\n")
    return path


def run(folder, *arguments, code=MAIN, **environment):
    return run_command(
        folder, "run", "--classes", "0", "--controls", "none", "--device", "cpu", "--no-report", *arguments, code=code,
        **environment,
    )  # fmt: skip


def values(record):
    return {name: (entry["value"], entry["n"], entry.get("detail")) for name, entry in record.metrics.items()}


def found(folder):
    return {record.cell.method: record for record in records(folder).values()}


def test_what_a_method_leaves_changed_does_not_reach_its_judges(tmp_path):
    plugin = write_plugin(tmp_path / "poisons.py", honest="pass", **POISONS)
    names = ",".join(["honest", *POISONS])
    _, output = run(tmp_path, "--methods", names, "--plugin", str(plugin), code=NO_GRACE + MAIN)
    by_name = found(tmp_path)
    honest = by_name.pop("honest")
    assert by_name.keys() == POISONS.keys(), output
    refused = {name for name, record in by_name.items() if record.status != "ok"}
    for name, record in by_name.items():
        if name not in refused:
            assert values(record) == values(honest), name
            assert record.images == honest.images, name
    reasons = {name: by_name[name].reason for name in refused}
    assert refused <= {"convolution", "dtype", "json"}, f"their weights cannot even be compared or written: {reasons}"


COUNTED = """
import os, signal
import torch
from unlearnbench import Score, method, metric

@method(title="Counted", streams=("forget",))
def counted(ctx, *, steps: int = 1, replay: bool = False):
    with open(os.environ["COUNTS"], "a") as file:
        file.write("unlearned\\n")
    if replay:
        ctx.sample(torch.tensor([1]))
    with torch.no_grad():
        for weight in ctx.model.parameters():
            weight.mul_(0.9)

@metric(title="Dark", unit="%", better="higher", aspect="forgetting")
def dark(forget_samples):
    return Score(100 - 100 * float(forget_samples.mean()) / 255, len(forget_samples))

@metric(title="Light", unit="%", better="higher", aspect="retention")
def light(retain_samples):
    if os.environ.get("KILL"):
        os.kill(os.getsid(0), signal.SIGKILL)
    return Score(100 * float(retain_samples.mean()) / 255, len(retain_samples))

@metric(title="Attack", unit="%", better="higher", aspect="robustness", optional=True)
def attack(attacker):
    if os.environ.get("DIE"):
        os._exit(3)
    return Score(attacker.before, attacker.samples)
"""


class TestNothingIsUnlearnedTwice:
    @pytest.fixture
    def measured(self, tmp_path):
        """Return a function that runs the counted method: (status, output, records, times that it has unlearned)."""
        counts = tmp_path / "counts"
        counts.touch()
        (tmp_path / "counted.py").write_text(COUNTED)

        def measure(metrics="dark", *arguments, methods="counted", **environment):
            status, output = run(
                tmp_path, "--methods", methods, "--plugin", "counted.py", "--metrics", metrics, *arguments,
                COUNTS=str(counts), UNLEARNBENCH_CACHE=str(self.cache), **environment,
            )  # fmt: skip
            return status, output, list(records(tmp_path).values()), len(counts.read_text().splitlines())

        return measure

    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path, cache):
        """What was unlearned by another test is not there, but base model and judges are."""
        self.cache = tmp_path / "cache"
        self.cache.mkdir()
        for kind in cache.iterdir():
            if kind.is_dir() and kind.name not in (UNLEARNED, "samples", ".runs"):
                (self.cache / kind.name).symlink_to(kind)

    def test_a_further_metric_measures_again_and_an_attack_attacks(self, measured, tmp_path):
        status, output, (first,), times = measured()
        assert (status, times) == (0, 1), output
        status, output, (second,), times = measured("dark,light")
        assert (status, times) == (0, 1), output
        assert second.metrics["dark"] == first.metrics["dark"]
        assert second.cost["forget"] == first.cost["forget"]
        assert not second.cost["forget"]["reused"]
        assert second.artifacts[UNLEARNED] == first.artifacts[UNLEARNED]
        status, output, (third,), times = measured("dark,light,attack")
        assert (status, times) == (0, 1), output
        assert {name: third.metrics[name] for name in second.metrics} == second.metrics
        assert third.cost["sample"] == second.cost["sample"]
        assert third.cost["attack"]["seconds"] == third.metrics["attack"]["cost"]["seconds"] > 0
        spent = sum(cost["seconds"] - cost["reused_seconds"] for cost in third.cost.values())
        assert third.wall_seconds == pytest.approx(spent + sum(third.outside.values()))
        _, output, (fourth,), times = measured("dark,light,attack")
        assert "1 of 1 cell is recorded" in output
        assert fourth == third
        assert len(lines(tmp_path)) == 3, "each run has recorded the cell once"

    def test_sampling_seeds_share_the_weights_which_stay_charged(self, measured):
        _, output, found, times = measured("dark", "--base-seeds", "0", "--sampling-seeds", "0-1")
        assert times == 1, output
        one, two = sorted(found, key=lambda record: record.cell.sampling_seed)
        assert one.metrics["dark"]["value"] != two.metrics["dark"]["value"]
        assert two.cost["forget"] == {
            **one.cost["forget"],
            "reused": True,
            "reused_seconds": two.cost["forget"]["seconds"],
        }
        assert two.wall_seconds < one.wall_seconds

    def test_another_protocol_shares_them(self, measured):
        measured()
        _, _, found, times = measured("dark", "--protocol", "digits-ddim25-b4")
        assert (len(found), times) == (2, 1)

    def test_it_unlearns_again_where_its_file_changed_or_it_is_told_to(self, measured, tmp_path):
        measured()
        (tmp_path / "counted.py").write_text(COUNTED.replace("0.9", "0.8"))
        assert measured()[3] == 2
        assert measured("dark", "--rerun", "always")[3] == 3
        assert measured("dark", "--repeats", "2")[3] == 5

    def test_attacks_on_other_weights_are_made_again(self, measured, tmp_path):
        _, _, (first,), _ = measured("dark,attack")
        (tmp_path / "counted.py").write_text(COUNTED.replace("0.9", "0.5"))
        _, _, (second,), times = measured("dark")
        assert times == 2
        assert second.metrics["attack"]["cost"] != first.metrics["attack"]["cost"]

    def test_a_run_that_is_killed_between_two_jobs_loses_neither(self, measured):
        status, _, found, times = measured("light", KILL="1")
        assert (status, found, times) == (-9, [], 1)
        status, output, (record,), times = measured("light")
        assert (status, times) == (0, 1), output
        assert not record.cost["forget"]["reused"]
        status, _, (killed,), times = measured("light,attack", "--rerun", "always", KILL="1")
        assert (status, killed, times) == (-9, record, 2)

    def test_an_attack_that_dies_is_no_failure_of_its_cell(self, measured):
        status, output, (record,), times = measured("dark,attack", DIE="1")
        assert status == 1
        assert "failed: " in output and "Attack: its process ended without a result, exit status 3" in output
        assert "1 of 1 cell failed; --rerun failed tries them again" in output
        assert record.status == "ok"
        assert record.metrics["dark"]["value"] > 0
        assert record.metrics["attack"]["value"] is None
        assert measured("dark,attack")[:1] == (1,), "it stays until asked for, and is still a failure"
        status, output, (record,), times = measured("dark,attack", "--rerun", "failed")
        assert (status, times) == (0, 1), output
        assert record.metrics["attack"]["value"] is not None

    def test_weights_that_are_gone_or_damaged_are_made_again(self, measured):
        measured()
        for path in (self.cache / UNLEARNED).rglob("payload.safetensors"):
            path.write_bytes(b"damaged")
        status, output, _, times = measured("dark,light")
        assert (status, times) == (0, 2), output


def test_no_judge_is_in_the_process_that_unlearns(cache, monkeypatch):
    """Nor a feature extractor: the peak memory of unlearning is lower by what they take."""

    def refuse(*_):
        raise AssertionError("judges are prepared")

    monkeypatch.setattr(measuring, "prepare", refuse)
    monkeypatch.setattr(unlearning, "measured_here", refuse)
    tiny, device = tiny_dataset(), resolve_device("cpu")
    settings = Registry().method("safemax").resolve((), {"steps": 1, "batch": 4})
    cell = Cell(tiny.name, tiny.protocol.name, "safemax", settings, 3, 0)
    quiet = lambda what, done, total: None  # noqa: E731
    fields = unlearning.unlearn_cell(cell, tiny, ["ua", "fid"], [], cache, device, 1, True, None, quiet)
    assert fields["artifacts"][UNLEARNED]["sha256"]
    assert not fields.get("complete")


@pytest.mark.parametrize("draws", [False, True])
def test_weights_depend_on_the_sampler_only_where_the_method_samples(make_harness, draws):
    def forget(ctx):
        if draws:
            ctx.sample(torch.tensor([1]))

    harness, cell = make_harness(), Cell("digits", "p", "safemax", {}, 3, 0)
    model = unlearn(replace(Registry().method("safemax"), function=forget), harness, cell).model
    keep_unlearned(harness, {}, weights_of(model, harness.base, 3, 10), {"cost": {"forget": {}}})
    assert find_unlearned(harness, {}, 1) is not None
    assert find_unlearned(harness, {"steps": 1}, 1) is None
    assert find_unlearned(replace(harness, target=Target((4,))), {}, 1) is None
    protocol = replace(harness.dataset.protocol, name="other", steps=5)
    other = replace(harness, dataset=replace(harness.dataset, protocol=protocol))
    assert (find_unlearned(other, {}, 1) is None) == draws


def test_a_path_is_measured_in_a_job_of_its_own_of_the_original_too(tmp_path):
    arguments = "--methods", "original,safemax", "--set", "safemax.steps=2"
    assert run(tmp_path, *arguments, "--metrics", "forgotten")[0] == 0
    before = found(tmp_path)
    status, output = run(tmp_path, *arguments, "--metrics", "forgotten,equal_retention")
    assert status == 0, output
    for method, record in found(tmp_path).items():
        entry = record.metrics["equal_retention"]
        assert (entry["n"], entry["shows"]) == (20, "forgetting")
        assert entry["detail"]["a"][::4] == [0.0, 1.0]
        assert record.cost["attack"] == entry["cost"]
        assert record.cost["sample"] == before[method].cost["sample"]
        assert record.metrics["forgotten"] == before[method].metrics["forgotten"]
        assert record.revisions["attacks"] == 1
    detail = found(tmp_path)["original"].metrics["equal_retention"]["detail"]
    assert len(set(detail["forget"])) == len(set(detail["retain"])) == 1


def test_a_model_that_weights_do_not_hold_has_no_path(tmp_path):
    hook = "ctx.model.register_forward_hook(lambda module, args, output: None)"
    plugin = write_plugin(tmp_path / "hooked.py", hooked=hook)
    status, output = run(tmp_path, "--methods", "hooked", "--plugin", str(plugin), "--metrics", "equal")
    assert status == 0, output
    entry = found(tmp_path)["hooked"].metrics["equal_retention"]
    assert entry["value"] is None
    assert entry["reason"].startswith("its weights alone do not determine the model")


def test_a_model_that_weights_do_not_hold_is_measured_where_it_is(tmp_path):
    hook = "ctx.model.register_forward_hook(lambda module, args, output: None)"
    plugin = write_plugin(tmp_path / "hooked.py", plain="pass", hooked=hook)
    status, output = run(tmp_path, "--methods", "plain,hooked", "--plugin", str(plugin), "--metrics", "all,late_start")
    assert status == 0, output
    by_name = found(tmp_path)
    assert values(by_name["hooked"]) == values(by_name["plain"])
    assert by_name["hooked"].artifacts[UNLEARNED] == {"reason": "its weights alone do not determine its predictions"}
    assert by_name["plain"].artifacts[UNLEARNED].keys() == {"key", "sha256", "made_utc"}
