"""The seam between the harness and the models that it can unlearn.

A `Denoiser` predicts the noise of x_t for a timestep and a label, whatever stands behind it: a network of class labels,
a transformer on latents, a text-to-image model whose labels are prompts. The kinds of denoisers are the modules that
`KINDS` names; nothing above this package knows which one it has.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unlearnbench.datasets.conditions import Conditions
from unlearnbench.datasets.recipes import BaseRecipe
from unlearnbench.errors import Unmeasurable
from unlearnbench.models.codec import PIXELS, Codec
from unlearnbench.models.diffusion import NOISE, Guide, Schedule
from unlearnbench.models.networks import placed
from unlearnbench.models.sampler import Start, sample
from unlearnbench.models.training import global_rng_kept
from unlearnbench.store.artifacts import Tensors

if TYPE_CHECKING:
    from unlearnbench.datasets import Dataset

KINDS: dict[str, str] = {  # name -> module:class, the choices of --model
    "unet": "unlearnbench.models.unet:UNet",
    "dit": "unlearnbench.models.dit:DiT",
    "text": "unlearnbench.models.text:TextToImage",
}
SMALL = {"block_out_channels": [4], "norm_num_groups": 2, "latent_channels": 2}  # autoencoder, for checks of plugins
Part = Literal["all", "condition", "rest"]
CPU = torch.device("cpu")
STANDARD = Start()  # standard noise at the first timestep


class Prediction(NamedTuple):
    """What a denoiser returns, named as by diffusers' networks."""

    sample: Tensor


class Shared(dict[str, Tensor]):
    """The tensors of a model that no method changes, such as those of its text encoder; all copies share them."""

    def __deepcopy__(self, memo: Mapping[int, Any]) -> "Shared":
        """Return itself."""
        return self


