"""Metrics of prompts: their arithmetic, and for which models they are computed."""

import numpy as np
import pytest

from tests.cells import tiny_dataset
from unlearnbench import Unmeasurable
from unlearnbench.datasets import Source
from unlearnbench.errors import UsageError
from unlearnbench.plugins.registry import Registry
from unlearnbench.run.plan import make_plan
from unlearnbench.store.cell import Cell

CELL = Cell("digits-text", "p", "uce", {}, 3, 0)
OF_PROMPTS = {"ua_paraphrased", "forgotten_paraphrased", "unrelated_drift", "prompt_paraphrase"}


def compute(name, **needs):
    return Registry().metric(name).function(**needs)


def test_ua_and_forgotten_of_paraphrases():
    probs = np.eye(10)[[3, 3, 1, 2]]
    assert compute("ua_paraphrased", paraphrase_probs=probs, cell=CELL)[:2] == (50.0, 4)
    verdicts = np.array([3, -1, 1, 3, 3])
    assert compute("forgotten_paraphrased", paraphrase_verdicts=verdicts, cell=CELL)[:2] == (40.0, 5)


def test_drift_is_the_paired_distance_in_units_of_other_noise():
    base = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 3.0]])  # distances to the next: 4, 3, 5
    moved = base + np.array([0.0, 2.0])
    assert compute("unrelated_drift", unrelated_features=base, base_unrelated_features=base).value == 0
    score = compute("unrelated_drift", unrelated_features=moved, base_unrelated_features=base)
    assert (score.value, score.n) == (pytest.approx(0.5), 3)
    with pytest.raises(Unmeasurable, match="the same image"):
        compute("unrelated_drift", unrelated_features=moved, base_unrelated_features=np.zeros((3, 2)))


@pytest.mark.parametrize(("model", "found"), [("unet", set()), ("dit", set()), ("text", OF_PROMPTS)])
def test_they_are_for_models_with_prompts(model, found):
    plan = make_plan(
        Registry(),
        methods="safemax",
        classes="3",
        source=Source("digits", model=model),
        metrics="all,attacks",
        sweeps=[],
    )
    cell = next(cell for cell in plan.cells if cell.method == "safemax")
    assert {spec.name for spec in plan.metrics_of(cell)} & OF_PROMPTS == found


def test_methods_that_require_prompts_are_left_out_or_refused():
    def plan(methods, model):
        return make_plan(
            Registry(), methods=methods, classes="3", source=Source("digits", model=model), metrics="ua", sweeps=[]
        )

    assert "uce" in plan("all", "text").methods
    without = plan("all", "unet")
    assert "uce" not in without.methods
    assert "left out, as the model takes no prompts: uce" in without.warnings
    with pytest.raises(UsageError, match="uce requires a model that takes prompts, and that of digits takes"):
        plan("original,uce", "unet")


def test_a_tiny_dataset_has_none():
    assert tiny_dataset().conditions.unrelated == ()
