"""Every method keeps its promises, and a method that breaks one is told which and what to change."""

import random
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.cells import SMALL, few_images
from unlearnbench import UsageError
from unlearnbench.datasets import load_dataset
from unlearnbench.kit import trial
from unlearnbench.kit.conformance import NAMES, Promise, check
from unlearnbench.kit.plugin_source import card_complaints, reach_complaints
from unlearnbench.models.denoiser import KINDS
from unlearnbench.plugins.registry import Registry
from unlearnbench.run import global_state

CARD = '''
"""Mine: ascent.

Somebody, some day.

    L = - L_eps(x_f, c_f)

Deviations:
    - None.
"""
'''
HEAD = "import torch\nfrom unlearnbench import Context, eps_loss, method, reinitialise\n"
LOOP = """
optimizer = torch.optim.Adam(ctx.model.parameters(), lr=lr)
for step in ctx.steps(steps):
    loss = -ctx.eps_loss(*ctx.forget.draw(8))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(ctx.model.parameters(), 1.0)
    optimizer.step()
    ctx.log(loss=loss)
"""
SETTINGS = "    steps: int = 100,  # optimiser steps\n    lr: float = 1e-4,  # Adam\n"


def write(folder, body=LOOP, *, card=CARD, head=HEAD, declared="title='Mine', streams=('forget',)", settings=SETTINGS):
    """Write a method of which a part is wrong; what is not given is right."""
    star = f"    *,\n{settings}" if settings else ""
    function = f"@method({declared})\ndef mine(\n    ctx: Context,\n{star}):\n{textwrap.indent(body.strip(), '    ')}\n"
    path = folder / "mine.py"
    path.write_text(f"{card.strip()}\n{head}\n{function}")
    return path


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Trials of few steps, on few images."""
    monkeypatch.setattr(trial, "STEPS", 2)
    monkeypatch.setattr(trial, "load_dataset", lambda name: replace(load_dataset(name), load=few_images))


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Return a function that writes a method and returns {promise: it}."""
    monkeypatch.setattr(global_state, "PACKAGES", frozenset({"numpy", "unlearnbench"}))  # torch's modules take long

    def judge(*args, **kwargs):
        return {promise.name: promise for promise in check(str(write(tmp_path, *args, **kwargs)))["mine"]}

    return judge


def broken(promises):
    return {name for name, promise in promises.items() if promise.kept is False}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", [plugin.name for plugin in Registry().plugins("method")])
def test_every_method_keeps_its_promises(name, kind, monkeypatch):
    """With small amounts of everything; the tuned ones of sa and sfron take seconds."""
    tuned = trial.Bench.settings

    def small(bench, steps):
        found = tuned(bench, steps)
        return {setting: SMALL.get(setting, value) if setting != "steps" else value for setting, value in found.items()}

    monkeypatch.setattr(trial.Bench, "settings", small)
    if Registry().method(name).requires and kind != "text":
        with pytest.raises(UsageError, match=f"{name} requires a model that takes prompts: leave out --model {kind}"):
            check(name, kind)
        return
    promises = check(name, kind)[name]
    assert [promise.name for promise in promises] == list(NAMES)
    assert [str(promise) for promise in promises if promise.kept is not True] == []


def test_a_sound_method_of_ones_own(judged, monkeypatch):
    monkeypatch.setattr(trial, "STEPS", 4)
    promises = judged()
    assert not broken(promises), promises
    assert all(promise.kept for promise in promises.values())
    assert "32 forget" in promises["declared streams"].words
    assert "4 steps, 4 optimiser steps; 2 and 2 with steps=2" in promises["step budget"].words
    assert "tuned" in promises["card complete"].words  # hints, not faults
    assert "give steps, lr a range, such as Annotated[int, Ge(0)]" in promises["card complete"].words


