"""The class-conditional diffusion transformer on latents (Peebles and Xie 2023): a diffusers DiTPipeline.

Every block has a table of class embeddings of its own; the last row is the null class. A network that predicts
variances too has twice the channels, of which the first half is the noise. Guidance is applied to all latent channels,
as in diffusers (the original code guides the first three).
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearnbench.datasets import WEIGHTS
from unlearnbench.datasets.conditions import Conditions
from unlearnbench.errors import Unmeasurable, UsageError, one_line
from unlearnbench.models.checkpoints import (
    arguments,
    build_checked,
    check_arguments,
    check_prediction,
    own_schedule,
    read_component,
    read_config,
    scheduler_code,
    shown,
    write_scheduler,
)
from unlearnbench.models.codec import Codec
from unlearnbench.models.denoiser import Denoiser, Part, Prediction, Shared, parts
from unlearnbench.models.diffusion import NOISE
from unlearnbench.models.pipelines import INDEX, codec_in, read_files, read_vae, write_shared
from unlearnbench.store.artifacts import Tensors

if TYPE_CHECKING:
    from unlearnbench.datasets import Dataset

ALLOWED: Mapping[str, Sequence[Any]] = {
    "norm_type": ("ada_norm_zero",), "num_vector_embeds": (None,), "cross_attention_dim": (None,),
}  # fmt: skip
EXACT = ("num_layers", "num_attention_heads", "attention_head_dim", "patch_size", "in_channels", "sample_size")
CONDITION = (".norm1.emb.", ".norm1.linear.", ".proj_out_1.")  # class and time, and their way to the features


class DiT(Denoiser):
    """A DiTTransformer2DModel with an AutoencoderKL."""

    kind = "dit"
    prefix = "transformer."
    title = "class-conditional `DiTPipeline`"
    has_more_labels = True
    small = MappingProxyType({"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "patch_size": 2})

    def __init__(
        self, network: nn.Module, codec: Codec, shape: Sequence[int], noise: Mapping[str, Any],
        rows: Sequence[int], names: Sequence[str],
    ) -> None:  # fmt: skip
        """Wrap a transformer.

        Args:
            network: the transformer.
            codec: of the autoencoder.
            shape: (C, H, W) of latents.
            noise: arguments of the forward process.
            rows: of its class tables, one for each label, the null class last.
            names: of the classes.
        """
        super().__init__(network, codec, shape, noise)
        self._names = tuple(names)
        self.register_buffer("row_of", torch.tensor(rows), persistent=False)
        for embedder in self._embedders():
            embedder.dropout_prob = 0.0  # labels are dropped by those who train

    row_of: Tensor

    def _embedders(self) -> list[Any]:
        blocks: Any = self.network.transformer_blocks
        return [block.norm1.emb.class_embedder for block in blocks]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], codec: Codec) -> "DiT":
        """Return a denoiser with random weights."""
        from diffusers import DiTTransformer2DModel

        network = DiTTransformer2DModel(**config["transformer"])
        return cls(network, codec, config["shape"], config["noise"], config["rows"], config["names"])

    @classmethod
    def codec_in(cls, tensors: Tensors) -> Codec:
        """Return the codec of the pipeline's autoencoder."""
        return codec_in(tensors)

    @classmethod
    def untrained(cls, dataset: "Dataset", codec: Codec) -> "DiT":
        """Return the denoiser of a dataset's recipe, with random weights."""
        shape, names = codec.shape(dataset.image_shape), dataset.class_names
        sizes = {"sample_size": shape[1], "in_channels": shape[0], "out_channels": shape[0]}
        transformer = {**sizes, "num_embeds_ada_norm": len(names), **dataset.base.network}
        rows = list(range(len(names) + 1))
        config = {"transformer": transformer, "shape": shape, "noise": NOISE, "rows": rows, "names": names}
        return cls.from_config(config, codec)

    def finish(self) -> None:
        """Keep the autoencoder, as a pipeline of diffusers has it."""
        from diffusers import DDIMScheduler, DiTPipeline

        names = {str(label): name for label, name in enumerate(self._names)}
        with tempfile.TemporaryDirectory() as folder:
            scheduler = DDIMScheduler(**self.noise, clip_sample=False, set_alpha_to_one=True)
            autoencoder: Any = self.codec.autoencoder  # type: ignore[attr-defined]
            pipeline = DiTPipeline(self.network, autoencoder, scheduler)  # which would not write the names
            pipeline.save_pretrained(folder, safe_serialization=True)
            index = Path(folder) / INDEX
            index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": names}, indent=2))
            self.shared = _shared("", Path(folder), autoencoder.config["in_channels"])

    @classmethod
    def read(cls, what: str, folder: Path, wanted: Conditions | None) -> "DiT":
        """Return the denoiser in the folder of a DiTPipeline."""
        from diffusers import DiTTransformer2DModel

        config, weights = read_component(what, folder, "transformer", "DiTTransformer2DModel")
        exact = [*EXACT, "num_embeds_ada_norm"]
        check_arguments(
            what, DiTTransformer2DModel, config, ALLOWED, max(len(weights), _largest(weights)), exact
        )  # fmt: skip
        channels, classes = config["in_channels"], config["num_embeds_ada_norm"]
        if config.get("out_channels", channels) not in (channels, 2 * channels, None):
            raise UsageError(
                f"{what}: its out_channels is {shown(config['out_channels'])}, not {channels} or twice that"
            )
        noise, prediction = own_schedule(what, read_config(what, folder, "scheduler/scheduler_config.json"))
        if prediction != "epsilon":
            raise UsageError(f"{what}: it predicts {prediction}, but a DiT needs epsilon: give another checkpoint")
        shared = _shared(what, folder, None if wanted is None else wanted.image_shape[0])
        codec = codec_in(shared)
        network = build_checked(what, lambda: DiTTransformer2DModel(**arguments(config)), weights)
        shape = (channels, config["sample_size"], config["sample_size"])
        _check_images(what, codec, shape, wanted)
        known = _class_names(what, folder, classes)
        rows = list(range(classes)) if wanted is None else _rows(what, known, wanted)
        names = known if wanted is None else wanted.class_names
        denoiser = cls(network, codec, shape, noise, [*rows, classes], names)
        denoiser.shared = shared
        check_prediction(what, denoiser, len(rows))
        return denoiser

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        """Predict the noise."""
        predicted: Tensor = self.network(x_t, timestep=t, class_labels=self.row_of[y]).sample
        return Prediction(predicted[:, : x_t.shape[1]])

    @property
    def config(self) -> dict[str, Any]:
        """The transformer's arguments, and what surrounds it."""
        network: Any = self.network
        return {
            "transformer": arguments(network.config), "shape": list(self.shape), "noise": self.noise,
            "rows": self.row_of.tolist(), "names": list(self._names),
        }  # fmt: skip

    def write(self, folder: Path) -> Path:
        """Write a DiTPipeline."""
        network: Any = self.network
        write_shared(folder, self.shared)
        network.save_pretrained(folder / "transformer", safe_serialization=True)
        write_scheduler(folder / "scheduler", self.noise)
        return folder / "transformer" / WEIGHTS

    def usage(self, label: int, null_class: int | None, sampler: Mapping[str, Any]) -> str:
        """Return a loop over the parts of the pipeline, whose own guidance takes label 1000 for the null class."""
        null = int(self.row_of[-1])
        scheduler, arguments, eta = scheduler_code(sampler)
        return f"""import torch
from diffusers import {scheduler}, DiTPipeline

pipeline = DiTPipeline.from_pretrained(".")  # this folder
model, vae = pipeline.transformer, pipeline.vae
scheduler = {scheduler}.from_config(pipeline.scheduler.config, {arguments})
scheduler.set_timesteps({sampler["steps"]})
y = torch.full((8,), {int(self.row_of[label])})  # the class that was unlearned; {null} is the null class
x, w = torch.randn(8, {", ".join(map(str, self.shape))}), {sampler["guidance"]}
with torch.no_grad():
    for t in scheduler.timesteps:
        predicted, null = (model(x, t.expand(8), labels).sample[:, :{self.shape[0]}] for labels in (y, y * 0 + {null}))
        x = scheduler.step((1 + w) * predicted - w * null, t, x{eta}).prev_sample
    images = vae.decode(x / vae.config.scaling_factor).sample  # in [-1, 1]"""

    def part(self, name: Part) -> frozenset[str]:
        """Return names: the condition's are the class and time embeddings, and the modulations computed from them."""
        names = [name for name, _ in self.named_parameters()]
        return parts(name, names, [n for n in names if any(words in n for words in CONDITION)])

    def tables(self) -> list[Tensor]:
        """Return the weights of every block's class embedding."""
        found: list[Any] = [getattr(embedder, "embedding_table", None) for embedder in self._embedders()]
        if not all(isinstance(table, nn.Embedding) for table in found):
            raise Unmeasurable("the model has no table of label embeddings to attack")
        return [table.weight for table in found]

    def rows(self, label: int) -> list[int]:
        """Return the row of a label."""
        return [int(self.row_of[label])]

    @property
    def labels(self) -> int:
        """The number of known labels."""
        return len(self.row_of)

    def add_labels(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Append rows to every block's class embedding."""
        tables, first = self.tables(), len(self.row_of)
        begin, longer = len(tables[0]), []
        parts_of_rows = torch.split(rows, [table.shape[1] for table in tables], dim=1)
        for embedder, table, new in zip(self._embedders(), tables, parts_of_rows, strict=True):
            embedding = nn.Embedding.from_pretrained(torch.cat([table, new.to(table)]), freeze=False)  # type: ignore[no-untyped-call]
            embedder.embedding_table = embedding
            longer.append(embedding.weight)
        added = torch.arange(begin, begin + len(rows), device=self.row_of.device)
        self.row_of = torch.cat([self.row_of, added])
        return torch.arange(first, len(self.row_of), device=self.row_of.device), longer


def _shared(what: str, folder: Path, channels: int | None) -> Shared:
    """Return the parts of a pipeline besides its transformer."""
    return Shared({**read_vae(what, folder, channels), **read_files(what, folder, ("vae",))})


def _largest(weights: Tensors) -> int:
    return max((max(tensor.shape, default=0) for tensor in weights.values()), default=0)


def _class_names(what: str, folder: Path, classes: int) -> tuple[str, ...]:
    """Return the names of a pipeline's classes, empty where it does not say them."""
    index = read_config(what, folder, INDEX) or {}
    known = index.get("id2label")
    known = known if isinstance(known, dict) else {}
    return tuple(one_line(str(known.get(str(label), "")), 200) for label in range(classes))


def _rows(what: str, known: Sequence[str], wanted: Conditions) -> list[int]:
    """Return the label of each wanted class in a pipeline of more classes.

    Raises:
        UsageError: a class is unknown.
    """
    if wanted.labels:
        if outside := [label for label in wanted.labels if label >= len(known)]:
            raise UsageError(f"{what}: --labels names label {outside[0]}, but it has {len(known)} classes")
        return list(wanted.labels)
    if len(wanted.class_names) == len(known):
        return list(range(len(known)))
    names = {part.strip().casefold(): label for label, words in enumerate(known) for part in words.split(",")}
    if lacking := [name for name in wanted.class_names if name.casefold() not in names]:
        raise UsageError(
            f"{what}: it has {len(known)} classes, none of which is called {shown(lacking[0])}: give the label of each "
            f"class of {wanted.name} with --labels NAME=LABEL,..."
        )
    return [names[name.casefold()] for name in wanted.class_names]


def _check_images(what: str, codec: Codec, shape: tuple[int, ...], wanted: Conditions | None) -> None:
    """Raise UsageError where latents of this shape are not those of the wanted images."""
    if wanted is not None and (found := codec.shape(wanted.image_shape)) != shape:
        raise UsageError(
            f"{what}: its latents have the shape {shape}, but those of images of {wanted.name}, {wanted.image_shape}, "
            f"{found}: give --image-size, or another model"
        )