class Denoiser(nn.Module, ABC):
    """A conditional noise predictor: its network, which methods change, and the code of its images, which they do not.

    Attributes:
        network: of diffusers; its weights are those that methods move.
        codec: between images and x0; shared by all copies.
        shape: (C, H, W) of x0.
        noise: arguments of its forward process, in diffusers' words.
        guide: a function of a method of kind inference, whose predictions `predict_noise` returns in place of the
            model's own; copies share it, and saved models lack it.
    """

    kind: ClassVar[str]  # its name in KINDS
    prefix: ClassVar[str]  # of the names of the network's weights in `tensors`
    title: ClassVar[str]  # in words, for model cards
    has_more_labels: ClassVar[bool] = False  # whether a given one may know more classes than the dataset
    small: ClassVar[Mapping[str, Any]]  # arguments that make a recipe's network small, for checks of plugins

    def __init__(
        self, network: nn.Module, codec: Codec, shape: Sequence[int], noise: Mapping[str, Any] = NOISE
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.codec, self.shape, self.noise = network, codec, tuple(shape), dict(noise)
        self.shared = Shared()
        self.guide: Guide | None = None

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        """Predict the noise, shaped as x_t (B, C, H, W), for timesteps t (B,) and labels y (B,)."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """All arguments, as JSON, that `from_config` needs besides tensors; of the network as it is now."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any], codec: Codec) -> "Denoiser":
        """Return a denoiser with random weights and the arguments of `config`."""

    @classmethod
    def codec_in(cls, tensors: Tensors) -> Codec:
        """Return the codec that an artifact's tensors hold."""
        return PIXELS

    @classmethod
    @abstractmethod
    def untrained(cls, dataset: "Dataset", codec: Codec) -> "Denoiser":
        """Return the denoiser of a dataset's recipe, with random weights."""

    @classmethod
    @abstractmethod
    def read(cls, what: str, folder: Path, wanted: Conditions | None) -> "Denoiser":
        """Return the denoiser in a folder of diffusers' format, after checking that it fits.

        Args:
            what: begins the error messages.
            folder: in diffusers' format.
            wanted: what it must know; None for all labels that it has, and any size of images.

        Raises:
            UsageError: it cannot be read, or does not fit.
        """

    @abstractmethod
    def write(self, folder: Path) -> Path:
        """Write all that diffusers loads into an empty folder; return the file of the network's weights."""

    @abstractmethod
    def usage(self, label: int, null_class: int | None, sampler: Mapping[str, Any]) -> str:
        """Return Python code that samples a folder of `write` with diffusers alone, for a model card.

        Args:
            label: to sample.
            null_class: label of the null condition; None where there is none.
            sampler: arguments of `sampler.sample`.
        """

    @abstractmethod
    def part(self, name: Part) -> frozenset[str]:
        """Return the names of a part of the weights, as in `named_parameters`.

        Args:
            name: "condition" are the weights through which alone the condition reaches the features, "rest" all others.
        """

    @abstractmethod
    def tables(self) -> list[Tensor]:
        """Return the tensors with a row per label, of classes first and then of the null condition.

        Raises:
            Unmeasurable: a method replaced them by something else.
        """

    @abstractmethod
    def add_labels(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Add labels after the known ones; return their numbers (m,), and their trainable rows of each table.

        Args:
            rows: (m, D) of the new labels, those of all tables side by side, as of `embeddings`.
        """

    def rows(self, label: int) -> list[int]:
        """Return the rows of a label in the tables; those of a concept are all of its training prompts."""
        return [label]

    def embeddings(self) -> Tensor:
        """Return a copy of the rows of every label, (labels, D): those of all tables side by side."""
        tables = [table.detach().flatten(1) for table in self.tables()]
        side_by_side = torch.cat(tables, dim=1)
        return side_by_side[[self.rows(label)[0] for label in range(self.labels)]].clone()

    @property
    def labels(self) -> int:
        """The number of known labels, of classes, null condition and further prompts."""
        return len(self.tables()[0])

    def condition_layers(self) -> list[nn.Linear]:
        """Return the linear layers that are applied to the tokens of a prompt.

        Raises:
            Unmeasurable: the model takes no prompts.
        """
        raise Unmeasurable(f"a model of kind {self.kind} takes labels, not prompts")

    def subject(self, c: int, *, anchor: bool = False) -> Tensor:
        """Return the text encoder's output (D,) for the last token of a class's name, or of its anchor's.

        Raises:
            Unmeasurable: the model takes no prompts.
        """
        raise Unmeasurable(f"a model of kind {self.kind} takes labels, not prompts")

    def trainee(self) -> nn.Module:
        """Return the module to be trained from the start, whose forward is that of a denoiser."""
        return self

    def finish(self) -> None:
        """Take over what belongs to a model that was trained, besides its network."""

    def tensors(self) -> Tensors:
        """Return all tensors that a method may change, on the CPU: weights, and the embeddings of prompts."""
        state = self.state_dict()
        return {self._public(name): tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over tensors of the names of `tensors`. Raises RuntimeError where they do not fit."""
        known = {self._public(name): name for name in self.state_dict()}
        self.load_state_dict({known.get(name, name): tensor for name, tensor in tensors.items()})

    def _public(self, name: str) -> str:
        return f"{self.prefix}{name.removeprefix('network.')}" if name.startswith("network.") else name

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return next(self.parameters()).device

    @property
    def schedule(self) -> Schedule:
        """Its forward process, on its device."""
        return Schedule.of(self.noise, self.device)

    def rebuilt(self, tensors: Tensors, config: Mapping[str, Any], device: torch.device) -> "Denoiser":
        """Return another denoiser with the same codec: frozen, on a device; global random states stay unchanged."""
        with global_rng_kept(device):  # its first weights are random
            other = type(self).from_config(config, self.codec)
        other.shared = self.shared
        return ready(other, tensors, device)

    def draw(
        self, labels: Tensor, seeds: Sequence[int], *, null_class: int | None, start: Start = STANDARD,
        progress: Callable[[int], None] = lambda done: None, **sampler: Any,
    ) -> Tensor:  # fmt: skip
        """Return one image per label, (N, C, H, W) uint8 on the CPU; arguments as of `sampler.sample`."""
        return sample(
            self, self.schedule, labels, seeds, self.shape, null_class=null_class, start=start, progress=progress,
            decode=self.codec.decode, **sampler,
        )  # fmt: skip


def denoiser_class(kind: str) -> type[Denoiser]:
    """Return the class of a kind of denoiser."""
    module, name = KINDS[kind].split(":")
    found: type[Denoiser] = getattr(importlib.import_module(module), name)
    return found


def untrained(dataset: "Dataset", codec: Codec) -> Denoiser:
    """Return the denoiser of a dataset's recipe, with random weights."""
    return denoiser_class(dataset.base.kind).untrained(dataset, codec)


def small_recipe(recipe: BaseRecipe) -> BaseRecipe:
    """Return a recipe with networks of a few thousand weights."""
    network = {**recipe.network, **denoiser_class(recipe.kind).small}
    return replace(
        recipe, network=network, autoencoder=recipe.autoencoder and replace(recipe.autoencoder, network=SMALL)
    )


def ready(denoiser: Denoiser, tensors: Mapping[str, Tensor], device: torch.device) -> Denoiser:
    """Return a denoiser with these tensors: on a device, in eval mode, without gradients."""
    denoiser.load(tensors)
    return placed(denoiser, device).eval().requires_grad_(False)


def described(denoiser: Denoiser) -> dict[str, Any]:
    """Return the facts of an artifact from which `restored` builds the denoiser again."""
    return {denoiser.kind: denoiser.config}


def restored(facts: Mapping[str, Any], tensors: Tensors, device: torch.device) -> Denoiser:
    """Return the denoiser of an artifact, frozen, on a device; the tensors are its own and the shared ones."""
    kind = next(kind for kind in KINDS if kind in facts)
    found = denoiser_class(kind)
    denoiser = found.from_config(facts[kind], found.codec_in(tensors))
    own = denoiser.tensors().keys()
    denoiser.shared = Shared({name: tensor for name, tensor in tensors.items() if name not in own})
    return ready(denoiser, {name: tensor for name, tensor in tensors.items() if name in own}, device)


def parts(name: Part, names: Sequence[str], condition: Sequence[str]) -> frozenset[str]:
    """Return a part of the names of weights, given those of the condition."""
    chosen = {"all": set(names), "condition": set(condition), "rest": set(names) - set(condition)}
    return frozenset(chosen[name])
