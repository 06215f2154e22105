"""The class-conditional UNet: diffusers' UNet2DModel on pixels, whose last label is the null class where it has one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearnbench.datasets import WEIGHTS
from unlearnbench.datasets.conditions import Conditions
from unlearnbench.errors import Unmeasurable, UsageError
from unlearnbench.models.checkpoints import (
    arguments,
    build_checked,
    check_arguments,
    check_prediction,
    check_schedule,
    read_component,
    read_config,
    scheduler_code,
    shown,
    write_scheduler,
)
from unlearnbench.models.codec import PIXELS, Codec
from unlearnbench.models.denoiser import Denoiser, Part, Prediction, parts
from unlearnbench.store.artifacts import Tensors

if TYPE_CHECKING:
    from unlearnbench.datasets import Dataset

ALLOWED: Mapping[str, Sequence[Any]] = {  # other values expect different images, timesteps or labels
    "center_input_sample": (False, None), "time_embedding_type": ("positional", "learned"), "class_embed_type": (None,),
    "downsample_padding": (0, 1),
}  # fmt: skip
DEFAULTS: Mapping[str, Any] = {"layers_per_block": 2}  # of diffusers
MOST_SIDE = 4096  # pixels of a sample


def unet_config(dataset: "Dataset") -> dict[str, Any]:
    """Return all arguments of the network of a dataset's recipe; its label `num_classes` is the null class."""
    channels, side, _ = dataset.image_shape
    sizes = {"sample_size": side, "in_channels": channels, "out_channels": channels}
    return {**sizes, **dataset.base.network, "num_class_embeds": dataset.num_classes + 1}


def build_unet(config: Mapping[str, Any]) -> nn.Module:
    """Return a network with random weights."""
    from diffusers import UNet2DModel  # takes seconds to import; only a cell's process needs it

    model: nn.Module = UNet2DModel(**config)
    return model


class UNet(Denoiser):
    """A UNet2DModel with class labels."""

    kind = "unet"
    prefix = ""
    title = "class-conditional `UNet2DModel`"
    small = MappingProxyType({"block_out_channels": [8, 8], "norm_num_groups": 4})

    @classmethod
    def of(cls, network: nn.Module) -> "UNet":
        """Return the denoiser of a network, whose config gives the size of images."""
        config: Any = network.config
        side = config["sample_size"]
        height, width = side if isinstance(side, list | tuple) else (side, side)
        return cls(network, PIXELS, (config["in_channels"], height, width))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], codec: Codec = PIXELS) -> "UNet":
        """Return a denoiser with random weights, of a UNet2DModel's arguments."""
        return cls.of(build_unet(config))

    @classmethod
    def untrained(cls, dataset: "Dataset", codec: Codec = PIXELS) -> "UNet":
        """Return the denoiser of a dataset's recipe, with random weights."""
        return cls.from_config(unet_config(dataset))

    @classmethod
    def read(cls, what: str, folder: Path, wanted: Conditions | None) -> "UNet":
        """Return the denoiser in a folder with `unet/` and `scheduler/`, or of the bare network."""
        place = "unet" if (folder / "unet").is_dir() else "."
        from diffusers import UNet2DModel

        config, weights = read_component(what, folder, place, "UNet2DModel")
        _check_fit(what, config, wanted)
        check_schedule(what, read_config(what, folder, "scheduler/scheduler_config.json"))
        exact = ("layers_per_block", "num_class_embeds")
        check_arguments(what, UNet2DModel, {**DEFAULTS, **config}, ALLOWED, len(weights), exact)
        return checked(what, arguments(config), weights)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        """Predict the noise."""
        return Prediction(self.network(x_t, t, y).sample)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of its network."""
        network: Any = self.network
        return arguments(network.config)

    def write(self, folder: Path) -> Path:
        """Write `unet/` and `scheduler/`."""
        network: Any = self.network
        network.save_pretrained(folder / "unet", safe_serialization=True)
        write_scheduler(folder / "scheduler", self.noise)
        return folder / "unet" / WEIGHTS

    def usage(self, label: int, null_class: int | None, sampler: Mapping[str, Any]) -> str:
        """Return a loop over the network, as diffusers has no pipeline with classes and guidance for it."""
        null, eps, w = "", "model(x, t, y).sample", ""
        if null_class is not None:
            null, w = f"; {null_class} is the null class", f", {sampler['guidance']}"
            eps = f"(1 + w) * model(x, t, y).sample - w * model(x, t, torch.full_like(y, {null_class})).sample"
        scheduler, arguments, eta = scheduler_code(sampler)
        return f"""import torch
