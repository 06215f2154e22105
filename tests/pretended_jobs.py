"""What `test_pretended_cuda` does on a pretended CUDA device: each job in a process of its own, which it patches."""

import importlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.cells import BOOKKEEPING, PAPERS, hurry, run_cell, tiny_dataset
from tests.pretend import PretendedTensor, pretended_cuda
from unlearnbench.cost import probes
from unlearnbench.datasets import WEIGHTS, Split
from unlearnbench.judges.fit import fit_classifier
from unlearnbench.judges.judges import build_classifier
from unlearnbench.measure import attacks
from unlearnbench.models import base as base_models
from unlearnbench.models import flops as arithmetic
from unlearnbench.models.codec import PIXELS
from unlearnbench.models.diffusion import Schedule, half_precision, predict_noise
from unlearnbench.models.networks import frozen, placed
from unlearnbench.models.sampler import sample
from unlearnbench.models.unet import UNet
from unlearnbench.run import measuring, unlearning
from unlearnbench.run.saving import staging
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.unlearn.context import Context

IDENTITY = {"type": "cuda", "name": "Pretended GPU", "uuid": "pretended", "driver": "0", "cuda": "0"}


def channel(*_):
    """Nobody hears of a job's progress."""


@contextmanager
def observed(device):
    """Shorten what is measured once or long, and note what a cell does while its method works."""
    hurry()
    arithmetic.PEAK_SIZE, arithmetic.PEAK_SECONDS = {"cuda": 32, "cpu": 32}, 0.0
    attacks.RELEARNING_STEPS = (1, 2)
    importlib.import_module("unlearnbench.metrics.embedding_search").STEPS = 2
    nothing = {"edge": dict, "held": dict, "close": lambda: None, "problems": {}, "foreign": None}
    seen = SimpleNamespace(judges=set(), misplaced=set(), channels_last=False, on=set(), watched_from=None, waits=[])

    def start_monitor(uuid, *, alone):
        if seen.watched_from is None:  # by the first job, as those of a cell have processes of their own
            seen.watched_from = torch.cuda.current_device()
        return SimpleNamespace(**nothing)

    probes.NvmlMonitor = start_monitor
    prepare, unlearn, steps = measuring.prepare, unlearning.unlearn, Context.steps

    def noting_steps(context, n):
        marks = []
        for step in steps(context, n):
            marks.append(len(device.waits))
            yield step
        seen.waits += device.waits[marks[1] :] if n > 1 else []  # the first step may prepare something

    def noting_prepare(*arguments):
        prepared = prepare(*arguments)
        judges = [prepared.judge, prepared.extractor, getattr(prepared.rejecting, "network", None)]
        seen.judges |= {str(x.device) for judge in judges if judge is not None for x in judge.parameters()}
        return prepared

    def noting_unlearn(*arguments):
        context = unlearn(*arguments)
        weights = list(context.model.parameters())
        seen.on |= {str(x.device) for x in weights}
        seen.channels_last = all(x.is_contiguous(memory_format=torch.channels_last) for x in weights if x.dim() == 4)
        return context

    def look(optimizer, *_):
        for x in (x for group in optimizer.param_groups for x in group["params"] if x.grad is not None):
            if any(n > 1 and a != b for n, a, b in zip(x.shape, x.stride(), x.grad.stride(), strict=True)):
                seen.misplaced.add(tuple(x.shape))

    measuring.prepare, unlearning.unlearn, Context.steps = noting_prepare, noting_unlearn, noting_steps
    handle = register_optimizer_step_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()
        measuring.prepare, unlearning.unlearn, Context.steps = prepare, unlearn, steps


def found(device="cuda:0"):
    """Return a pretended device as `run.jobs.resolve_device` would."""
    return {"name": device, "device": device, "identity": IDENTITY, "of": 1}


def account(cell, record, models, seen, device):
    """Return what tests ask of a cell, in plain values."""
    return {
        "model": record["artifacts"].get("model"),
        "weights are saved": models is not None and (staging(models, cell) / "unet" / WEIGHTS).is_file(),
        "values": {name: entry["value"] for name, entry in record["metrics"].items()},
        "reasons": {name: entry["reason"] for name, entry in record["metrics"].items()},
        "phases": set(record["cost"]),
        "uploads": device.uploads,
        **vars(seen),
    }


def cell_job(cache, models, method, metrics, form):
    """Run a cell of a method and return what was seen of it."""
    dataset = tiny_dataset(**form)
    with pretended_cuda() as device, observed(device) as seen:
        cell, record = run_cell(cache, method, found(), channel, dataset=dataset, metrics=metrics, staged=models)
        return account(cell, record, models, seen, device)


def method_job(cache, models, method, metrics):
    """Run a method; return what was seen, and which functions made the host wait in a step after the first."""
    with pretended_cuda() as device, observed(device) as seen:
        cell, record = run_cell(cache, method, found(), channel, metrics=metrics, staged=models, steps=3)
        waits = [wait.path for wait in seen.waits if "unlearning.py:unlearn" in wait.path]
        seen = account(cell, record, models, seen, device)
        return seen, {path[0] for path in waits if not BOOKKEEPING & set(path)}


def other_device_job(cache, plugin):
    """Run a plugin on the second of two devices; return where its weights were, and what was current before."""
    with pretended_cuda(2) as device, observed(device) as seen:
        run_cell(cache, "own", found("cuda:1"), channel, plugins=[plugin])
        return seen.on, seen.watched_from


