"""Recipes as data: the training of a dataset's base model and judges, and its protocols."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from unlearnbench.store.cell import SOLVERS, Precision, SolverName
from unlearnbench.store.records import B4

RETAINED = "all training images of the retained classes"
WITHOUT_CLASS_0 = "the first 500 training images of every class but 0 and the forget class (as SalUn's code does)"


ExtractorChoice = Literal["inception", "own"]
PIPELINES = {"DiTPipeline": "dit", "StableDiffusionPipeline": "text"}  # diffusers' pipelines and kinds of models
PROMPTED = frozenset({"text"})  # kinds of models that take prompts
LATENT = frozenset({"dit", "text"})  # kinds on latents, which are not in [-1, 1], so that x0 is never clipped
LEAST_STEPS, MOST_EPOCHS = 600, 30  # of a judge on few images: so many steps, in no more epochs


@dataclass(frozen=True)
class Protocol:
    """The fixed rules of evaluation; recorded in every result, and tables never mix two."""

    name: str
    steps: int  # sampling steps
    eta: float  # of DDIM: 0 deterministic, 1 ancestral
    guidance: float  # w; 0 is conditional only
    forget_samples: int  # images of the forget class
    retain_samples: int  # images of each retained class; raised where there are few classes
    batch_size: int  # images per sampling forward pass; the images do not depend on it
    precision: Precision = "fp32"  # of sampling on CUDA; a CPU always computes in fp32
    solver: SolverName = "ddim"  # or DPM-Solver++(2M)
    clip_x0: bool = False  # clip the predicted x0 to [-1, 1] at every step; the papers' code does not
    dropout: bool = False  # left on while sampling, as SA's code does by mistake
    weights: str = "final"  # the weights a method leaves in ctx.model
    reference: str = RETAINED  # the images FID compares with: RETAINED or WITHOUT_CLASS_0

    def to_json(self) -> dict[str, Any]:
        """Return the protocol as a JSON object; DDIM goes without saying."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("solver", "ddim")}

    @property
    def words(self) -> str:
        """The sampler in a few words."""
        eta = f", eta {self.eta}" if self.solver == "ddim" else ""
        clipped = ", x0 clipped to [-1, 1] at every step" if self.clip_x0 else ""
        return f"{SOLVERS[self.solver]}, {self.steps} steps{eta}, guidance w {self.guidance}{clipped}"

    @property
    def family(self) -> str:
        """The protocol that this one is a compatibility variant of, or its own name."""
        return self.name.removesuffix(B4)

    @property
    def sampler(self) -> dict[str, Any]:
        """The arguments of `models.sampler.sample` that it fixes; images and sampling time depend on them."""
        names = ("solver", "steps", "eta", "guidance", "clip_x0", "dropout", "batch_size")
        return {**{name: getattr(self, name) for name in names}, "bf16": self.precision == "bf16"}


