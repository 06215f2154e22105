"""Text-to-image models: a diffusers StableDiffusionPipeline, whose labels are prompts.

Prompts are encoded once: a label is a row of embeddings, and the text encoder is frozen. In train mode a class stands
for one of its training prompts at random, as a data loader would choose it; in eval mode for the first. Networks that
predict v are converted: eps = sqrt(abar_t) v + sqrt(1 - abar_t) x_t (Salimans and Ho 2022, appendix D).
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearnbench.datasets import WEIGHTS
from unlearnbench.datasets.conditions import Conditions, Prompts
from unlearnbench.errors import UsageError, spell_error
from unlearnbench.models.checkpoints import (
    arguments,
    build_checked,
    check_arguments,
    check_prediction,
    own_schedule,
    read_component,
    read_config,
    scheduler_code,
    write_scheduler,
)
from unlearnbench.models.codec import Codec
from unlearnbench.models.denoiser import Denoiser, Part, Prediction, Shared, parts
from unlearnbench.models.diffusion import NOISE, Schedule
from unlearnbench.models.pipelines import TEXT_WEIGHTS, codec_in, read_files, read_vae, write_shared
from unlearnbench.models.prompts import PromptEncoder, encoder_in
from unlearnbench.store.artifacts import Tensors

if TYPE_CHECKING:
    from unlearnbench.datasets import Dataset

ALLOWED: Mapping[str, Sequence[Any]] = {  # others take more than a prompt, or other images
    "class_embed_type": (None,), "addition_embed_type": (None,), "encoder_hid_dim_type": (None,),
    "encoder_hid_dim": (None,), "time_cond_proj_dim": (None,), "num_class_embeds": (None,),
    "time_embedding_type": ("positional",), "attention_type": ("default",), "center_input_sample": (False,),
}  # fmt: skip
CROSS = ".attn2."  # cross-attention: all that sees the prompt
LAYERS = (".attn2.to_k", ".attn2.to_v")  # that are applied to its tokens


class TextToImage(Denoiser):
    """A UNet2DConditionModel with an AutoencoderKL and the encoded prompts of its concepts."""

    kind = "text"
    prefix = "unet."
    title = "text-to-image `StableDiffusionPipeline`"
    small = MappingProxyType(
        {
            "unet": {
                "block_out_channels": [8, 8], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 1, "attention_head_dim": 4,
                "norm_num_groups": 4,
            },
            "text_encoder": {
                "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "max_position_embeddings": 12,
            },
        }
    )  # fmt: skip
    context: Tensor  # (labels, tokens, D) of every prompt
    subjects: Tensor  # (2, K, D) of the last token of each concept's name, and of its anchor's

    def __init__(
        self, network: nn.Module, codec: Codec, shape: Sequence[int], noise: Mapping[str, Any], prediction: str,
        prompts: Prompts, context: Tensor, subjects: Tensor,
    ) -> None:  # fmt: skip
        """Wrap a network.

        Args:
            network: of the pipeline.
            codec: of its autoencoder.
            shape: (C, H, W) of latents.
            noise: arguments of the forward process.
            prediction: epsilon or v_prediction.
            prompts: of all labels.
            context: (labels, tokens, D) their embeddings.
            subjects: (2, K, D) embeddings of the names of concepts and anchors.
        """
        super().__init__(network, codec, shape, noise)
        self.prediction, self.prompts = prediction, prompts
        self.register_buffer("context", context)
        self.register_buffer("subjects", subjects)
        self.register_buffer("abar", Schedule.of(noise).alphas_cumprod, persistent=False)
        choices = [self.rows(label) for label in range(len(context))]
        most = max(map(len, choices))
        padded = [[*rows, *[rows[0]] * (most - len(rows))] for rows in choices]
        self.register_buffer("choices", torch.tensor(padded), persistent=False)
        self.register_buffer("counts", torch.tensor(list(map(len, choices))), persistent=False)

    abar: Tensor
    choices: Tensor  # (labels, P) rows that a label may stand for, the first of them where it has fewer
    counts: Tensor  # (labels,) their numbers

    @classmethod
    def from_config(cls, config: Mapping[str, Any], codec: Codec) -> "TextToImage":
        """Return a denoiser with random weights."""
        from diffusers import UNet2DConditionModel

        prompts = Prompts.from_json(config["prompts"])
        width = config["unet"]["cross_attention_dim"]
        context = torch.randn(len(prompts.texts), config["tokens"], width)
        return cls(
            UNet2DConditionModel(**config["unet"]), codec, config["shape"], config["noise"], config["prediction"],
            prompts, context, torch.randn(2, len(prompts.concepts), width),
        )  # fmt: skip

    @classmethod
    def codec_in(cls, tensors: Tensors) -> Codec:
        """Return the codec of the pipeline's autoencoder."""
        return codec_in(tensors)

    @classmethod
    def untrained(cls, dataset: "Dataset", codec: Codec) -> "TextToImage":
        """Return the denoiser of a dataset's recipe, with random weights and without embeddings of its prompts."""
        recipe, prompts, shape = dataset.base.network, dataset.conditions.prompts, codec.shape(dataset.image_shape)
        assert prompts is not None  # as a dataset of this kind has checked
        sizes = {"sample_size": shape[1], "in_channels": shape[0], "out_channels": shape[0]}
        unet = {**sizes, "cross_attention_dim": recipe["text_encoder"]["hidden_size"], **recipe["unet"]}
        tokens = recipe["text_encoder"]["max_position_embeddings"]
        config = {"unet": unet, "shape": shape, "noise": NOISE, "prediction": "epsilon", "tokens": tokens}
        denoiser = cls.from_config({**config, "prompts": prompts.to_json()}, codec)
        denoiser._text_recipe = recipe["text_encoder"]
        return denoiser

    _text_recipe: Mapping[str, Any]
    _trained: tuple[PromptEncoder]

    def trainee(self) -> nn.Module:
        """Train the text encoder, which is frozen then, and return the network with the embeddings of all prompts."""
        encoder = PromptEncoder.trained(self.prompts, self._text_recipe)
        self._encode(encoder)
        self._trained = (encoder,)  # in a tuple: it is no part of this module
        return WithAllPrompts(self)

    def finish(self) -> None:
        """Keep text encoder, tokenizer and autoencoder, as a pipeline of diffusers has them."""
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        autoencoder: Any = self.codec.autoencoder  # type: ignore[attr-defined]
        (encoder,) = self._trained
        scheduler = DDIMScheduler(**self.noise, clip_sample=False, set_alpha_to_one=True, steps_offset=1)
        with tempfile.TemporaryDirectory() as folder:
            StableDiffusionPipeline(
                vae=autoencoder, text_encoder=encoder.network, tokenizer=encoder.tokenizer,
                unet=self.network, scheduler=scheduler, safety_checker=None, feature_extractor=None,
                requires_safety_checker=False,
            ).save_pretrained(folder, safe_serialization=True)  # fmt: skip
            self.shared = _shared("", Path(folder), autoencoder.config["in_channels"])

    def _encode(self, encoder: PromptEncoder) -> None:
        """Set the embeddings of all prompts, and of the names of concepts and anchors."""
        names = [concept.name for concept in self.prompts.concepts]
        anchors = [concept.anchor for concept in self.prompts.concepts]
        self.context = encoder.encode(self.prompts.texts)[0].to(self.context.device)
        ends = [encoder.encode(words) for words in (names, anchors)]
        last = [embedded[torch.arange(len(names)), numbers] for embedded, numbers in ends]
        self.subjects = torch.stack(last).to(self.context.device)

    @classmethod
    def read(cls, what: str, folder: Path, wanted: Conditions | None) -> "TextToImage":
        """Return the denoiser in the folder of a StableDiffusionPipeline."""
        from diffusers import UNet2DConditionModel

        if wanted is None or wanted.prompts is None:
            raise UsageError(
                f"{what}: the concepts of this text-to-image model are unknown, as it was not saved by this package: "
                f"sample it with diffusers"
            )
        shared = _shared(what, folder, wanted.image_shape[0])
        codec, encoder = codec_in(shared), _encoder(what, folder)
        shape, width = codec.shape(wanted.image_shape), encoder.width
        config, weights = read_component(what, folder, "unet", "UNet2DConditionModel")
        allowed = {**ALLOWED, "in_channels": (shape[0],), "out_channels": (shape[0],), "cross_attention_dim": (width,)}
        check_arguments(what, UNet2DConditionModel, config, allowed, len(weights))
        noise, prediction = own_schedule(what, read_config(what, folder, "scheduler/scheduler_config.json"))
        network = build_checked(what, lambda: UNet2DConditionModel(**arguments(config)), weights)
        prompts = wanted.prompts
        empty = torch.zeros(len(prompts.texts), encoder.tokens, width), torch.zeros(2, len(prompts.concepts), width)
        denoiser = cls(network, codec, shape, noise, prediction, prompts, *empty)
        denoiser._encode(encoder)
        denoiser.shared = shared
        check_prediction(what, denoiser, len(prompts.concepts))
        return denoiser

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        """Predict the noise."""
        return self.predict(x_t, t, self._table()[self._chosen(y) if self.training else y])

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor) -> Prediction:
        """Predict the noise, given the embeddings (B, tokens, D) of prompts."""
        predicted: Tensor = self.network(x_t, t, encoder_hidden_states=context).sample
        if self.prediction == "v_prediction":
            abar = self.abar[t].to(x_t.dtype).view(-1, 1, 1, 1)
            predicted = abar.sqrt() * predicted + (1 - abar).sqrt() * x_t
        return Prediction(predicted)

    def _table(self) -> Tensor:
        """Return the embeddings of all labels, with those that were added."""
        added = getattr(self, "added", None)
        return self.context if added is None else torch.cat([self.context, added])

    def _chosen(self, y: Tensor) -> Tensor:
        """Return a row for each label, at random among those that it may stand for; added labels have one."""
        known = y.clamp(max=len(self.choices) - 1)
        random = torch.rand(y.shape, device=y.device) * self.counts[known]
        return torch.where(y < len(self.choices), self.choices[known, random.long()], y)

    @property
    def config(self) -> dict[str, Any]:
        """The network's arguments, and what surrounds it."""
        network: Any = self.network
        return {
            "unet": arguments(network.config), "shape": list(self.shape), "noise": self.noise,
            "prediction": self.prediction, "tokens": self.context.shape[1], "prompts": self.prompts.to_json(),
        }  # fmt: skip

    def write(self, folder: Path) -> Path:
        """Write a StableDiffusionPipeline."""
        network: Any = self.network
        write_shared(folder, self.shared)
        network.save_pretrained(folder / "unet", safe_serialization=True)
        write_scheduler(folder / "scheduler", self.noise, self.prediction)
        return folder / "unet" / WEIGHTS

    def usage(self, label: int, null_class: int | None, sampler: Mapping[str, Any]) -> str:
        """Return a call of the pipeline."""
        scheduler, arguments, eta = scheduler_code(sampler)
        return f"""from diffusers import {scheduler}, StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained(".")  # this folder
pipeline.scheduler = {scheduler}.from_config(pipeline.scheduler.config, {arguments})
pipeline(
    {self.prompts.texts[label]!r}, num_inference_steps={sampler["steps"]}{eta},
    guidance_scale={1 + sampler["guidance"]},
).images"""

    def part(self, name: Part) -> frozenset[str]:
        """Return names: the condition's are those of the cross-attention."""
        names = [name for name, _ in self.named_parameters()]
        return parts(name, names, [n for n in names if CROSS in n])

    def tables(self) -> list[Tensor]:
        """Return the embeddings of prompts, one row each: (labels, tokens, D)."""
        return [self.context]

    def rows(self, label: int) -> list[int]:
        """Return the labels of a concept's training prompts, or any other label."""
        return list(self.prompts.training(label)) if label < len(self.prompts.concepts) else [label]

    def add_labels(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Add prompts, given their embeddings (m, tokens * D)."""
        self.added = nn.Parameter(rows.to(self.context).view(len(rows), *self.context.shape[1:]))
        first = len(self.context)
        return torch.arange(first, first + len(rows), device=self.context.device), [self.added]

    def condition_layers(self) -> list[nn.Linear]:
        """Return the layers of keys and values of the cross-attention."""
        found = [module for name, module in self.named_modules() if name.endswith(LAYERS)]
        return [module for module in found if isinstance(module, nn.Linear)]

    def subject(self, c: int, *, anchor: bool = False) -> Tensor:
        """Return the embedding (D,) of the last token of a concept's name, or of its anchor's."""
        return self.subjects[int(anchor), c]


class WithAllPrompts(nn.Module):
    """A text-to-image model in training from the start.

    An image's prompt is one of those of its concept at random, training prompts and paraphrases alike, since what is
    held out is held out from unlearning; a share of images has a prompt that names its anchor, or nothing.
    """

    GENERAL = 0.1  # share of these

    def __init__(self, denoiser: TextToImage) -> None:
        super().__init__()
        self.denoiser = denoiser
        prompts, null = denoiser.prompts, len(denoiser.prompts.concepts)
        anchors = [prompts.anchor(c) for c in range(null)]
        wider = [[anchor] if anchor is not None and anchor > null else [] for anchor in anchors]
        self._own = [*([*prompts.training(c), *prompts.paraphrases(c)] for c in range(null)), [null]]
        self._general = [*([*labels, *prompts.unrelated_labels] for labels in wider), []]

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Prediction:
        """Predict the noise, for prompts drawn with torch's global generator."""
        chosen = []
        for label, kind, which in zip(y.tolist(), *torch.rand(2, len(y)).tolist(), strict=True):
            labels = (self._general[label] if kind < self.GENERAL else []) or self._own[label]
            chosen.append(labels[int(which * len(labels))])
        context = self.denoiser.context[torch.tensor(chosen, device=x_t.device)]
        return self.denoiser.predict(x_t, t, context)


def _shared(what: str, folder: Path, channels: int) -> Shared:
    """Return the parts of a pipeline besides its network."""
    _, encoder = read_component(what, folder, "text_encoder", "CLIPTextModel", TEXT_WEIGHTS)
    files = read_files(what, folder, ("vae", "text_encoder", "tokenizer"))
    weights = {f"text_encoder.{name}": tensor for name, tensor in encoder.items()}
    return Shared({**weights, **read_vae(what, folder, channels), **files})


def _encoder(what: str, folder: Path) -> PromptEncoder:
    try:
        return encoder_in(folder)
    except UsageError:
        raise
    except Exception as error:  # transformers raises various errors on files that do not fit
        raise UsageError(f"{what}: its text encoder cannot be read ({spell_error(error)})") from error
