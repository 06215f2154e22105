"""Attacks that try to recover forgotten classes: their interface, and shared fine-tuning.

All randomness of an attack derives from dataset, seed, forget classes and the attack's name, not from the method, so
that every method meets the same attack. "Forgotten" is the percentage of samples in which the rejecting judge sees no
forget class; all samples start from the same noise as the cell's forget samples.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice, pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from unlearnbench.errors import Unmeasurable
from unlearnbench.measure.probe import Probe
from unlearnbench.models.denoiser import Denoiser
from unlearnbench.models.diffusion import eps_loss
from unlearnbench.models.sampler import Start, ddim_steps
from unlearnbench.models.training import antithetic_timesteps, drop_labels
from unlearnbench.models.transfer import upload
from unlearnbench.plugins.spec import Score
from unlearnbench.store.hashing import derive_seed
from unlearnbench.unlearn.streams import Stream

SAMPLES = 50  # images per level of an attack: a half interval of 14 points at 50 %
BATCH = 32  # images per step
LABEL_DROPOUT = 0.1  # as in the training of every base model
CLIP = 1.0  # global gradient norm, likewise
RELEARNING_LR = 2e-4  # Adam; as in the DDIM code's training on CIFAR-10, so not unusually large
RELEARNING_STEPS = (5, 10, 20, 40, 80)  # points of the curve
BACK = 50.0  # the class is back where less than this is forgotten

__all__ = ["Attacker", "attacked", "relearning_curve"]


@dataclass(frozen=True)
class Attacker(Probe):
    """The interface of attacks: copies of the unlearned model, training images, samples and their verdicts."""

    step: ClassVar[str] = "attack"

    samples: int = SAMPLES

    def victim(self) -> Denoiser:
        """Return a new copy of the unlearned model, including hooks: trainable, in train mode.

        Raises:
            Unmeasurable: the method replaced the model's forward, which would still use the original's weights.
        """
        if any("forward" in vars(part) for part in self.model.modules()):
            raise Unmeasurable("the method replaced the model's forward, so copies of it cannot be attacked")
        return copy.deepcopy(self.model).requires_grad_(True).train()

    def embeddings(self) -> Tensor:
        """Return a copy of the model's label embedding, a row for each label and the null class: (rows, D)."""
        return self.model.embeddings()

    def with_new_labels(self, rows: Tensor) -> tuple[Denoiser, Tensor]:
        """Return a frozen copy of the model with new labels, their embeddings trainable, and these labels.

        Args:
            rows: (m, D) embeddings of the new labels.
        """
        model = self.victim().eval().requires_grad_(False)
        labels, _ = model.add_labels(rows)
        return model, labels

    def paraphrases(self, c: int) -> tuple[int, ...]:
        """Return the labels of a concept's held-out paraphrases; none where the model takes no prompts."""
        return self.dataset.conditions.paraphrases(c)

    def _seed(self, name: str) -> int:
        cell = self.cell
        return derive_seed("attack", dataset=cell.dataset, seed=cell.seed, target=cell.target.label, name=name)

    def generator(self, name: str, device: torch.device | None = None) -> torch.Generator:
        """Return the random generator of an attack, on the model's device unless another one is given."""
        return torch.Generator(device or self.device).manual_seed(self._seed(name))

    def retained(self, name: str) -> Stream:
        """Return training images of the retained classes, in an order that depends on the attack."""
        images, labels = (part.to(self.device) for part in self.prepared.kept.of(self.retained_classes))
        generator = self.generator(f"{name}, retained images", torch.device("cpu"))
        return Stream("retain", images, labels, generator, self.dataset.flip, {}, self.model.codec)

    def forget_images(self, k: int | None = None) -> tuple[Tensor, Tensor]:
        """Return k training images of every forget class, class by class in turn: x0 (n, C, H, W) and labels (n,).

        Smaller k give a prefix of larger k; None stands for the size of the smallest of these classes.

        Raises:
            Unmeasurable: a class has fewer images.
        """
        train, orders = self.prepared.train, []
        for c in self.cell.forget_classes:
            numbers = torch.from_numpy(np.flatnonzero(train.labels == c))
            random = self.generator(f"forget images of class {c}", torch.device("cpu"))
            orders.append(numbers[torch.randperm(len(numbers), generator=random)])
        least = min(map(len, orders))
        if least < (k or 1):
            raise Unmeasurable(f"the attack needs {k or 1} training images of each forget class, and one has {least}")
        chosen = torch.stack([order[: k or least] for order in orders], dim=1).flatten()
        return self.prepared.kept.x0(chosen).to(self.device), torch.from_numpy(train.labels)[chosen].to(self.device)

    @cached_property
    def before(self) -> float:
        """The percentage forgotten without an attack."""
        return self.forgotten(self.model)

    def forgotten(
        self, model: Denoiser, *, labels: Tensor | None = None, guidance: float | None = None,
        eta: float | None = None, start: Start | None = None,
    ) -> float:  # fmt: skip
        """Return the percentage of `samples` samples in which the rejecting judge sees no forget class.

        Args:
            model: to sample from; it is left in the mode it has.
            labels: (samples,) to sample; by default the forget classes in turn.
            guidance: w, if not the protocol's.
            eta: of DDIM, if not the protocol's; a protocol of another solver gives way to DDIM.
            start: of sampling, if not standard noise.
        """
        asked = list(islice(cycle(self.cell.forget_classes), self.samples))
        changed: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
        if eta is not None:
            changed |= self._noisy(eta)
        verdicts = self.verdicts(model, asked, labels=labels, start=start, **changed)
        return 100 * float(np.mean(~np.isin(verdicts, self.cell.forget_classes)))

    def _noisy(self, eta: float) -> dict[str, Any]:
        """Return the arguments of a sampler that adds noise along the way: DDIM with at least as many evaluations."""
        protocol = self.dataset.protocol
        if protocol.solver == "ddim":
            return {"eta": eta}
        return {"eta": eta, "solver": "ddim", "steps": ddim_steps(self.schedule.timesteps, 2 * protocol.steps)}

    def train(
        self, name: str, model: nn.Module, weights: Iterable[Tensor], draw: Callable[[], tuple[Tensor, Tensor]], *,
        steps: int, lr: float, label_dropout: float = LABEL_DROPOUT,
    ) -> Iterator[int]:  # fmt: skip
        """Train some weights of a model with L_eps per pixel, yielding the number of steps taken after each.

        Args:
            name: of the attack, which seeds timesteps, noise, label dropout and the model's dropout.
            model: is trained in place, in the mode it has.
            weights: to train with Adam.
            draw: returns a batch of x0 (n, C, H, W) and labels (n,).
            steps: their number.
            lr: Adam's step size.
            label_dropout: share of labels replaced by the null class.

        Raises:
            Unmeasurable: a weight became non-finite.
        """
        random, kept = self.generator(name), list(weights)
        torch.manual_seed(self._seed(name))  # dropout uses the global generator
        optimizer = torch.optim.Adam(kept, lr=lr)
        for step in range(1, steps + 1):
            self.progress("attack", step, steps)
            x0, y = draw()
            t = antithetic_timesteps(len(x0), self.schedule.timesteps, random)
            eps = torch.empty_like(x0).normal_(generator=random)
            y = drop_labels(y, label_dropout, self.null_class, random)
            loss = eps_loss(model, self.schedule, x0, y, t, eps).mean() / x0[0].numel()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(kept, CLIP)
            optimizer.step()
            if step == steps and not all(torch.isfinite(weight).all() for weight in kept):
                raise Unmeasurable("the attack's own training diverged: a weight became NaN or infinite")
            yield step


