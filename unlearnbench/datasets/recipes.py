"""Recipes, all of them data: how a dataset's base model and judges are trained, and its protocols."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from unlearnbench.store.cell import Precision
from unlearnbench.store.records import B4

RETAINED = "all training images of the retained classes"


WITHOUT_CLASS_0 = "the first 500 training images of every class but 0 and the forget class (as SalUn's code does)"


ExtractorChoice = Literal["inception", "own"]


@dataclass(frozen=True)
class Protocol:
    """The fixed rules of evaluation; recorded in every result, and tables never mix two."""

    name: str
    steps: int  # DDIM sampling steps
    eta: float  # 0 deterministic, 1 ancestral
    guidance: float  # w; 0 is conditional only
    forget_samples: int  # images of the forget class
    retain_samples: int  # images of each retained class; with few classes more than a profile says
    batch_size: int  # images per sampling forward pass; the images do not depend on it
    precision: Precision = "fp32"  # of sampling on CUDA; a CPU always computes in fp32
    clip_x0: bool = False  # clip the predicted x0 to [-1, 1] at every step; the papers' code does not
    dropout: bool = False  # left on while sampling, as SA's code does by mistake
    weights: str = "final"  # the weights a method leaves in ctx.model
    reference: str = RETAINED  # the images FID compares with: RETAINED or WITHOUT_CLASS_0

    def to_json(self) -> dict[str, Any]:
        """Return the protocol as a JSON object."""
        return asdict(self)

    @property
    def family(self) -> str:
        """The protocol this one is a compatibility form of, or its own name."""
        return self.name.removesuffix(B4)

    @property
    def sampler(self) -> dict[str, Any]:
        """The arguments of `diffusion.sample` that it fixes: what images, and the time they take, depend on."""
        names = ("steps", "eta", "guidance", "clip_x0", "dropout", "batch_size")
        return {**{name: getattr(self, name) for name in names}, "bf16": self.precision == "bf16"}


@dataclass(frozen=True)
class BaseRecipe:
    """How the base model is trained; all of it is part of the artifact's key."""

    unet: dict[str, Any]  # arguments of diffusers.UNet2DModel but sizes and labels, which the images give
    steps: int  # optimiser steps
    batch: int  # images per step
    lr: float  # Adam's step size
    cosine: bool  # anneal lr to zero along half a cosine
    label_dropout: float  # share of labels replaced by the null class
    ema: float  # decay of the averaged weights, min(ema, (1 + k) / (10 + k)) at step k
    clip: float  # global gradient norm
    precision: Precision = "fp32"  # of the forward pass on CUDA; a CPU always computes in fp32
    seed: int = 0
    revision: int = 1  # raise it when training code changes what comes out
    minutes: float | None = None  # train for so long, however many steps that is

    def to_json(self) -> dict[str, Any]:
        """Return what the model depends on, as a JSON object: minutes or steps, but not both."""
        unused = "minutes" if self.minutes is None else "steps"
        return {name: value for name, value in asdict(self).items() if name != unused}


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


@dataclass(frozen=True)
class RejectingRecipe(ClassifierRecipe):
    """How a classifier is trained that may say "no object"."""

    negatives: float = 0.25  # images of no object per real one, 0 to 1
    threshold: float = 0.8  # probability of "no object" above which an image is rejected


@dataclass(frozen=True)
class SvmRecipe:
    """A support vector machine on pixels in [0, 1] (scikit-learn's SVC)."""

    c: float  # cost of an image on the wrong side
    gamma: float  # of the Gaussian kernel


@dataclass(frozen=True)
class GivenJudge:
    """A judge that is not trained here: its weights come from a file."""

    network: str  # a name in FROM_FILES
    sha256: str  # of the file


@dataclass(frozen=True)
class Profile:
    """A protocol with the recipes that go with it."""

    protocol: Protocol
    base: BaseRecipe
    judges: Mapping[str, ClassifierRecipe]  # what --judge chooses from, the default first
    second: ClassifierRecipe | SvmRecipe  # a judge of another kind
    rejecting: RejectingRecipe  # a judge that may say "no object"
    own: ClassifierRecipe  # the dataset's own feature extractor: weights apart from every judge's
    own_name: str  # as a caption says it
    extractor: ExtractorChoice = "own"


def with_b4(profile: Profile) -> Profile:
    """Return the form of a profile whose FID has the reference set of SalUn's code, which always drops class 0."""
    protocol = replace(profile.protocol, name=profile.protocol.name + B4, reference=WITHOUT_CLASS_0)
    return replace(profile, protocol=protocol)
