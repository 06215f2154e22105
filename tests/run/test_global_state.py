import json
import os
import random
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unlearnbench.errors import PluginError
from unlearnbench.judges import forward
from unlearnbench.models import diffusion
from unlearnbench.run.global_state import GlobalState
from unlearnbench.run.unlearning import check_left_as_found


def set_flag(place, name, value):
    return lambda patch: patch.setattr(place, name, value)


def entered(context):
    """Return how to enter a context, and to leave it when the test has ended."""

    def enter(patch):
        manager = context()
        manager.__enter__()
        patch.undone.append(lambda: manager.__exit__(None, None, None))

    return enter


def called(function, value, before):
    def call(patch):
        function(value)
        patch.undone.append(lambda: function(before))

    return call


def hooked(patch):
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    patch.undone.append(handle.remove)


LEFT_BEHIND = {
    "torch.autocast('cpu')": entered(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "torch's grad mode": called(torch.set_grad_enabled, False, True),
    "torch.inference_mode": entered(torch.inference_mode),
    "torch's default dtype": called(torch.set_default_dtype, torch.float64, torch.float32),
    "torch's default device": called(torch.set_default_device, "meta", None),
    "TorchFunctionMode": entered(torch.overrides.TorchFunctionMode),
    "use_deterministic_algorithms": called(torch.use_deterministic_algorithms, True, False),
    "float32_matmul_precision": called(torch.set_float32_matmul_precision, "medium", "highest"),
    "detect_anomaly": called(torch.autograd.set_detect_anomaly, True, False),
    "flush_denormal": called(torch.set_flush_denormal, True, False),
    "saved tensors": entered(lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)),
    "cudnn.benchmark": set_flag(torch.backends.cudnn, "benchmark", True),
    "mkldnn.enabled": set_flag(torch.backends.mkldnn, "enabled", False),
    "numpy.seterr": entered(lambda: np.errstate(all="raise")),
    "_global_forward_hooks": hooked,
    "numpy.mean": set_flag(np, "mean", lambda *_, **__: 1.0),
    "torch.nn.functional.softmax": set_flag(torch.nn.functional, "softmax", lambda x, *_: x),
    "torch.Tensor.__format__": set_flag(torch.Tensor, "__format__", lambda *_: "1"),
    "torch.nn.modules.conv.Conv2d.__call__": set_flag(torch.nn.Conv2d, "__call__", lambda self, x: x),
    "unlearnbench.judges.forward.forward_batches": set_flag(
        forward.forward_batches, "__code__", (lambda *_: None).__code__
    ),
    "unlearnbench.models.diffusion.sum": lambda patch: patch.setattr(diffusion, "sum", lambda *_: 0, raising=False),
    "json.dumps": set_flag(json, "dumps", lambda *_, **__: "{}"),
}  # fmt: skip


@pytest.fixture(scope="module")
def before():
    """A snapshot; in the end nothing of what the tests changed and put back is a change."""
    snapshot = GlobalState()
    yield snapshot
    assert snapshot.changes() == []


@pytest.fixture
def patch(monkeypatch):
    monkeypatch.undone = []
    yield monkeypatch
    for undo in reversed(monkeypatch.undone):
        undo()


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_what_touches_numbers_is_noticed(before, patch, name):
    LEFT_BEHIND[name](patch)
    changes = before.changes()
    patch.undo()
    for undo in reversed(patch.undone):
        undo()
    patch.undone.clear()
    assert any(name in change for change in changes), changes


def test_what_is_imported_or_used_first_is_not_a_change(before, tmp_path, monkeypatch):
    (tmp_path / "lately.py").write_text(
        "import torch\nclass Mine(torch.nn.Linear):\n    def forward(self, x): return x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("lately", None)
    import lately

    model = lately.Mine(2, 2)
    optimizer = torch.optim.Adadelta(model.parameters())
    model(torch.zeros(1, 2)).sum()
    optimizer.step()
    np.random.default_rng(0).normal()
    assert before.changes() == []


@pytest.mark.parametrize("order", [("AdamW", "Adam"), ("Adam", "AdamW"), ("AdamW",)])
def test_an_optimiser_that_inherits_its_step_is_used_first(monkeypatch, order):
    if hasattr(torch.optim.Adam.step, "hooked"):  # by a test before this one
        monkeypatch.setattr(torch.optim.Adam, "step", torch.optim.Adam.step.__wrapped__)
    if "step" in vars(torch.optim.AdamW):
        monkeypatch.delattr(torch.optim.AdamW, "step")
    before = GlobalState()
    for name in order:
        getattr(torch.optim, name)([torch.zeros(1, requires_grad=True)])
    assert "step" in vars(getattr(torch.optim, order[0]))
    assert before.changes() == []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    assert before.changes() == ["torch.optim.adamw.AdamW.step"]


def test_a_method_that_leaves_something_changed_fails_with_what_to_do(patch):
    before = GlobalState()
    patch.setattr(np, "mean", max)
    with pytest.raises(PluginError, match=r"odd or its file changes .*, numpy\.mean: .* put it back"):
        check_left_as_found(before, SimpleNamespace(name="odd"))


def test_what_may_change_freely_is_put_back(monkeypatch):
    monkeypatch.setenv("KEPT", "1")
    before = GlobalState()
    expected = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    os.environ.update(KEPT="2", NEW="3")
    with warnings.catch_warnings():
        known = list(warnings.filters)
        warnings.filterwarnings("ignore", "the judge is poor")
        before.restore()
        assert warnings.filters == known
    assert (os.environ["KEPT"], "NEW" in os.environ) == ("1", False)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected  # noqa: NPY002