def attacked(attacker: Attacker, after: Mapping[Any, float]) -> Score:
    """Return the score of an attack at several levels: the smallest percentage forgotten.

    Args:
        attacker: of the cell.
        after: {level: percentage forgotten}; levels are JSON numbers or strings.
    """
    detail = {"before": attacker.before, "levels": list(after), "after": list(after.values())}
    return Score(min(after.values()), attacker.samples, detail)


def relearning_curve(attacker: Attacker, images: int) -> Score:
    """Return the percentage forgotten along fine-tuning of all weights; the value is that after the last step.

    Half of each batch are images of the forget classes, from a fixed set of `images` per class, with new t and noise;
    the rest, or all if `images` is 0, are retained images. `steps_until_back` is the first step on the curve with less
    than 50 % forgotten, or null; `area` is the area under the curve over steps, by trapezia, as a
    percentage of 100 % forgotten throughout.

    Args:
        attacker: of the cell.
        images: number of images of each forget class; 0 for retained images only.
    """
    name = f"relearning from {images} images"
    model, retained = attacker.victim(), attacker.retained(name)
    choice = attacker.generator(f"{name}, choice", torch.device("cpu"))
    x_f, y_f = attacker.forget_images(images) if images else (None, None)

    def draw() -> tuple[Tensor, Tensor]:
        if x_f is None or y_f is None:
            return retained.draw(BATCH)
        x_r, y_r = retained.draw(BATCH // 2)
        chosen = upload(torch.randint(len(x_f), (BATCH // 2,), generator=choice), x_f.device)
        return torch.cat([x_f[chosen], x_r]), torch.cat([y_f[chosen], y_r])

    curve = {0: attacker.before}
    last = RELEARNING_STEPS[-1]
    for step in attacker.train(name, model, model.parameters(), draw, steps=last, lr=RELEARNING_LR):
        if step in RELEARNING_STEPS:
            curve[step] = attacker.forgotten(model)
    back = next((step for step, share in curve.items() if share < BACK), None)
    area = sum((b - a) * (curve[a] + curve[b]) / 2 for a, b in pairwise(curve)) / last
    detail = {"before": attacker.before, "steps": list(curve), "after": list(curve.values()), "images": images}
    return Score(curve[last], attacker.samples, {**detail, "steps_until_back": back, "area": area})
