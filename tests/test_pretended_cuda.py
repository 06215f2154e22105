"""The CUDA paths, on a device that is only pretended: what a GPU would refuse, and what would make the host wait.

What runs on it is in `tests.pretended_jobs`.
"""

import functools
import pickle

import pytest
import torch

from tests import pretended_jobs as jobs
from tests.cells import ASKED, PAPERS
from tests.server import run_command
from unlearnbench.models.training import DenoiserTraining
from unlearnbench.plugins.registry import Registry

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real CUDA device is there: see tests/gpu")

METHODS = [plugin.name for plugin in Registry().plugins("method") if not plugin.spec.requires]  # on a UNet
ATTACKS = [spec.name for spec in Registry().select_metrics("attacks") if not spec.is_of_prompts]
METRICS = [spec.name for spec in Registry().select_metrics("all") if spec.name != "earlier_forgotten"]


JOB = """
import pickle, sys
from pathlib import Path
from tests import pretended_jobs

paper = Path(sys.argv[1])
name, arguments = pickle.loads(paper.read_bytes())
paper.write_bytes(pickle.dumps(getattr(pretended_jobs, name)(*arguments)))
"""


@pytest.fixture(scope="module")
def pretended(tmp_path_factory):
    """Return a function that runs a job in a process of its own and returns what it saw; all share a cache."""
    folder = tmp_path_factory.mktemp("pretended")

    def run(job, *arguments):
        (folder / "paper").write_bytes(pickle.dumps((job.__name__, (folder, *arguments))))
        status, output = run_command(folder, folder / "paper", code=JOB, tiny=False, figures=True)
        assert status == 0, output
        return pickle.loads((folder / "paper").read_bytes())

    return run


def test_the_pretended_device_keeps_its_rules(pretended):
    said, waits, flows, generator, available = pretended(jobs.rules_job)
    assert "same device" in said["mixing"]
    assert "same device" in said["two devices"]
    assert "invalid device" in said["no such device"]
    assert "Expected a 'cuda' device type for generator" in said["generator of the CPU"]
    assert "Expected a 'cpu' device type for generator" in said["generator of the device"]
    assert "can't convert" in said["numpy"]
    assert "indices should be" in said["indices on the device"]
    assert "same layout" in said["strides"]
    assert waits == {
        "arithmetic": 0, "item": 1, "to the host": 1, "to the device": 1, "unpinned, not waited for": 1,
        "pinned, not waited for": 0, "mask": 1, "indices": 0, "synchronize": 1,
    }  # fmt: skip
    assert flows, "the gradient of a copy goes back to the device"
    assert (generator, available) == ("cpu", False), "nothing is left of it afterwards"


@pytest.fixture(scope="module")
def of_method(pretended, tmp_path_factory):
    """Return a function that gives what was seen of a method, which runs once for all tests."""
    models = tmp_path_factory.mktemp("models")

    @functools.cache
    def seen_of(method):
        whole = method == "safemax"  # with every judge, and a saved model; a judge is enough for the others
        metrics = ["ua", "fid", "forgotten"] if whole else ["ua"]
        return pretended(jobs.method_job, models if whole else None, method, metrics)

    return seen_of


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_leaves_the_judges_on_the_cpu(of_method, method):
    seen, _ = of_method(method)
    assert not any(seen["reasons"].values())
    assert seen["on"] == {"cuda:0"}
    assert seen["judges"] == {"cpu"}, "a judge on the device counts as the method's memory"
    assert seen["channels_last"]
    assert not seen["misplaced"], "fused optimisers refuse gradients in another layout"
    assert {"warmup", "forget", "sample", "judge"} <= seen["phases"]


@pytest.mark.parametrize("method", METHODS)
def test_no_step_makes_the_host_wait_but_where_the_method_asks(of_method, method):
    _, waiting = of_method(method)
    assert waiting == ASKED.get(method, set())


