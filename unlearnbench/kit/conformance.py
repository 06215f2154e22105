"""Conformance tests of a method: `unlearnbench check`.

A method runs four times on the embedded digits with a denoiser of a few thousand random weights: twice with one seed,
once with another, once with half the steps. Each promise is judged by the harness's counts, the models and
the method's source; a broken one says what to change.
"""

import math
import random
import tempfile
import tokenize
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unlearnbench.datasets import Source, load_dataset
from unlearnbench.errors import NonFiniteError, PluginError, UsageError, one_line, spell_error, suggest
from unlearnbench.kit import trial
from unlearnbench.kit.plugin_source import card_complaints, card_hints, reach_complaints
from unlearnbench.kit.trial import Bench, OutOfTime, Run, TouchedStreams
from unlearnbench.models.denoiser import CPU, KINDS
from unlearnbench.models.training import global_rng_kept
from unlearnbench.plugins.registry import Plugin, Registry
from unlearnbench.plugins.spec import STREAMS, MethodSpec
from unlearnbench.run.global_state import REMEDY, GlobalState
from unlearnbench.store.artifacts import Tensors

NAMES = (
    "runs", "edits the model", "keeps the base", "declared streams", "step budget", "same seed, same weights", "finite",
    "fresh gradients", "no global RNG", "no global state", "no test-set peeking", "phases declared", "card complete",
)  # fmt: skip
WIDTH = max(map(len, NAMES))
EXPLOSION = 100.0  # growth factor in a few steps that cannot stay finite over thousands


@dataclass(frozen=True)
class Promise:
    """One promise of a method: whether it is kept (None: not judged), and what was observed or has to change."""

    name: str
    kept: bool | None
    words: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "FAIL", None: "--"}[self.kept]
        return f"{mark:5} {self.name:{WIDTH}}  {self.words}".rstrip()


def check(target: str, model: str = "") -> dict[str, list[Promise]]:
    """Return {method: its promises} for a registered name, or for every method of a file.

    Args:
        target: name or file.
        model: kind of model, as of `check_plugin`.

    Raises:
        UsageError: there is no such method or file, it is a metric, or it requires another kind of model.
    """
    return {plugin.name: check_plugin(plugin, model) for plugin in find(target)}


def find(target: str) -> list[Plugin]:
    """Return the methods of a name or file; raises as `check` does."""
    registry, path = Registry(), Path(target)
    if target.endswith(".py") or path.is_file():
        return _in_file(registry, path)
    if target in {plugin.name for plugin in registry.plugins("metric")}:
        raise UsageError(
            f"{target} is a metric, and check is for methods: 'unlearnbench run --metrics {target}' runs it"
        )
    plugins = {plugin.name: plugin for plugin in registry.plugins("method")}
    if target not in plugins:
        close = suggest(target, plugins)
        raise UsageError(f"there is neither a method nor a file {target!r}{close}: methods are {', '.join(plugins)}")
    return [plugins[target]]


def _in_file(registry: Registry, path: Path) -> list[Plugin]:
    if not path.is_file():
        raise UsageError(f"there is no file {path}: give the name of a method, or the file one is in")
    for plugin in registry.plugins("method"):
        if plugin.path is None:  # of an installed package: its file is known once it is imported
            with suppress(PluginError):  # a broken one has no file to compare
                _ = plugin.spec
    found = [p for p in registry.plugins("method") if p.path and p.path.resolve() == path.resolve()]
    if found:  # the file of a method that is registered already
        return found
    try:
        known = {plugin.name for plugin in registry.plugins("method")}
        found = [plugin for plugin in Registry([path]).plugins("method") if plugin.name not in known]
    except UsageError as error:
        raise UsageError(str(error).removeprefix("--plugin ")) from None
    if not found:
        raise UsageError(f"{path} holds metrics only, and check is for methods")
    return found