def judge_job(cache, kind):
    """Train a judge for one epoch and for two; return the waits of both, and the devices and layout of its weights."""
    dataset = tiny_dataset(flip=True)
    train = Split(*(part[:60] for part in dataset.load(ArtifactStore(cache), channel).train))
    waits = []
    for epochs in (1, 2):
        with pretended_cuda() as device:
            recipe = replace(getattr(dataset, kind), epochs=epochs, batch=20)
            model = build_classifier(dataset, recipe).to("cuda")
            device.waits.clear()
            fit_classifier(model, train, recipe, lambda done, total: None)
            waits.append(sorted(wait.path[0] for wait in device.waits))
            devices = {str(x.device) for x in model.parameters()}
    return waits, devices


def base_job(cache, bf16):
    """Train a base model for so many steps and twice as many; return the waits of both, and whether Adam was fused."""
    waits, fused = [], set()
    base_models.FIRST_CHECKPOINT_SECONDS = 1e9  # a checkpoint is a wait
    register_optimizer_step_pre_hook(lambda optimizer, *_: fused.add(optimizer.defaults["fused"]))
    for steps in (2, 4):
        dataset = tiny_dataset(flip=True, bf16=bf16)
        dataset = replace(dataset, base=replace(dataset.base, steps=steps))
        train = dataset.load(ArtifactStore(cache), channel).train
        with pretended_cuda() as device:
            base_models.train_denoiser(dataset, train, PIXELS, cache / "workspace", torch.device("cuda"), channel)
            waits.append(sorted(wait.path[0] for wait in device.waits))
    return waits, fused


def sampler_job(cache, bf16):
    """Sample in few and in more steps; return the waits of both, what a convolution made, and what came out."""
    dataset, seen, waits = tiny_dataset(unet=PAPERS), set(), []
    weights = UNet.untrained(dataset).state_dict()
    for steps in (2, 4):
        with pretended_cuda() as device:
            model = frozen(UNet.untrained(dataset), weights, torch.device("cuda"))
            model.network.conv_in.register_forward_hook(lambda *arguments: seen.add(str(arguments[2].dtype)))
            schedule = Schedule.of(device="cuda")
            device.waits.clear()
            images = sample(
                model, schedule, torch.arange(6) % 10, range(6), dataset.image_shape, null_class=10, steps=steps,
                eta=1.0, guidance=2.0, batch_size=4, bf16=bf16,
            )  # fmt: skip
            waits.append(dict(Counter(wait.path[0] for wait in device.waits)))
    return waits, seen, (type(images) is torch.Tensor, tuple(images.shape), str(images.dtype))


def bfloat16_job(cache):
    """Predict twice within one context of bfloat16, with a step of Adam between; return type and change."""
    dataset = tiny_dataset()
    with pretended_cuda():
        model = placed(UNet.untrained(dataset), torch.device("cuda"))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
        x, t = torch.ones(2, *dataset.image_shape, device="cuda"), torch.ones(2, dtype=torch.long, device="cuda")
        seen, kinds = [], set()
        model.network.conv_in.register_forward_hook(lambda *arguments: kinds.add(str(arguments[2].dtype)))
        with half_precision(x.device, wanted=True):
            for _ in range(2):
                prediction = predict_noise(model, x, t, t)
                seen.append(prediction.detach().float().cpu())
                prediction.square().mean().backward()
                optimizer.step()
        return kinds, (seen[0] - seen[1]).abs().max().item()


def rules_job(cache):
    """Break each rule of the pretended device, and return what it says."""
    said = {}

    def note(rule, break_it):
        try:
            break_it()
        except (RuntimeError, TypeError) as error:
            said[rule] = str(error)

    with pretended_cuda(2) as device:
        here, there = torch.ones(2, 3, device="cuda"), torch.ones(2, 3, device="cuda:1")
        note("mixing", lambda: here + torch.ones(2, 3))
        note("two devices", lambda: here + there)
        note("no such device", lambda: torch.ones(1, device="cuda:2"))
        note("generator of the CPU", lambda: torch.empty_like(here).normal_(generator=torch.Generator()))
        note("generator of the device", lambda: torch.randn(2, generator=torch.Generator("cuda")))
        note("numpy", here.numpy)
        note("indices on the device", lambda: torch.ones(3)[torch.zeros(1, dtype=torch.long, device="cuda")])
        weight = torch.nn.Parameter(torch.ones(2, 3, 4, 4, device="cuda").to(memory_format=torch.channels_last))
        weight.grad = torch.ones(2, 3, 4, 4, device="cuda")
        note("strides", torch.optim.Adam([weight], fused=True).step)
        waits = {}
        for name, do in {
            "arithmetic": lambda: (here * 2 + torch.tensor(1.0)).sum(),
            "item": lambda: here.sum().item(),
            "to the host": here.cpu,
            "to the device": lambda: torch.ones(2).to("cuda"),
            "unpinned, not waited for": lambda: torch.ones(2).to("cuda", non_blocking=True),
            "pinned, not waited for": lambda: torch.ones(2).pin_memory().to("cuda", non_blocking=True),
            "mask": lambda: here[here > 0],
            "indices": lambda: here[:, torch.zeros(1, dtype=torch.long, device="cuda:0")],
            "synchronize": torch.cuda.synchronize,
        }.items():
            before = len(device.waits)
            do()
            waits[name] = len(device.waits) - before
        gradient = torch.ones(2, device="cuda", requires_grad=True)
        (gradient.cpu() * torch.tensor([2.0, 3.0])).sum().backward()
        flows = type(gradient.grad) is PretendedTensor and gradient.grad.cpu().tolist() == [2.0, 3.0]
    return said, waits, flows, torch.Generator().device.type, torch.cuda.is_available()