def test_flips_attention_dropout_and_bfloat16(pretended, tmp_path):
    seen = pretended(jobs.cell_job, tmp_path, "safemax", METRICS, {"flip": True, "bf16": True, "unet": PAPERS})
    assert seen["values"].keys() == set(METRICS)
    assert seen["values"]["fid"] is not None
    assert not seen["reasons"]["ua"]
    assert seen["uploads"] > 0, "flips are drawn on the host and sent without a wait"
    assert seen["channels_last"]
    assert not seen["misplaced"]
    assert_saved(seen)


@pytest.mark.parametrize("method", ["salun", "sa", "restricted_gradient"])  # safemax: above
def test_methods_run_in_bfloat16(pretended, method):
    seen = pretended(jobs.cell_job, None, method, ["ua"], {"bf16": True})
    assert not any(seen["reasons"].values())
    assert not seen["misplaced"]


def test_weights_that_move_within_bfloat16_are_seen(pretended):
    kinds, change = pretended(jobs.bfloat16_job)
    assert kinds == {"torch.bfloat16"}
    assert change > 0.01, "the second forward pass takes the rounded weights of the first"


def test_every_attack_runs(pretended):
    seen = pretended(jobs.cell_job, None, "esd", ATTACKS, {"flip": True})
    assert seen["values"].keys() == set(ATTACKS)
    assert not any(seen["reasons"].values())
    assert "attack" in seen["phases"]
    assert not seen["misplaced"]


def assert_saved(seen):
    assert seen["model"].keys() == {"sha256"}
    assert seen["weights are saved"]


def test_a_model_is_saved_and_read_back(of_method):
    assert_saved(of_method("safemax")[0])


PLUGIN = '''
"""A method that makes a tensor on "cuda"."""

import torch

from unlearnbench import Context, method


@method(title="Own", streams=("forget",))
def own(ctx: Context, *, steps: int = 2, batch: int = 8):
    optimizer = torch.optim.Adam(ctx.model.parameters(), lr=1e-4, fused=True)
    weight = torch.full((1,), 0.5, device="cuda")
    for _ in ctx.steps(steps):
        loss = (weight * ctx.eps_loss(*ctx.forget.draw(batch))).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
'''


def test_what_a_plugin_calls_cuda_is_the_device_of_the_run(pretended, tmp_path):
    plugin = tmp_path / "own.py"
    plugin.write_text(PLUGIN)
    on, watched_from = pretended(jobs.other_device_job, plugin)
    assert on == {"cuda:1"}
    assert watched_from == 0, "to make a device the current one takes memory there, which its monitor is to see"


@pytest.mark.parametrize("kind", ["judge", "rejecting", "extractor"])
def test_training_a_judge_waits_for_nothing(pretended, kind):
    (one, two), devices = pretended(jobs.judge_job, kind)
    assert one == two, "an epoch more is no wait more"
    assert devices == {"cuda:0"}


@pytest.mark.parametrize("bf16", [False, True])
def test_training_a_base_model_waits_for_nothing_and_its_adam_is_fused(pretended, bf16):
    (few, more), fused = pretended(jobs.base_job, bf16)
    assert few == more, "a step more is no wait more"
    assert fused == {True}


@pytest.mark.parametrize("bf16", [False, True])
def test_the_sampler_waits_once_a_batch(pretended, bf16):
    (few, more), dtypes, images = pretended(jobs.sampler_job, bf16)
    assert few == more == {"sampler.py:sample": 2}, "two batches go back to the host, and no step waits"
    assert dtypes == {"torch.bfloat16" if bf16 else "torch.float32"}
    assert images == (True, (6, 1, 8, 8), "torch.uint8")


def test_adam_of_a_base_model_is_fused_on_cuda_only(make_context):
    context = make_context()
    training = DenoiserTraining(
        context.model, context.schedule, total=1, batch=2, lr=1e-3, cosine=False, label_dropout=0.1, ema=0.9,
        clip=1.0, null_class=10, generator=context.generator,
    )  # fmt: skip
    assert training.optimizer.defaults["fused"] is None, "its sums would round otherwise, and digits change"