BACKWARD = "ctx.eps_loss(*ctx.forget.draw(8)).backward()"
PRIVATE = "ctx._harness.dataset.load(None, None)"
WRONG = {
    "nothing edited": ("for _ in ctx.steps(steps): ctx.forget.draw(8)", "edits the model", "no weight"),
    "returns the model": (f"{LOOP}return ctx.model", "edits the model", "return nothing"),
    "another model": (f"{LOOP}import copy\nctx.model = copy.deepcopy(ctx.model)", "edits the model", "the one given"),
    "fewer classes": (
        f"{LOOP}ctx.model.network.class_embedding = torch.nn.Embedding.from_pretrained(torch.zeros(3, 32))",
        "edits the model", "every class",
    ),
    "edits the base": (
        f"{LOOP}next(ctx.base.parameters()).data.add_(1)", "keeps the base", "1 of its tensors changed",
    ),
    "trains the base": (f"{LOOP}ctx.base.train()", "keeps the base", "eval mode"),
    "shares weights": (
        f"{LOOP}ctx.model.network.conv_in.weight.data = ctx.base.network.conv_in.weight.data",
        "keeps the base", "shares weights",
    ),
    "hooks the base": (
        f"{LOOP}ctx.base.network.conv_in.register_forward_hook(lambda m, a, out: 2 * out)", "keeps the base", "hooks",
    ),
    "undeclared stream": (f"{LOOP}ctx.retain.draw(1)", "declared streams", "add 'retain' to @method(streams=...)"),
    "own loop": (LOOP.replace("ctx.steps(steps)", "range(steps)"), "step budget", "outside ctx.steps"),
    "fixed budget": (LOOP.replace("ctx.steps(steps)", "ctx.steps(6)"), "step budget", "asks for 6 steps"),
    "one more step": (f"{LOOP}optimizer.step()", "step budget", "1 optimiser steps lie outside"),
    "counter": (
        f"{LOOP}mine.runs = getattr(mine, 'runs', 0) + 1\nctx.model.network.conv_in.bias.data += mine.runs",
        "same seed, same weights", "keep nothing between runs",
    ),
    "constant seed": (
        "g = torch.Generator().manual_seed(0)\nw = ctx.model.network.conv_in.weight\nfor _ in ctx.steps(steps):\n"
        "    ctx.forget.draw(1)\n    w.data += torch.randn(w.shape, generator=g)",
        "same seed, same weights", "seed nothing",
    ),
    "not a number": (f"{LOOP}ctx.model.network.conv_in.weight.data *= float('nan')", "finite", "smaller steps"),
    "explodes": (LOOP.replace("lr=lr", "lr=10.0"), "finite", "the loss grows from"),
    "explodes unlogged": (
        LOOP.replace("lr=lr", "lr=10.0").replace("    ctx.log(loss=loss)\n", ""), "finite", "the loss grows from",
    ),
    "inflates the weights": (
        f"{LOOP}for p in ctx.model.parameters(): p.data.mul_(200)", "finite", "the weights grow from",
    ),
    "no zero_grad": (
        LOOP.replace("    optimizer.zero_grad()\n", ""), "fresh gradients", "call optimizer.zero_grad() before each",
    ),
    "zero_grad of another optimiser": (
        LOOP.replace("optimizer.zero_grad()", "torch.optim.Adam([next(ctx.model.parameters())]).zero_grad()"),
        "fresh gradients", "gradients of earlier steps as well",
    ),
    "strides of its own": (
        LOOP.replace(
            "    optimizer.step()",
            "    for p in ctx.model.parameters(): p.grad = p.grad.flatten().view_as(p)\n    optimizer.step()",
        ),
        "fresh gradients", "other strides than the parameter",
    ),
    "logs infinity": (f"{LOOP}ctx.log(ratio=float('inf'))", "finite", "ratio is inf"),
    "global noise": (
        LOOP.replace("    loss =", "    noise = torch.randn(2)\n    loss ="), "no global RNG", "(randn): pass",
    ),
    "global seed": (f"torch.manual_seed(0)\n{LOOP}", "no global RNG", "call no torch.manual_seed"),
    "Python's random": (f"import random\nrandom.random()\n{LOOP}", "no global RNG", "Python's random"),
    "numpy's random": (f"import numpy\nnumpy.random.rand()\n{LOOP}", "no global RNG", "numpy.random"),
    "loads the dataset": (f"{PRIVATE}\n{LOOP}", "no test-set peeking", "reaches into ctx._harness"),
    "loads it unseen": (
        f"hidden = ctx\nhidden.{PRIVATE[4:]}\n{LOOP}", "no test-set peeking", "it loads the dataset, test",
    ),
    "works before its steps": (f"{BACKWARD}\n{LOOP}", "phases declared", "8 images through a model, 8 images drawn"),
    "works on a copy": (
        f"import copy\ntwin = copy.deepcopy(ctx.model)\ntwin(torch.zeros(5, 1, 8, 8), 0, torch.arange(5))\n{LOOP}",
        "phases declared", "5 images through a model before the first",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_broken_promise_is_named_with_what_to_change(judged, case):
    body, name, words = WRONG[case]
    promises = judged(body)
    assert name in broken(promises), promises
    assert words in promises[name].words
    assert broken(promises) == {name}, promises


CLEARED = {
    "set to zero": LOOP.replace("zero_grad()", "zero_grad(set_to_none=False)"),
    "after the step": LOOP.replace("    optimizer.zero_grad()\n", "").replace(
        "optimizer.step()", "optimizer.step()\n    optimizer.zero_grad()"
    ),
    "by the model": LOOP.replace("optimizer.zero_grad()", "ctx.model.zero_grad()"),
    "one by one": LOOP.replace("optimizer.zero_grad()", "for p in ctx.model.parameters(): p.grad = None"),
    "never there": LOOP.replace("    optimizer.zero_grad()\n", "").replace(
        "    loss.backward()",
        "    found = torch.autograd.grad(loss, list(ctx.model.parameters()))\n"
        "    for p, g in zip(ctx.model.parameters(), found): p.grad = torch.empty_like(p).copy_(g)",
    ),
    "of two batches": LOOP.replace(
        "    loss.backward()", "    loss.backward()\n    (-ctx.eps_loss(*ctx.forget.draw(8))).backward()"
    ),
    "of two optimisers in turn": """
first, *rest = ctx.model.parameters()
pair = [torch.optim.Adam(group, lr=lr) for group in ([first], rest)]
for step in ctx.steps(steps):
    for optimizer in pair:
        optimizer.zero_grad()
        (-ctx.eps_loss(*ctx.forget.draw(8))).backward()
        optimizer.step()
""",
}


@pytest.mark.parametrize("case", CLEARED)
def test_gradients_are_fresh_however_they_are_cleared(judged, case):
    promises = judged(CLEARED[case])
    assert promises["fresh gradients"].kept, promises["fresh gradients"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("    lr: float = '1e-4',  # Adam\n", "the default of lr does not fit its annotation: '1e-4' is not a finite"),
        ("    lr: Annotated[float, Gt(0)] = 0,  # Adam\n", "0 is not a finite number, more than 0"),
    ],
)
def test_a_default_that_does_not_fit_is_named(judged, line, words):
    head = f"from typing import Annotated\nfrom annotated_types import Gt\n{HEAD}"
    promises = judged(settings="    steps: int = 100,  # optimiser steps\n" + line, head=head)
    assert broken(promises) == {"runs"}
    assert words in promises["runs"].words


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1", "cp1252"])
def test_a_file_is_read_in_its_own_encoding(tmp_path, encoding):
    path = write(tmp_path, card=CARD.replace("Somebody", "André"))
    mark = "" if encoding == "utf-8-sig" else f"# -*- coding: {encoding} -*-\n"
    path.write_bytes((mark + path.read_text(encoding="utf-8")).encode(encoding))
    assert [str(promise) for promise in check(str(path))["mine"] if not promise.kept] == []


def test_an_unused_stream_is_named(judged):
    promises = judged(declared="title='Mine', streams=('forget', 'retain')")
    assert broken(promises) == {"declared streams"}
    assert "take 'retain' out of @method(streams=...)" in promises["declared streams"].words


def test_a_stream_that_only_a_prior_draws_is_used(judged):
    body = f"ctx.prior('seen', lambda inner: {{'x': inner.retain.draw(4)[0]}})\n{LOOP}"
    promises = judged(body, declared="title='Mine', streams=('forget', 'retain')")
    assert not broken(promises)
    assert "4 retain" in promises["declared streams"].words
    assert promises["phases declared"].words == "priors: seen"


def test_the_sdks_own_fresh_weights_are_no_global_randomness(judged):
    promises = judged(f"reinitialise(ctx.model)\n{LOOP}")
    assert not broken(promises)


@pytest.mark.parametrize(
    "line, name",
    [
        ("np.array_equal = np.array_equiv", "numpy.array_equal"),
        ("np.seterr(all='ignore')", "numpy.seterr"),
    ],
)
def test_what_stays_changed_in_the_process_is_named(judged, monkeypatch, line, name):
    monkeypatch.setattr(np, "array_equal", np.array_equal)  # put back afterwards
    with np.errstate():
        promises = judged(f"{LOOP}import numpy as np\n{line}")
    assert broken(promises) == {"no global state"}
    assert f"it changes {name}" in promises["no global state"].words
    assert "before the method returns" in promises["no global state"].words


def test_an_error_is_shown_with_its_line_and_the_rest_is_not_judged(judged):
    promises = judged("raise ValueError('no good')")
    assert broken(promises) == {"runs"}
    assert "line 20: ValueError: no good" in promises["runs"].words
    assert promises["finite"] == Promise("finite", None, "not judged: it did not run to its end")


def test_a_file_that_does_not_import_fails_at_its_first_line(tmp_path):
    path = write(tmp_path, head="import no_such_library\nfrom unlearnbench import Context, method\n")
    first, *rest = check(str(path))["mine"]
    assert (first.name, first.kept) == ("runs", False)
    assert "no_such_library" in first.words
    assert {promise.kept for promise in rest} == {None}


@pytest.mark.parametrize("body", ["torch.zeros(1)", "pass"])
def test_a_method_without_end_is_stopped(judged, monkeypatch, body):
    monkeypatch.setattr(trial, "SECONDS", 1.0)
    promises = judged(f"while True:\n    {body}")
    assert broken(promises) == {"runs"}
    assert "more than 1 s on digits" in promises["runs"].words


def test_waiting_is_not_working_but_has_an_end(judged, monkeypatch):
    """Half a second asleep costs no processor time; a method that waits for ever is stopped by the clock."""
    assert not broken(judged(f"import time\ntime.sleep(0.5)\n{LOOP}"))
    monkeypatch.setattr(trial, "SECONDS", 1.0)
    monkeypatch.setattr(trial, "PATIENCE", 1)
    assert broken(judged("import threading\nthreading.Event().wait()")) == {"runs"}


def test_no_global_state_changes(tmp_path):
    path = write(tmp_path, f"import random, numpy\nrandom.random()\nnumpy.random.rand()\ntorch.manual_seed(3)\n{LOOP}")
    before = (random.getstate(), np.random.get_state(legacy=False)["state"]["pos"], torch.get_rng_state().tolist())  # noqa: NPY002
    check(str(path))
    after = (random.getstate(), np.random.get_state(legacy=False)["state"]["pos"], torch.get_rng_state().tolist())  # noqa: NPY002
    assert before == after


def spec_of(path):
    return Registry([path]).method("mine")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"card": ""}, "open the file with a docstring"),
        ({"card": CARD.replace("Somebody, some day.\n", "")}, "authors or source"),
        ({"card": CARD.replace("    L = - L_eps(x_f, c_f)", "")}, "indented formula"),
        ({"card": CARD.replace("Deviations:", "Differences:")}, "end the docstring with 'Deviations:'"),
        ({"declared": "title='Mine', paper='1234.56789'"}, "name arXiv:1234.56789"),
        ({"settings": "    steps: int = 1,\n    lr: float = 1e-4,  # Adam\n"}, "comment steps where they stand"),
    ],
)
def test_an_incomplete_card_is_told_what_is_missing(tmp_path, changes, words):
    path = write(tmp_path, **changes)
    (complaint,) = card_complaints(path.read_text(), spec_of(path))
    assert words in complaint


