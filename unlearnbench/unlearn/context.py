"""The interface of an unlearning method.

A method gets a `Context` and edits `ctx.model` in place. Device, seeds, checkpoints, progress, judges and test images
are hidden from it; the harness counts, times and checks its work.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from unlearnbench.errors import NonFiniteError, PluginError
from unlearnbench.models.denoiser import Part
from unlearnbench.models.diffusion import predict_noise
from unlearnbench.models.networks import compile_blocks
from unlearnbench.models.training import antithetic_timesteps, drop_labels, trainable_copy
from unlearnbench.store.artifacts import Artifact, Tensors
from unlearnbench.store.hashing import derive_seed
from unlearnbench.unlearn.harness import Harness
from unlearnbench.unlearn.priors import charge_prior, prior_artifact
from unlearnbench.unlearn.streams import Stream
from unlearnbench.unlearn.terms import Term

METHOD = "forget"  # the purpose of a method's own context; all others belong to priors
FINITE_CHECK_EVERY = 50  # steps; each check waits for the device
LOG_POINTS = 50  # points kept per logged curve


class Context:
    """The models, images and randomness that a method uses.

    Attributes:
        model: the copy to unlearn, trainable, in train mode; `predict(x_t, t, y)` is its noise prediction.
        base: the frozen original, in eval mode; `predict_noise(ctx.base, x_t, t, y)` is its noise prediction.
        schedule: the forward process; `schedule.add_noise(x0, eps, t)`, `schedule.timesteps`.
        num_classes: K; labels are 0 to K - 1.
        null_class: the label of the unconditional branch.
        generator: for all the method's randomness, on the model's device.
    """

    def __init__(self, harness: Harness, purpose: str = METHOD, shared: bool = False) -> None:
        """Make the context of a method, or of one of its priors.

        Args:
            harness: its resources.
            purpose: names the use of randomness, for a separate seed.
            shared: the context of a prior that may not depend on the forget class.
        """
        self._harness, self._shared = harness, shared
        parts: dict[str, Any] = {"seed": harness.seed, "method": harness.method}
        if not shared:
            first, *further = harness.target.classes
            several = {"further": further, "earlier": harness.target.earlier}
            parts |= {"forget_class": first, **{name: value for name, value in several.items() if value}}
        seed = derive_seed(purpose, **parts)
        torch.manual_seed(seed)  # dropout uses the global generator
        self.generator = torch.Generator(harness.device).manual_seed(seed)
        self.base = harness.base
        self.model = trainable_copy(harness.base).train()
        if harness.dataset.compiled:
            compile_blocks(self.model.network)
        self.watching = harness.counts.watch(self.model)  # the harness stops it when the method is done
        self.schedule = harness.base.schedule
        self.num_classes = harness.dataset.num_classes
        self._purpose, self._seed = purpose, seed
        self._streams: dict[str, Stream] = {}
        self._step, self._log_every, self._sampled = 0, 1, 0

    @property
    def null_class(self) -> int:
        """The label of the unconditional branch."""
        label = self._harness.dataset.null_class
        if label is None:
            raise PluginError(f"{self._harness.method} needs the null class, which this base model lacks")
        return label

    @property
    def forget_classes(self) -> tuple[int, ...]:
        """The classes to unlearn, mostly one; their images are the stream `forget`."""
        if self._shared:
            raise PluginError(f"{self._harness.method}: a shared prior must not depend on the forget class")
        return self._harness.target.classes

    @property
    def forget_class(self) -> int:
        """The class to unlearn, where there is one.

        Raises:
            PluginError: there are several.
        """
        if len(self.forget_classes) > 1:
            raise PluginError(
                f"{self._harness.method} asks for ctx.forget_class, but {len(self.forget_classes)} classes are to be "
                f"forgotten at once: use ctx.forget_classes, or the labels that ctx.forget draws"
            )
        return self.forget_classes[0]

    @property
    def retained_classes(self) -> tuple[int, ...]:
        """The classes to keep, forgotten neither now nor earlier; their images are the stream `retain`."""
        _ = self.forget_classes  # a shared prior must not depend on them
        return self._harness.target.retained(self.num_classes)

    @property
    def forget(self) -> Stream:
        """Training images of the forget class."""
        return self._stream("forget")

    @property
    def retain(self) -> Stream:
        """Training images of the retained classes."""
        return self._stream("retain")

    def _stream(self, name: str) -> Stream:
        harness = self._harness
        if name not in harness.streams:
            declared = ", ".join(sorted(harness.streams)) or "none"
            raise PluginError(
                f"{harness.method} draws from ctx.{name} but declares streams: {declared}; "
                f"add {name!r} to @method(streams=...)"
            )
        if name not in self._streams:
            classes = self.forget_classes if name == "forget" else self.retained_classes
            images, labels = (part.to(harness.device) for part in harness.kept.of(classes))
            generator = torch.Generator().manual_seed(derive_seed(f"stream {name}", context=self._seed))
            self._streams[name] = Stream(
                name, images, labels, generator, harness.dataset.flip, harness.counts.drawn, harness.base.codec
            )
        return self._streams[name]

    def steps(self, n: int) -> Iterator[int]:
        """Yield 0 to n - 1, for the method's loop. The harness reports progress and stops on non-finite weights.

        Raises:
            NonFiniteError: a weight of the model is NaN or infinite.
            ValueError: n is negative.
        """
        if n < 0:
            raise ValueError(f"{n} steps cannot be taken: give 0 or more")
        self._log_every = max(1, n // LOG_POINTS)
        for step in range(n):
            self._step = step
            self._harness.progress(self._purpose, step, n)
            yield step
            if (step + 1) % FINITE_CHECK_EVERY == 0 or step + 1 == n:
                with self._harness.meter.paused():
                    self.check_finite()

    def check_finite(self) -> None:
        """Raise NonFiniteError if a weight of the model is NaN or infinite."""
        norms = torch.stack(torch._foreach_norm([p.detach() for p in self.model.parameters()]))
        if not torch.isfinite(norms).all():
            raise NonFiniteError(f"a weight became NaN or infinite by step {self._step + 1}")

    def log(self, **scalars: Tensor | float) -> None:
        """Keep named scalars of this step for the record; about 50 points per curve are kept, so calls are cheap.

        Raises:
            NonFiniteError: a value is NaN or infinite.
        """
        if self._step % self._log_every:
            return
        with self._harness.meter.paused():
            for name, scalar in scalars.items():
                value = float(scalar.detach()) if isinstance(scalar, Tensor) else float(scalar)
                if not math.isfinite(value):
                    raise NonFiniteError(f"{name} is {value} at step {self._step}")
                self._harness.curves.setdefault(name, []).append((self._step, value))

    def noise_like(self, x: Tensor) -> Tensor:
        """Return standard Gaussian noise shaped as x."""
        return torch.empty_like(x).normal_(generator=self.generator)

    def timesteps(self, n: int) -> Tensor:
        """Return n random timesteps in [0, T), antithetic as in the SA and SalUn code."""
        return antithetic_timesteps(n, self.schedule.timesteps, self.generator)

    def drop_labels(self, y: Tensor, share: float) -> Tensor:
        """Return labels with a random share replaced by the null class; unchanged where there is none."""
        return drop_labels(y, share, self._harness.dataset.null_class, self.generator)

    def predict(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the noise (B, C, H, W) that `ctx.model` predicts, for custom losses.

        Args:
            x_t: (B, C, H, W) noised images, `ctx.schedule.add_noise(x0, eps, t)`.
            t: (B,) int64 timesteps in [0, T), such as `ctx.timesteps(B)`.
            y: (B,) int64 classes; `ctx.null_class` for an unconditional prediction.
        """
        return predict_noise(self.model, x_t, t, y)

    def part(self, name: Part) -> frozenset[str]:
        """Return the names of a part of `ctx.model`'s weights, as in `named_parameters`.

        Args:
            name: "all"; "condition": the weights through which alone the condition reaches the features; "rest".
        """
        return self.model.part(name)

    def anchor(self, c: int) -> int:
        """Return the label of a forget class's anchor: the one its concept declares, or the next retained class."""
        return self._harness.dataset.conditions.anchor(c, self.retained_classes)

    def requests(self, c: int) -> tuple[int, ...]:
        """Return the labels that ask for a class: itself or, of a concept, its training prompts."""
        return self._harness.dataset.conditions.requests(c)

    def subject(self, c: int) -> Tensor:
        """Return the text encoder's output (D,) for the last token of a concept's name."""
        return self._with_prompts().base.subject(c)

    def anchor_subject(self, c: int) -> Tensor:
        """Return the same for the name of its anchor."""
        return self._with_prompts().base.subject(c, anchor=True)

    def condition_layers(self) -> list[nn.Linear]:
        """Return the linear layers of `ctx.model` that are applied to the tokens of a prompt."""
        return self._with_prompts().model.condition_layers()

    def _with_prompts(self) -> "Context":
        """Return itself.

        Raises:
            PluginError: the model takes no prompts.
        """
        if self._harness.dataset.prompts is None:
            raise PluginError(
                f"{self._harness.method} asks how the model reads prompts, but it takes class labels: declare "
                f'requires=("prompts",)'
            )
        return self

    def eps_term(self, x0: Tensor, y: Tensor, *, label_dropout: float = 0.0) -> Term:
        """Return L_eps as a term for `backward`: with new t and noise, summed over pixels, averaged over the batch."""
        t, eps = self.timesteps(len(x0)), self.noise_like(x0)
        return Term(self.schedule.add_noise(x0, eps, t), t, self.drop_labels(y, label_dropout), eps)

    def eps_loss(self, x0: Tensor, y: Tensor, *, label_dropout: float = 0.0) -> Tensor:
        """Return L_eps of `ctx.model`, a scalar: the loss of `eps_term`, with its graph."""
        term = self.eps_term(x0, y, label_dropout=label_dropout)
        return term.loss(self.predict(term.x_t, term.t, term.y))

    def sample(self, labels: Tensor, *, dropout: bool = False) -> Tensor:
        """Return x0 of one base-model image per label (N,), by the protocol's sampler: (N, C, H, W).

        Args:
            labels: classes.
            dropout: leave the model's dropout on, as SA's code does by mistake.
        """
        harness, protocol = self._harness, self._harness.dataset.protocol
        numbers = range(self._sampled, self._sampled + len(labels))
        self._sampled += len(labels)
        harness.counts.sampled_images += len(labels)
        seeds = [derive_seed("replay", context=self._seed, index=number) for number in numbers]
        images = self.base.draw(
            labels, seeds, null_class=harness.dataset.null_class, **{**protocol.sampler, "dropout": dropout},
            progress=lambda done: harness.progress(self._purpose, done, len(labels) * protocol.steps),
        )  # fmt: skip
        return self.base.codec.encode(images.to(harness.device))

    def prior(self, name: str, build: Callable[..., Tensors], *, shared: bool = False, **inputs: Any) -> Tensors:
        """Return the result of `build(ctx, **inputs)`: timed as phase `prior`, cached, charged at its original cost.

        The build gets a separate context, with an untouched model in eval mode, and must depend only on that context
        and its inputs.

        Args:
            name: of the prior, within the method.
            build: returns named tensors.
            shared: whether all forget classes use the same one; it must not draw from a stream then.
            **inputs: JSON values, tensors, or tensors of another prior; all of them are part of the cache key.
        """
        harness = self._harness
        with harness.meter.phase("load"):
            artifact = self._prior_artifact(name, build, shared, inputs)
            charge_prior(harness, name, artifact, shared=shared)
            return {tensor: value.to(harness.device) for tensor, value in artifact.tensors.items()}

    def _prior_artifact(
        self, name: str, build: Callable[..., Tensors], shared: bool, inputs: Mapping[str, Any]
    ) -> Artifact:
        """Return a prior, from the cache or built."""
        if self._purpose != METHOD:
            method = self._harness.method
            raise PluginError(f"{method}: the prior {name} is requested inside another prior: pass it as an input")

        def make() -> Tensors:
            return self._build(name, build, shared, inputs)

        return prior_artifact(self._harness, name, make, inputs, shared=shared)

    def _build(self, name: str, build: Callable[..., Tensors], shared: bool, inputs: Mapping[str, Any]) -> Tensors:
        """Build a prior with a separate context."""
        context = Context(replace(self._harness, curves={}), purpose=f"prior {name}", shared=shared)
        context.model.eval()
        return build(context, **inputs)


class _Enough(BaseException):
    """Ends a rehearsal. Not an Exception, which a method may catch."""


class Rehearsal(Context):
    """A context that ends after the method's first step, and does not charge its priors."""

    def steps(self, n: int) -> Iterator[int]:
        """Yield 0, and then end the method."""
        yield from range(min(n, 1))
        raise _Enough

    def prior(self, name: str, build: Callable[..., Tensors], *, shared: bool = False, **inputs: Any) -> Tensors:
        """Return the prior, which stays in the cache for the method's own context."""
        with self._harness.meter.phase("load"):
            artifact = self._prior_artifact(name, build, shared, inputs)
            return {tensor: value.to(self._harness.device) for tensor, value in artifact.tensors.items()}

    def run(self, function: Callable[..., object], settings: Mapping[str, Any]) -> None:
        """Run a method up to the end of its first step."""
        with suppress(_Enough):
            function(self, **settings)


@contextmanager
def counted(harness: Harness, context: Context) -> Iterator[None]:
    """Count the steps of every torch optimiser and the images through both models, while the method runs."""

    def count(*_: Any) -> None:
        harness.counts.optimizer_steps += 1

    handles = [register_optimizer_step_post_hook(count), harness.counts.watch(harness.base), context.watching]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
