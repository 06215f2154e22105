"""Cells that take seconds: digits with a network of a few thousand weights, and every method at its smallest."""

from dataclasses import replace
from pathlib import Path

import torch

from unlearnbench.datasets import Source, Split, load_dataset, profiles
from unlearnbench.datasets import digits as recipe
from unlearnbench.measure import inputs
from unlearnbench.models.denoiser import small_recipe
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.spec import NEEDS
from unlearnbench.run import global_state, jobs, measuring, unlearning
from unlearnbench.run.saving import staging
from unlearnbench.run.stages import together
from unlearnbench.store.cell import UNLEARNED, Cell

SMALL = {  # settings, of those methods that have them
    "steps": 2, "batch": 64, "retain_batch": 64, "replay_per_class": 3, "fisher_images": 2, "fisher_timesteps": 10,
    "fisher_chunk": 5, "round_steps": 2, "inner_steps": 2,
}  # fmt: skip
PAPERS = {  # what the paper's network has, and that of digits lacks
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "add_attention": True, "attention_head_dim": None, "dropout": 0.1,
}  # fmt: skip
NARROW = {"block_out_channels": [8, 8], "norm_num_groups": 4}  # the network, of two levels
FEW = 300  # training images, of all classes
# Functions that wait for a device by design: at a few points of a run with the clock stopped, or at a phase's edge.
BOOKKEEPING = {"context.py:log", "context.py:check_finite", "context.py:prior", "meter.py:paused", "meter.py:_switch"}
# Where a method itself asks for a wait in its steps.
ASKED = {
    "erasediff": {"erasediff.py:draw_forget_term"},  # puts the list of classes on the device
    "lotus": {"lotus.py:lotus"},  # ends where a measurement says so
}


def few_images(store, progress):
    """Return digits with the first training images alone, so that trainings and epochs are short."""
    images = load_dataset("digits").load(store, progress)
    return images._replace(train=Split(*(part[:FEW] for part in images.train)))


def tiny_dataset(*, flip=False, bf16=False, unet=None):
    """Return digits with a small network, few images and samples, short trainings; all of it in bfloat16 or none."""
    digits = load_dataset("digits")
    precision = "bf16" if bf16 else "fp32"
    unet = {**digits.base.network, **NARROW, **(unet or {})}
    return replace(
        digits,
        load=few_images,
        flip=flip,
        precision=precision,
        base=replace(digits.base, network=unet, steps=4, batch=16, precision=precision),
        judge=replace(digits.judge, epochs=1, flip=flip),
        rejecting=replace(digits.rejecting, epochs=1, flip=flip),
        extractor=replace(digits.extractor, epochs=1, flip=flip),
        protocol=replace(
            digits.protocol, steps=2, forget_samples=20, retain_samples=8, batch_size=100, precision=precision
        ),
    )


def small_dataset(kind):
    """Return digits with a tiny model of a kind, trained for a few steps."""
    digits = load_dataset(Source("digits", model=kind))
    recipe = small_recipe(digits.base)
    autoencoder = recipe.autoencoder and replace(recipe.autoencoder, steps=3, batch=8)
    return replace(
        digits,
        load=few_images,
        base=replace(recipe, steps=3, batch=8, autoencoder=autoencoder),
        judge=replace(digits.judge, epochs=1),
        rejecting=replace(digits.rejecting, epochs=1),
        extractor=replace(digits.extractor, epochs=1),
        protocol=replace(digits.protocol, steps=2, forget_samples=6, retain_samples=2, batch_size=20),
    )


def prepare_digits(cache):
    """Make what belongs to digits, as the first run with this cache would: two minutes on one core."""
    torch.set_num_threads(1)
    jobs.prepare_dataset(
        load_dataset("digits"), tuple(NEEDS), [0], Path(cache), jobs.resolve_device("cpu"), lambda *_: None
    )


def hurry():
    """Measure the loss at few timesteps, and look in few packages for what a method leaves changed, in this process."""
    inputs.TIMESTEP_BINS = 2
    global_state.PACKAGES = frozenset({"builtins", "functools", "math", "numpy", "random", "unlearnbench"})


def shrink():
    """Make digits tiny in this process and the cells that it starts, and of the smoke protocol network and sampler.

    For runs where the numbers do not matter. That a method changes nothing that its evaluation uses is checked of few
    packages, which spares a cell a third of its time: the tests of that check, of conformance and of the real
    digits have all packages.
    """
    hurry()
    real, smoke = recipe._PROFILE, profiles._smoke()
    unet = {**real.bases["unet"].network, **NARROW}
    recipe._PROFILE = replace(
        real,
        protocol=replace(real.protocol, steps=2, forget_samples=20, retain_samples=8),
        bases={**real.bases, "unet": replace(real.bases["unet"], network=unet, steps=4, batch=16)},
        judges={name: replace(judge, epochs=1) for name, judge in real.judges.items()},
        rejecting=replace(real.rejecting, epochs=1),
        own=replace(real.own, epochs=1),
    )
    unet = smoke.bases["unet"]
    two = {name: unet.network[name][:2] for name in ("down_block_types", "up_block_types")}
    bases = {**smoke.bases, "unet": replace(unet, network={**unet.network, **NARROW, **two})}
    profiles._smoke = lambda: replace(smoke, protocol=replace(smoke.protocol, steps=2, retain_samples=8), bases=bases)


def run_cell(cache, method, device_info, channel, *, dataset=None, metrics=(), plugins=(), staged=None, **settings):
    """Run the jobs of a cell in this process, and return it with the measured fields of its record.

    Args:
        cache: folder of artifacts.
        method: its name.
        device_info: the device, as `run.jobs.resolve_device` returns it.
        line: to the process that waits for the cell.
        dataset: tiny_dataset(), unless another one is given.
        metrics: names.
        plugins: files that may hold the method.
        staged: folder for the unlearned model.
        settings: of the method, if not SMALL.
    """
    dataset = dataset or tiny_dataset()
    spec = Registry(plugins).method(method)
    chosen = {name: value for name, value in {**SMALL, **settings}.items() if name in spec.settings}
    cell = Cell(dataset.name, dataset.protocol.name, method, spec.resolve((), chosen), 3, 0)
    place = None if staged is None else staging(staged, cell)
    parts = [unlearning.unlearn_cell(cell, dataset, metrics, plugins, cache, device_info, 1, True, place, channel)]
    if not parts[0].get("complete"):
        attacks = [name for name in metrics if Registry(plugins).metric(name).is_apart]
        given = cell, dataset, parts[0]["artifacts"][UNLEARNED]["key"]
        rest = plugins, cache, device_info, channel
        parts.append(
            measuring.measure_cell(*given, [name for name in metrics if name not in attacks], *rest[:-1], True, channel)
        )
        parts += [measuring.attack_cell(*given, name, *rest) for name in attacks]
    return cell, together(parts, cell)