def test_a_control_needs_no_formula(tmp_path):
    declared = "title='Mine', role='control', truth={'forgetting': True}"
    path = write(tmp_path, card='"""A control."""', declared=declared, settings="")
    assert card_complaints(path.read_text(), spec_of(path)) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("from sklearn.datasets import load_digits", "imports sklearn.datasets.load_digits: draw images"),
        ("from sklearn import datasets", "imports sklearn.datasets: draw images"),
        ("import torchvision.datasets as d", "imports torchvision.datasets: draw images"),
        ("from unlearnbench.datasets import load_dataset", "import from unlearnbench itself"),
        ("from unlearnbench import registry", "import from unlearnbench itself"),
        ("def build(inner: Context): return inner.forget._images", "reaches into inner.forget._images"),
        ("def mine(ctx): return vars(ctx)", "calls vars(ctx)"),
        ("def mine(c): return getattr(c, '_harness')", "calls getattr(c, '_harness')"),
    ],
)
def test_reaching_around_the_context_is_seen(line, words):
    (complaint,) = reach_complaints(line, "mine")
    assert words in complaint


@pytest.mark.parametrize(
    "line",
    [
        "from unlearnbench import Context, method",
        "from sklearn.svm import SVC",
        "def mine(ctx): return ctx.model._modules, getattr(ctx, 'forget'), torch._foreach_norm",
    ],
)
def test_what_is_allowed_is_left_alone(line):
    assert reach_complaints(line, "mine") == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("safemaxx", "did you mean safemax"),
        ("ua", "ua is a metric"),
        ("absent.py", "there is no file absent.py"),
    ],
)
def test_bad_usage(target, words):
    with pytest.raises(UsageError, match=words):
        check(target)


def test_files_that_hold_no_method(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("x = 1")
    with pytest.raises(UsageError, match=r"^\S*mine\.py: the file declares no function"):
        check(str(path))
    path.write_text("from unlearnbench import metric\n@metric(title='M')\ndef mine(cell): ...")
    with pytest.raises(UsageError, match="holds metrics only"):
        check(str(path))


def test_the_file_of_a_registered_method_is_checked_as_that_method():
    path = next(plugin.path for plugin in Registry().plugins("method") if plugin.name == "original")
    assert list(check(str(path))) == ["original"]