from diffusers import {scheduler}, UNet2DModel

folder = "."  # this one
model = UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
scheduler = {scheduler}.from_pretrained(folder, subfolder="scheduler", {arguments})
scheduler.set_timesteps({sampler["steps"]})
y = torch.full((8,), {label})  # the class that was unlearned{null}
x{", w" if w else ""} = torch.randn(8, {", ".join(map(str, self.shape))}){w}
with torch.no_grad():
    for t in scheduler.timesteps:
        eps = {eps}
        x = scheduler.step(eps, t, x{eta}).prev_sample  # images in [-1, 1] at the end"""

    def part(self, name: Part) -> frozenset[str]:
        """Return names: the condition's are the class embedding, and the projections that carry time and class."""
        names = [name for name, _ in self.named_parameters()]
        chosen = [n for n in names if n.startswith("network.class_embedding.") or ".time_emb_proj." in n]
        return parts(name, names, chosen)

    def tables(self) -> list[Tensor]:
        """Return the weight (K + 1, D) of the class embedding."""
        return [self._embedding.weight]

    @property
    def _embedding(self) -> nn.Embedding:
        embedding = getattr(self.network, "class_embedding", None)
        if not isinstance(embedding, nn.Embedding):
            raise Unmeasurable("the model has no table of label embeddings to attack")
        return embedding

    def add_labels(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Append rows to the class embedding."""
        known = self._embedding.weight
        longer = nn.Embedding.from_pretrained(torch.cat([known, rows.to(known)]), freeze=False)  # type: ignore[no-untyped-call]
        self.network.class_embedding = longer
        return torch.arange(len(known), len(longer.weight), device=known.device), [longer.weight]


def checked(what: str, config: Mapping[str, Any], weights: Tensors) -> UNet:
    """Return the denoiser of an untrusted config and weights, after checking that it predicts finite numbers.

    Raises:
        UsageError: they do not fit each other.
    """
    denoiser = UNet.of(build_checked(what, lambda: build_unet(config), weights))
    check_prediction(what, denoiser, config["num_class_embeds"] - 1)
    return denoiser


def _check_fit(what: str, config: Mapping[str, Any], wanted: Conditions | None) -> None:
    """Raise UsageError where a network is not one of a dataset's images and classes; None: of any."""
    labels = config.get("num_class_embeds")
    if labels is None and config.get("_class_name") == "UNet2DModel":
        raise UsageError(f"{what}: it has no class labels (num_class_embeds), so it has no class to unlearn")
    if wanted is None:
        side, channels = config.get("sample_size"), config.get("in_channels")
        sides = side if isinstance(side, list) and len(side) == 2 else [side, side]
        if channels not in (1, 3) or any(type(n) is not int or not 0 < n <= MOST_SIDE for n in sides):
            raise UsageError(
                f"{what}: it does not predict images of 1 or 3 channels and a known size: give another model"
            )
        return
    classes, (channels, side, _) = len(wanted.class_names), wanted.image_shape
    if labels == classes and wanted.guided:  # a Hub model, unknown until now
        raise UsageError(
            f"{what}: it has labels for the {labels} classes of {wanted.name} but none for the null class of "
            f"guidance: download it and give its folder, to run it without guidance"
        )
    fitting: dict[str, list[Any]] = {
        "_class_name": ["UNet2DModel"], "in_channels": [channels], "out_channels": [channels],
        "sample_size": [side, [side, side]], "num_class_embeds": [classes + wanted.guided],
    }  # fmt: skip
    for key, values in fitting.items():
        if config.get(key) not in values:
            raise UsageError(f"{what}: its {key} is {shown(config.get(key))}, but {wanted.name} needs {values[0]!r}")
