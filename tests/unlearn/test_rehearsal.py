"""The rehearsal that a cell on CUDA has before its clock starts: it leaves nothing behind but its priors."""

from dataclasses import replace

import pytest
import torch

from unlearnbench import UsageError
from unlearnbench.cost.meter import Meter
from unlearnbench.errors import PluginError
from unlearnbench.plugins.registry import Registry
from unlearnbench.run.unlearning import rehearse, unlearn
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cell import Cell
from unlearnbench.unlearn.streams import Counts

SMALL = {
    "steps": 3, "batch": 4, "replay_per_class": 2, "fisher_images": 2, "fisher_timesteps": 4, "fisher_chunk": 2,
}  # fmt: skip


def cell_of(method):
    spec = Registry().method(method)
    settings = spec.resolve((), {name: value for name, value in SMALL.items() if name in spec.settings})
    return spec, Cell("digits", "digits-ddim25", method, settings, 3, 0)


@pytest.mark.parametrize("method", ["safemax", "salun", "sa", "sham_update", "original"])
def test_weights_counts_curves_and_priors_are_those_of_a_run_without_it(make_harness, tmp_path, method):
    spec, cell = cell_of(method)
    found = []
    for rehearsed in (False, True):
        harness = make_harness(method, store=ArtifactStore(tmp_path / str(rehearsed)), meter=Meter())
        if rehearsed:
            with harness.meter.phase("warmup"):
                rehearse(spec, harness, cell)
            assert harness.counts == Counts()
            assert not harness.curves
            assert not harness.priors
        context = unlearn(spec, harness, cell)
        priors = {name: {k: v for k, v in of.items() if k != "seconds"} for name, of in harness.priors.items()}
        found.append((context.model.state_dict(), harness.counts, harness.curves, priors, set(harness.meter.costs)))
    (plain, *facts), (after, *facts_after) = found
    assert all(torch.equal(plain[name], after[name]) for name in plain)
    assert facts[:-1] == facts_after[:-1]
    assert facts_after[-1] - facts[-1] == {"warmup"}


@pytest.mark.parametrize("method", ["salun", "sa"])
def test_priors_are_made_once_and_charged_once(make_harness, method):
    spec, cell = cell_of(method)
    harness = make_harness(method, meter=Meter())
    with harness.meter.phase("warmup"):
        rehearse(spec, harness, cell)
    made = harness.meter.costs["prior"].seconds
    assert made > 0
    unlearn(spec, harness, cell)
    cost = harness.meter.costs["prior"]
    assert (cost.seconds, cost.reused_seconds) == (made, 0.0)
    assert cost.seconds == pytest.approx(sum(prior["seconds"] for prior in harness.priors.values()))
    assert not any(prior["reused"] for prior in harness.priors.values())

    another = replace(harness, meter=Meter(), counts=Counts(), curves={}, priors={}, made=set())
    with another.meter.phase("warmup"):
        rehearse(spec, another, cell)
    assert "prior" not in another.meter.costs, "the rehearsal charges nobody for what lies in the cache"
    unlearn(spec, another, cell)
    assert another.meter.costs["prior"].seconds == pytest.approx(made)
    assert another.meter.costs["prior"].reused_seconds == pytest.approx(made)


def test_it_takes_one_step(make_harness):
    spec, cell = cell_of("safemax")
    taken = []
    harness = make_harness(progress=lambda what, done, total: taken.append(done))
    rehearse(spec, harness, cell)
    assert taken == [], "the rehearsal shows no progress of the method"
    steps = []

    def method(ctx):
        for step in ctx.steps(5):
            steps.append(step)
        raise AssertionError("the method goes on after its first step")

    rehearse(replace(spec, function=method), harness, replace(cell, settings={}))
    assert steps == [0]


def test_the_global_random_state_is_as_before(make_harness):
    spec, cell = cell_of("safemax")
    harness = make_harness()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    rehearse(spec, harness, cell)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_method_that_fails_in_it_fails_its_cell_alone(make_harness):
    spec, cell = cell_of("safemax")

    def refuse(ctx):
        raise UsageError("no")

    with pytest.raises(PluginError, match="safemax raised UsageError"):
        rehearse(replace(spec, function=refuse), make_harness(), replace(cell, settings={}))
