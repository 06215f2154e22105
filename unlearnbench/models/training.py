"""Training of denoisers: an exactly resumable loop, EMA, label dropout, augmentation."""

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor, nn

from unlearnbench.models.diffusion import Schedule, eps_loss, half_precision
from unlearnbench.models.transfer import upload
from unlearnbench.store.artifacts import Tensors

Model = TypeVar("Model", bound=nn.Module)
Draw = Callable[[int], tuple[Tensor, Tensor]]  # number of images -> (x0, y)


class Ema:
    """Exponential moving average of a model's parameters; with warm-up the decay is min(decay, (1 + k) / (10 + k))."""

    def __init__(self, model: nn.Module, decay: float, *, warm_up: bool = True) -> None:
        """Start from a copy of the model's present weights."""
        self.decay, self.warm_up, self.updates = decay, warm_up, 0
        self.shadow = [parameter.detach().clone() for parameter in model.parameters()]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warm_up else self.decay
        self.updates += 1
        torch._foreach_lerp_(self.shadow, list(model.parameters()), 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Write the average into the model."""
        torch._foreach_copy_(list(model.parameters()), self.shadow)


def drop_labels(y: Tensor, share: float, null_class: int | None, generator: torch.Generator) -> Tensor:
    """Return labels with a random share replaced by the null class (classifier-free guidance training).

    Without a null class all labels stay.
    """
    if null_class is None:
        return y
    dropped = torch.rand(y.shape, generator=generator, device=y.device) < share
    return torch.where(dropped, null_class, y)


def antithetic_timesteps(n: int, timesteps: int, generator: torch.Generator) -> Tensor:
    """Return n timesteps in [0, T), in pairs t and T - 1 - t, as the DDIM code and its descendants draw them."""
    half = torch.randint(0, timesteps, (n // 2 + 1,), generator=generator, device=generator.device)
    return torch.cat([half, timesteps - 1 - half])[:n]


class DenoiserTraining:
    """A noise predictor in training with L_eps (Ho et al. 2020, eq. 14), one step at a time, resumable.

    `tensors` holds its complete state, including random generators, so that a resumed training gives the same losses
    and weights as an uninterrupted one; on CUDA up to rounding, as cuDNN is not deterministic.
    """

    def __init__(
        self, model: nn.Module, schedule: Schedule, *, total: int, batch: int, lr: float, cosine: bool,
        label_dropout: float, ema: float, clip: float, null_class: int | None,
        generator: torch.Generator, bf16: bool = False,
    ) -> None:  # fmt: skip
        """Prepare the first step; the arguments are those of `fit_denoiser`."""
        self.model, self.schedule, self.total, self.batch = model, schedule, total, batch
        self.lr, self.cosine, self.label_dropout, self.clip = lr, cosine, label_dropout, clip
        self.null_class, self.generator, self.bf16 = null_class, generator, bf16
        self.device = next(model.parameters()).device
        fused = True if self.device.type == "cuda" else None  # on a CPU it would round differently
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=fused)
        self.average = Ema(model, ema)
        self.step = 0
        self.losses = torch.zeros(total, device=self.device)  # per step: mean squared error per pixel

    def advance(self, draw: Draw, done: float | None = None) -> None:
        """Take one optimiser step on a batch that `draw` returns.

        Args:
            draw: returns images and labels.
            done: completed share of the training, for the annealing, where it is not limited by `total` steps.
        """
        if self.cosine:
            angle = math.pi * self.step / self.total if done is None else math.pi * done
            self.optimizer.param_groups[0]["lr"] = self.lr * 0.5 * (1 + math.cos(angle))
        if self.step == len(self.losses):
            self.losses = torch.cat([self.losses, torch.zeros_like(self.losses)])
        x0, y = draw(self.batch)
        t = antithetic_timesteps(self.batch, self.schedule.timesteps, self.generator)
        eps = torch.empty_like(x0).normal_(generator=self.generator)
        labels = drop_labels(y, self.label_dropout, self.null_class, self.generator)
        with half_precision(self.device, self.bf16):
            loss = eps_loss(self.model, self.schedule, x0, labels, t, eps).mean() / x0[0].numel()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.average.update(self.model)
        self.losses[self.step] = loss.detach()
        self.step += 1

    def tensors(self) -> Tensors:
        """Return the whole state as named tensors."""
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        state |= {f"average.{k}": tensor for k, tensor in enumerate(self.average.shadow)}
        for k, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"adam.{k}.{name}": tensor for name, tensor in moments.items()}
        state |= {"random.generator": self.generator.get_state(), "random.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["random.cuda"] = torch.cuda.get_rng_state(self.device)
        return {**state, "losses": self.losses, "step": torch.tensor(self.step)}

    def restore(self, state: Tensors) -> None:
        """Take over a state that `tensors` returned."""
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
        self.step = self.average.updates = int(state["step"])
        self.losses = state["losses"].to(self.device)
        for k, shadow in enumerate(self.average.shadow):
            shadow.copy_(state[f"average.{k}"])
        adam = self.optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("adam."):
                _, number, moment = name.split(".")
                moments.setdefault(int(number), {})[moment] = tensor
        self.optimizer.load_state_dict({**adam, "state": moments})
        for parameter, kept in self.optimizer.state.items():  # moments have the memory layout of their parameter
            for name in ("exp_avg", "exp_avg_sq"):
                kept[name] = torch.empty_like(parameter).copy_(kept[name])
        self.generator.set_state(state["random.generator"])
        torch.set_rng_state(state["random.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random.cuda"], self.device)


def fit_denoiser(
    model: nn.Module,
    schedule: Schedule,
    draw: Draw,
    steps: Iterable[int],
    *,
    total: int,
    batch: int,
    lr: float,
    cosine: bool,
    label_dropout: float,
    ema: float,
    clip: float,
    null_class: int | None,
    generator: torch.Generator,
) -> None:
    """Train a noise predictor in place with L_eps (Ho et al. 2020, eq. 14) and leave its averaged weights in it.

    Args:
        model: class-conditional noise predictor.
        schedule: the forward process.
        draw: returns n images (n, C, H, W) in [-1, 1] and labels (n,).
        steps: yields once per step; the caller's iterator handles progress and timing.
        total: number of steps, for the annealing.
        batch: images per step.
        lr: Adam's step size.
        cosine: anneal it to zero along half a cosine.
        label_dropout: share of labels replaced by the null class.
        ema: decay of the averaged weights.
        clip: global gradient norm.
        null_class: label of the unconditional branch; None where the model has none.
        generator: randomness of timesteps, noise and label dropout.
    """
    model.train()
    training = DenoiserTraining(
        model, schedule, total=total, batch=batch, lr=lr, cosine=cosine, label_dropout=label_dropout, ema=ema,
        clip=clip, null_class=null_class, generator=generator,
    )  # fmt: skip
    for _ in steps:
        training.advance(draw)
    training.average.copy_to(model)


def reinitialise(model: nn.Module) -> None:
    """Initialise every layer again, as its constructor did."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()


def flipped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W), each mirrored left to right with probability 1/2."""
    return torch.where(upload(coins(len(x), generator), x.device).view(-1, 1, 1, 1), x.flip(-1), x)


def coins(n: int, generator: torch.Generator) -> Tensor:
    """Return n tosses of a coin, (n,) bool on the generator's device."""
    return torch.rand(n, generator=generator, device=generator.device) < 0.5


def global_rng_kept(device: torch.device) -> AbstractContextManager[None]:
    """Restore torch's global random state afterwards, so that building and reading an artifact leave the same state."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def trainable_copy(model: Model) -> Model:
    """Return a copy whose weights can be trained, in eval mode and without the original's hooks."""
    copied = copy.deepcopy(model).requires_grad_(True)
    copied._forward_hooks.clear()
    return copied