@dataclass(frozen=True)
class AutoencoderRecipe:
    """How the autoencoder of a model on latents is trained."""

    network: dict[str, Any]  # arguments of diffusers.AutoencoderKL but sizes, which the images give
    steps: int  # optimiser steps
    batch: int  # images per step
    lr: float  # Adam's step size, annealed to zero along half a cosine
    kl: float  # weight of the KL divergence per pixel, beside the absolute error per pixel
    clip: float = 1.0  # global gradient norm
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class BaseRecipe:
    """How the base model is trained; all of it is part of the artifact's key."""

    network: dict[str, Any]  # arguments of diffusers' networks but sizes and labels, which the images give
    steps: int  # optimiser steps
    batch: int  # images per step
    lr: float  # Adam's step size
    cosine: bool  # anneal lr to zero along half a cosine
    label_dropout: float  # share of labels replaced by the null class
    ema: float  # decay of the averaged weights, min(ema, (1 + k) / (10 + k)) at step k
    clip: float  # global gradient norm
    precision: Precision = "fp32"  # of the forward pass on CUDA; a CPU always computes in fp32
    seed: int = 0
    revision: int = 1  # raise it when training code changes the result
    minutes: float | None = None  # training time, instead of a number of steps
    kind: str = "unet"  # of the model, a name in models.denoiser.KINDS
    autoencoder: AutoencoderRecipe | None = None  # of models on latents

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON object: with minutes or steps, not both; the network named by its kind."""
        names = {"network": self.kind}
        unused = {"kind", "minutes" if self.minutes is None else "steps"}
        unused |= {"autoencoder"} if self.autoencoder is None else set()
        return {names.get(name, name): value for name, value in asdict(self).items() if name not in unused}


@dataclass(frozen=True)
class ClassifierRecipe:
    """How a judge or a feature extractor is trained."""

    network: str  # a name in networks.CLASSIFIERS
    epochs: int
    batch: int
    lr: float  # of the head; the peak where the schedule has one
    weight_decay: float
    label_smoothing: float
    shift: int  # augmentation: random shift of up to this many pixels
    seed: int
    body_lr: float | None = None  # of everything but the head; None: the same
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    optimizer: Literal["adamw", "adam"] = "adamw"
    flip: bool = False  # augmentation: horizontal flips
    pretrained: bool = False  # start from ImageNet weights
    revision: int = 1

    def fitted(self, flip: bool, counts: Sequence[int]) -> Self:
        """Return the recipe for a set of images: mirrored only if they may be, with more epochs if they are few.

        Args:
            flip: whether the images may be mirrored.
            counts: training images of each class; empty where not known.
        """
        batches = max(1, sum(counts) // self.batch)
        enough = min(MOST_EPOCHS, -(-LEAST_STEPS // batches)) if counts else 0
        return replace(self, flip=self.flip and flip, epochs=max(self.epochs, enough))


@dataclass(frozen=True)
class RejectingRecipe(ClassifierRecipe):
    """How a classifier with the additional class "no object" is trained."""

    negatives: float = 0.25  # no-object images per real one, 0 to 1
    threshold: float = 0.8  # probability of "no object" above which an image is rejected


@dataclass(frozen=True)
class SvmRecipe:
    """A support vector machine on pixels in [0, 1] (scikit-learn's SVC)."""

    c: float  # penalty C of a misclassified image
    gamma: float  # of the Gaussian kernel


@dataclass(frozen=True)
class GivenJudge:
    """A judge with weights from a file, not trained here."""

    network: str  # a name in FROM_FILES
    sha256: str  # of the file


@dataclass(frozen=True)
class Profile:
    """A protocol with the recipes that go with it."""

    protocol: Protocol
    bases: Mapping[str, BaseRecipe]  # the choices of --model, the default first
    judges: Mapping[str, ClassifierRecipe]  # the choices of --judge, the default first
    second: ClassifierRecipe | SvmRecipe  # the second judge, of a different kind
    rejecting: RejectingRecipe  # the judge with a reject option
    own: ClassifierRecipe  # the dataset's own feature extractor, with separate weights from the judges
    own_name: str  # its name in captions
    extractor: ExtractorChoice = "own"


def autoencoder_network(*widths: int) -> dict[str, Any]:
    """Return the network of a small autoencoder: four latent channels, the side halved once per width but one."""
    return {
        "block_out_channels": list(widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }


def transformer_network(patch: int) -> dict[str, Any]:
    """Return the network of a small diffusion transformer; `patch` is the side of a token in latents."""
    return {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 32, "patch_size": patch}


def text_network(tokens: int) -> dict[str, Any]:
    """Return the networks of a small text-to-image model, whose prompts have at most this many tokens."""
    return {
        "unet": {
            "block_out_channels": [32, 64],
            "down_block_types": ["CrossAttnDownBlock2D"] * 2,
            "up_block_types": ["CrossAttnUpBlock2D"] * 2,
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
        },
        "text_encoder": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": tokens,
        },
    }


def with_b4(profile: Profile) -> Profile:
    """Return the variant of a profile with the FID reference set of SalUn's code, which always drops class 0."""
    protocol = replace(profile.protocol, name=profile.protocol.name + B4, reference=WITHOUT_CLASS_0)
    return replace(profile, protocol=protocol)