def check_plugin(plugin: Plugin, model: str = "") -> list[Promise]:
    """Return the promises of a method in the order of NAMES.

    Global state stays unchanged, except for what the method itself changes, which breaks a promise.

    Args:
        plugin: of the method.
        model: kind of model; empty for the first one that has what the method requires.

    Raises:
        UsageError: a model of this kind lacks what the method requires.
    """
    process = GlobalState()
    try:
        spec = plugin.spec
    except PluginError as error:
        return [Promise(NAMES[0], False, str(error)), *_unjudged(NAMES[1:], "it does not load")]
    assert isinstance(spec, MethodSpec)
    assert plugin.path is not None
    kind = _kind_for(spec, model)
    threads, state, words = torch.get_num_threads(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.set_num_threads(1)  # a small network is not faster on more
    try:
        with tempfile.TemporaryDirectory() as folder, global_rng_kept(CPU):
            dynamic = _judge_runs(Bench(plugin, spec, Path(folder), kind))
    finally:
        torch.set_num_threads(threads)
        random.setstate(state)
        np.random.set_state(words)  # noqa: NPY002
    with tokenize.open(plugin.path) as file:  # in the encoding that the file names, without a byte order mark
        source = file.read()
    complaint = process.complaint()
    dynamic.append(Promise("no global state", not complaint, f"it changes {complaint}: {REMEDY}" if complaint else ""))
    static = {
        "no test-set peeking": reach_complaints(source, spec.name),
        "card complete": card_complaints(source, spec),
    }
    found = {promise.name: promise for promise in dynamic}
    for name, complaints in static.items():
        before = found.get(name, Promise(name, True, ""))
        if complaints:
            parts = [before.words] if before.kept is False else []
            found[name] = Promise(name, False, "; ".join([*parts, *complaints]))
    if found["card complete"].kept and (hints := card_hints(spec)):
        found["card complete"] = Promise("card complete", True, f"a hint: {'; '.join(hints)}")
    return [found[name] for name in NAMES]


def _kind_for(spec: MethodSpec, model: str) -> str:
    """Return the kind of model to check a method with; raises as `check_plugin` does."""
    for kind in [model] if model else list(KINDS):
        if load_dataset(Source("digits", model=kind)).offers.issuperset(spec.requires):
            return kind
    raise UsageError(
        f"{spec.name} requires a model that takes {' and '.join(spec.requires)}: leave out --model {model}"
    )


def _unjudged(names: Iterable[str], why: str) -> list[Promise]:
    return [Promise(name, None, f"not judged: {why}") for name in names]


def _judge_runs(bench: Bench) -> list[Promise]:
    """Run the method and judge all that does not need its source."""
    first = bench.run(watched=True)
    promises = [_runs(first, bench), _streams(first, bench.spec), _peeking(first), Promise("card complete", True, "")]
    if first.global_rng:
        promises.append(Promise("no global RNG", False, first.global_rng))
    if (gradients := _gradients(first)).kept is not None:
        promises.append(gradients)
    if isinstance(first.error, NonFiniteError):
        words = f"{first.error}: take smaller steps, or clip the gradient (torch.nn.utils.clip_grad_norm_)"
        promises.append(Promise("finite", False, words))
    if first.error is None:
        promises += [_edits(first, bench), _keeps_base(first, bench), _finite(first, bench), _phases(first, bench)]
        promises += [_repeats(first, bench), _budget(first, bench)]
        if not first.global_rng:
            promises.append(Promise("no global RNG", True, ""))
    judged = {promise.name for promise in promises} | {"no global state"}
    return [*promises, *_unjudged([name for name in NAMES if name not in judged], "it did not run to its end")]


def _runs(run: Run, bench: Bench) -> Promise:
    name, steps = "runs", f" with steps={trial.STEPS}" if bench.has_steps else ""
    if run.error is None:
        return Promise(name, True, f"{run.seconds:.1f} s of processor time on digits{steps}")
    if isinstance(run.error, NonFiniteError):
        return Promise(name, None, "not judged: it became non-finite")
    if isinstance(run.error, OutOfTime):
        words = f"it takes more than {trial.SECONDS:.0f} s on digits{steps}, in processor time"
        remedy = "make the amounts of its work settings, with small values in @method(tuned={'digits': {...}})"
        return Promise(name, False, f"{words}: {remedy}")
    frames = traceback.extract_tb(run.error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == bench.file]
    where = f", line {lines[-1]}" if lines else ""
    text = str(run.error) if isinstance(run.error, PluginError) else spell_error(run.error)
    return Promise(name, False, f"it stops{steps}{where}: {one_line(text)}")


def _changed(before: Tensors, after: Tensors) -> list[str]:
    """Return the names of tensors that are not bit for bit the same, or in one of the two only."""
    both = before.keys() & after.keys()
    return [*(before.keys() ^ after.keys()), *(name for name in both if not _same(before[name], after[name]))]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def _edits(run: Run, bench: Bench) -> Promise:
    name, model = "edits the model", run.context.model
    if bench.spec.inference:
        return _guides(run, bench)
    if run.returned is not None:
        return Promise(name, False, "it returns a value: edit ctx.model in place, return nothing")
    if model is not run.context.given:
        return Promise(name, False, "it puts another model in place of ctx.model: change the weights of the one given")
    changed = _changed(bench.pristine, run.weights)
    edited = bool(changed) or not _same(run.prediction, bench.expected)
    rows = bench.dataset.num_classes + 1
    if run.prediction is None:
        return Promise(name, False, f"ctx.model no longer predicts noise for every class: {run.complaint}")
    if run.prediction.shape != (expected := (rows, *model.shape)):
        words = f"ctx.model predicts {tuple(run.prediction.shape)} for {expected}: keep it a model of x_t, t and y"
        return Promise(name, False, words)
    if (labels := model.labels) != run.harness.base.labels:
        words = f"the class embedding has {labels} rows: keep the {run.harness.base.labels} of all labels"
        return Promise(name, False, words)
    if bench.spec.role == "reference":
        words = "a reference leaves ctx.model as it is: take another role" if edited else "a reference: nothing changed"
        return Promise(name, not edited, words)
    if not edited:
        return Promise(name, False, "no weight of ctx.model changed: change them in place (an optimiser on ctx.model)")
    words = f"{len(changed)} of {len(bench.pristine)} tensors changed" if changed else "other predictions, same weights"
    return Promise(name, True, words)


def _guides(run: Run, bench: Bench) -> Promise:
    """Judge a method of kind inference, whose weights are those of the base, as `unlearned_model` has checked."""
    name = "edits the model"
    if run.prediction is None:
        return Promise(name, False, f"its guide does not predict noise for every class: {run.complaint}")
    changed = "no prediction for noise" if _same(run.prediction, bench.expected) else "predictions for noise"
    return Promise(name, True, f"a guide, the weights untouched; it changed {changed}")


def _keeps_base(run: Run, bench: Bench) -> Promise:
    name, base = "keeps the base", run.harness.base
    own = {parameter.data_ptr() for parameter in base.parameters()}
    rule = "ctx.base is for reading: "
    if changed := _changed(bench.pristine, base.tensors()):
        return Promise(name, False, f"{rule}{len(changed)} of its tensors changed, so edit ctx.model alone")
    if any(parameter.data_ptr() in own for parameter in run.context.model.parameters()):
        return Promise(name, False, f"{rule}ctx.model shares weights with it, so copy values (copy_), not tensors")
    if any(module.training for module in base.modules()) or any(p.requires_grad for p in base.parameters()):
        return Promise(name, False, f"{rule}leave it in eval mode and frozen; train ctx.model, or a copy")
    if not _same(bench.expected, run.base_prediction):
        return Promise(name, False, f"{rule}it predicts otherwise than before, so remove hooks and patches from it")
    return Promise(name, True, "bit for bit the same, frozen, in eval mode")


def _streams(run: Run, spec: MethodSpec) -> Promise:
    name, streams = "declared streams", run.harness.streams
    assert isinstance(streams, TouchedStreams)
    touched = streams.touched & set(STREAMS)
    if undeclared := sorted(touched - spec.streams):
        add = ", ".join(map(repr, undeclared))
        return Promise(name, False, f"it uses ctx.{undeclared[0]} undeclared: add {add} to @method(streams=...)")
    if run.error is not None:
        return _unjudged([name], "it did not run to its end")[0]
    if unused := sorted(spec.streams - touched):
        drop = ", ".join(map(repr, unused))
        return Promise(name, False, f"it never uses ctx.{unused[0]}: take {drop} out of @method(streams=...)")
    drawn = [f"{images} {stream}" for stream, images in sorted(run.harness.counts.drawn.items())]
    return Promise(name, True, f"images drawn: {', '.join(drawn)}" if drawn else "no image drawn")


def _budget(first: Run, bench: Bench) -> Promise:
    name, context = "step budget", first.context
    loop = "write 'for _ in ctx.steps(steps):'" + ("" if bench.has_steps else ", steps being a setting")
    outside = context.own.optimizer_steps - context.stepped
    if outside > 0:
        return Promise(name, False, f"{outside} optimiser steps lie outside ctx.steps, uncounted: {loop}")
    if not bench.has_steps:
        words = f"{context.taken} steps, no setting `steps` to halve" if context.budget else "no optimiser step"
        return Promise(name, True, words)
    if not context.budget:
        return Promise(name, False, f"its loop does not follow the setting `steps`: {loop}")
    half = bench.again(first, steps=trial.STEPS // 2, priors_of=1)
    if half is None or half.error is not None:
        return _unjudged([name], "the run with half the steps did not end")[0]
    asked = (context.budget, half.context.budget)
    if not 0.4 * asked[0] <= asked[1] <= 0.6 * asked[0]:
        words = f"it asks for {asked[0]} steps with steps={trial.STEPS}, for {asked[1]} with steps={trial.STEPS // 2}"
        return Promise(name, False, f"{words}: {loop}")
    updates = (context.own.optimizer_steps, half.context.own.optimizer_steps)
    whole = (context.taken, half.context.taken) == asked  # not one that ends by itself
    if whole and updates[0] and updates[1] >= updates[0]:
        words = f"{updates[0]} optimiser steps with steps={trial.STEPS} and {updates[1]} with steps={trial.STEPS // 2}"
        return Promise(name, False, f"{words}: let `steps` say how much work is done")
    words = f"{asked[0]} steps, {updates[0]} optimiser steps"
    return Promise(name, True, f"{words}; {asked[1]} and {updates[1]} with steps={trial.STEPS // 2}")


def _repeats(first: Run, bench: Bench) -> Promise:
    name = "same seed, same weights"
    second, other = bench.again(first), bench.again(first, seed=1)
    if second is None or other is None:
        return _unjudged([name], "a run takes too long to be done again")[0]
    if second.error is not None:
        words = f"it ran once, then stopped ({spell_error(second.error)}): keep nothing between runs"
        return Promise(name, False, words)
    if other.error is not None:
        return Promise(name, False, f"it stops with another seed: {spell_error(other.error)}")
    if not _alike(first, second):
        if first.loaded:
            return _unjudged([name], "it loads the test images, which are others in each run")[0]
        words = f"two runs of one seed differ in {len(_changed(first.weights, second.weights))} tensors"
        return Promise(name, False, f"{words}: draw all randomness from ctx.generator, keep nothing between runs")
    if not first.drew:
        return Promise(name, True, "bit for bit; it draws nothing at random")
    if bench.spec.role == "reference":
        return Promise(name, True, "bit for bit")
    unchanged = not _changed(bench.pristine, first.weights) and _same(bench.expected, first.prediction)
    if unchanged and not bench.spec.inference:
        return _unjudged([name], "ctx.model did not change")[0]
    if _alike(first, other):
        if bench.spec.inference:  # it may hold all forget images
            return Promise(name, True, "bit for bit; another seed changes nothing either")
        return Promise(name, False, "another seed gives the same weights: draw from ctx.generator, seed nothing")
    return Promise(name, True, "bit for bit; another seed gives others")


def _alike(one: Run, other: Run) -> bool:
    """Whether two runs left the same weights, and the same predictions where they can be made."""
    predict = one.prediction is not None or other.prediction is not None
    return not _changed(one.weights, other.weights) and (not predict or _same(one.prediction, other.prediction))


def _finite(run: Run, bench: Bench) -> Promise:
    name, remedy = "finite", "take smaller steps, or clip the gradient"
    bad = [key for key, value in run.weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        return Promise(name, False, f"{bad[0]} holds NaN or infinity: {remedy}")
    if run.prediction is not None and not run.prediction.isfinite().all():
        return Promise(name, False, f"ctx.model predicts NaN or infinity: {remedy}")
    if bench.spec.role in ("method", "gold") and (growth := _growth(run, bench)):
        return Promise(name, False, f"{growth}: {remedy}")
    logged = ", ".join(run.harness.curves)
    return Promise(name, True, f"weights, predictions and logged {logged}" if logged else "weights and predictions")


def _growth(run: Run, bench: Bench) -> str:
    """Say which of these explodes: the loss from the first step to the last, the weights, or the predictions."""
    sizes = {
        "the weights grow": (_norm(*bench.pristine.values()), _norm(*run.weights.values())),
        "the predicted noise grows": (_norm(bench.expected), _norm(run.prediction)),
    }
    if len(run.losses) > 1:
        sizes["the loss grows"] = (max(run.losses[min(run.losses)], 1.0), run.losses[max(run.losses)])
    found = [f"{what} from {a:.3g} to {b:.3g}" for what, (a, b) in sizes.items() if b > EXPLOSION * a]
    return f"{', '.join(found)} in {run.context.taken} steps" if found else ""


def _norm(*tensors: Tensor | None) -> float:
    """Return the Euclidean norm of all elements together."""
    return math.sqrt(sum(float(x.double().square().sum()) for x in tensors if x is not None))


def _gradients(run: Run) -> Promise:
    name, seen = "fresh gradients", run.gradients
    assert seen is not None
    if seen.stale:
        words = f"an optimiser moves {seen.stale[0]}{_more(seen.stale)} along gradients of earlier steps as well"
        return Promise(name, False, f"{words}: call optimizer.zero_grad() before each backward()")
    if seen.misplaced:
        words = f"the gradient of {seen.misplaced[0]}{_more(seen.misplaced)} has other strides than the parameter"
        remedy = "which fused optimisers refuse on a GPU: copy it into torch.empty_like(parameter)"
        return Promise(name, False, f"{words}, {remedy}")
    if run.error is not None:
        return _unjudged([name], "it did not run to its end")[0]
    words = "cleared before each step" if run.context.own.optimizer_steps else "no optimiser step"
    return Promise(name, True, words)


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _peeking(run: Run) -> Promise:
    words = "it loads the dataset, test images and all: draw from ctx.forget and ctx.retain" if run.loaded else ""
    return Promise("no test-set peeking", not run.loaded, words)


def _phases(run: Run, bench: Bench) -> Promise:
    name, early = "phases declared", run.context.early or run.context.own
    work = {
        "optimiser steps": early.optimizer_steps, "images through a model": early.forward_images,
        "images drawn": sum(early.drawn.values()),
    }  # fmt: skip
    if run.context.early is None and early.optimizer_steps:
        return _unjudged([name], "it has no loop over ctx.steps, which separates preparation from work")[0]
    found = [f"{amount} {what}" for what, amount in work.items() if amount]
    if found and not bench.spec.inference:  # whose set-up is its work
        place = "before the first of ctx.steps" if run.context.early else "outside ctx.steps"
        words = f"{', '.join(found)} {place}: prepare inside ctx.prior(name, build), which times and caches it"
        return Promise(name, False, words)
    priors = ", ".join(run.harness.priors)
    if found:
        return Promise(name, True, f"{', '.join(found)} to set up its guide, in phase forget")
    return Promise(name, True, f"priors: {priors}" if priors else "no work before the first step")
