"""Datasets: images and labels with their recipes (base model, judges, extractor) and protocols.

One file per dataset, and `profiles.py` for recipes shared by the colour image sets. Everything here is data, free of
torch until images are loaded; `models` and `judges` build from it.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from unlearnbench.datasets.conditions import Concept, Conditions, Prompts
from unlearnbench.datasets.recipes import (
    LATENT,
    PIPELINES,
    PROMPTED,
    WITHOUT_CLASS_0,
    BaseRecipe,
    ClassifierRecipe,
    ExtractorChoice,
    GivenJudge,
    Profile,
    Protocol,
    RejectingRecipe,
    SvmRecipe,
)
from unlearnbench.errors import UsageError, one_line, suggest
from unlearnbench.store.cell import Precision, Target
from unlearnbench.store.hashing import digest, file_digest, read_object

if TYPE_CHECKING:
    from unlearnbench.protocols import Progress
    from unlearnbench.store.artifacts import ArtifactStore

WEIGHTS = "diffusion_pytorch_model.safetensors"  # of a base model given by --base
FEATURES = {  # of the last layer of each network, see networks.CLASSIFIERS
    "small_cnn": 64, "small_resnet": 128, "small_vgg": 128, "vgg16": 512, "resnet34": 512, "resnet34_224": 512,
    "cifar_resnet20": 64, "cifar_resnet56": 64,
}  # fmt: skip
FROM_FILES = {"cifar_resnet20": "cifar-resnet20", "cifar_resnet56": "cifar-resnet56"}  # network -> judge, see weights
INCEPTION_FEATURES = 2048
SAMPLES_PER_FEATURE = 2  # at least, of the retained classes: FID needs more than one


class Split(NamedTuple):
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Images(NamedTuple):
    """A dataset's two parts, and notes for the user on how they were read, one sentence each."""

    train: Split
    test: Split
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """The user's choice of a dataset; empty values stand for its defaults."""

    dataset: str = "digits"
    protocol: str = ""
    data_root: Path | None = None
    image_size: int | None = None  # pixels; only for folders of images
    base: str = ""  # a diffusers folder or a name on the Hugging Face Hub, instead of training one
    base_steps: int | None = None  # training steps of the base model
    judge: str = ""
    extractor: str = ""
    inception_weights: Path | None = None
    batch_size: int | None = None  # images per sampling forward pass
    precision: Precision = "fp32"  # of unlearning, for all methods
    compiled: bool = False  # by torch.compile, for all methods
    base_minutes: float | None = None  # training time of the base model
    judge_weights: Path | None = None  # of the judge, instead of training it
    second_judge: str = ""
    second_judge_weights: Path | None = None
    model: str = ""  # kind of the base model
    labels: str = ""  # of the classes in a given model that knows more: NAME=LABEL,...
    concepts: Path | None = None  # file of concepts
    evaluated: tuple[int, ...] = ()  # retained classes to be measured; empty: all


@dataclass(frozen=True)
class Dataset:
    """One dataset with its recipes and protocol, resolved. Picklable, to be sent to a cell's process."""

    name: str  # names the records: the kind's own name, or the folder's
    kind: str  # a name in DATASETS
    title: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (C, H, W)
    flip: bool  # whether methods and training see random horizontal flips
    protocol: Protocol
    base: BaseRecipe
    judge: ClassifierRecipe | GivenJudge
    second: ClassifierRecipe | SvmRecipe | GivenJudge
    rejecting: RejectingRecipe
    extractor: ClassifierRecipe | None  # None: torch-fidelity's Inception
    extractor_name: str  # name of FID's features in captions
    load: "Callable[[ArtifactStore, Progress], Images]"
    choices: Mapping[str, Any]  # what the user changed: base, base_steps, judge, extractor, ...; of files the hashes
    content: str = ""  # identifies a folder's images, since folders may share a name
    checkpoint: str = ""  # folder or Hub name of a base model that is not trained here
    unguided: bool = False  # the base model lacks a null class, so guidance is off
    inception_weights: Path | None = None
    train_counts: tuple[int, ...] = ()  # training images of each class, where known before loading
    precision: Precision = "fp32"  # of the methods' forward passes on CUDA; weights and optimisers stay in fp32
    compiled: bool = False  # whether torch.compile compiles the blocks of the methods' networks
    weights: Mapping[str, Path] = field(default_factory=dict)  # SHA-256 -> file, of judges that come from one
    prompts: Prompts | None = None  # of its classes, where the model takes prompts
    labels: tuple[int, ...] = ()  # of its classes in a given model that knows more
    evaluated: tuple[int, ...] = ()  # retained classes that are measured; empty: all
    tuning_classes: tuple[int, ...] = ()  # on which settings of methods are tuned

    @property
    def features(self) -> int:
        """Number of features that FID compares."""
        return INCEPTION_FEATURES if self.extractor is None else FEATURES[self.extractor.network]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def conditions(self) -> Conditions:
        """What its models are conditioned on."""
        return Conditions(self.name, self.class_names, self.image_shape, not self.unguided, self.prompts, self.labels)

    @property
    def tunings(self) -> tuple[str, ...]:
        """Names of tuned settings that apply, later ones first: of dataset, protocol, and an unusual kind of model."""
        usual = (self.kind, self.protocol.family)
        return usual if "model" not in self.choices else (*usual, f"{self.kind}-{self.base.kind}")

    @property
    def tuned_as(self) -> str:
        """The name of settings tuned for it: the most specific one that does not stand for others as well."""
        if self.tunings[2:]:
            return self.tunings[-1]
        return self.kind if self.protocol.family == protocol_names(self.kind)[0] else self.protocol.family

    @property
    def offers(self) -> frozenset[str]:
        """What its models have that a method may require."""
        return frozenset() if self.prompts is None else frozenset({"prompts"})

    @property
    def null_class(self) -> int | None:
        """The label of the unconditional branch, after those of the classes; None for a model without one."""
        return self.conditions.null_class

    @property
    def digest(self) -> str:
        """Hash of recipes and protocol: records with a different digest used another base, judge or protocol."""
        protocol = replace(self.protocol, batch_size=0)  # does not affect images
        extractor = None if self.extractor is None else asdict(self.extractor)
        parts = [protocol.to_json(), self.base.to_json(), asdict(self.judge), extractor]
        given = [part for part in (self.prompts and self.prompts.to_json(), self.labels, self.evaluated) if part]
        return digest([self.class_names, self.image_shape, self.flip, *parts, self.choices.get("base", ""), *given])

    def check_device(self, kind: str) -> None:
        """Refuse a device that does not support the user's choices.

        Args:
            kind: of device, such as cpu.

        Raises:
            UsageError: bfloat16 is requested on a device other than CUDA.
        """
        if self.precision == "bf16" and kind != "cuda":
            raise UsageError(f"--precision bf16 needs a CUDA device, and this one is a {kind}: leave it out")

    def measured(self, target: Target) -> tuple[int, ...]:
        """Return the retained classes of a target that are sampled and compared with their images."""
        return tuple(c for c in target.retained(self.num_classes) if not self.evaluated or c in self.evaluated)

    def with_fitting_judges(self) -> "Dataset":
        """Return the dataset with judges and extractor that fit its images.

        They see mirror images only where methods do, and a small set of images for more epochs.
        """
        recipes = {name: getattr(self, name) for name in ("judge", "second", "rejecting", "extractor")}
        fitted: dict[str, Any] = {
            name: recipe.fitted(self.flip, self.train_counts)
            for name, recipe in recipes.items() if isinstance(recipe, ClassifierRecipe)
        }  # fmt: skip
        return replace(self, **fitted)

    def evaluating(self, classes: Sequence[int]) -> "Dataset":
        """Return the dataset with retention measured on some classes alone, of which enough samples are drawn."""
        if not classes:
            return self
        enough = -(-SAMPLES_PER_FEATURE * self.features // max(1, len(classes) - 1))
        samples = max(self.protocol.retain_samples, enough)
        chosen = tuple(sorted(classes))
        return replace(
            self, name=f"{self.name}-{len(chosen)}of{self.num_classes}-{digest(chosen)[:4]}", evaluated=chosen,
            title=f"{self.title}, retention of {len(chosen)} classes",
            protocol=replace(self.protocol, retain_samples=samples),
            choices={**self.choices, "evaluated": list(chosen)},
        )  # fmt: skip

    def with_base_seed(self, seed: int) -> "Dataset":
        """Return the dataset with a different seed in its base recipe; a given checkpoint is unchanged."""
        return replace(self, base=replace(self.base, seed=self.base.seed + seed))

    @property
    def judges_digest(self) -> str:
        """Hash of the recipes of the second and the rejecting judge, which not every record uses."""
        return digest([asdict(self.second), asdict(self.rejecting)])

    def to_json(self) -> dict[str, Any]:
        """Return the record's entry on the dataset; `run/stale.py` reads it back."""
        return {
            "kind": self.kind, "title": self.title, "class_names": list(self.class_names),
            "image_shape": list(self.image_shape), "extractor": self.extractor_name, "choices": dict(self.choices),
            "content": self.content, "digest": self.digest, "panel": self.judges_digest,
            **({} if self.prompts is None else {"prompts": self.prompts.to_json()}),
            **({"train_counts": list(self.train_counts)} if self.train_counts else {}),
            **({"tuning_classes": list(self.tuning_classes)} if self.tuning_classes else {}),
        }  # fmt: skip


DATASETS = ("digits", "cifar10", "cifar100", "stl10", "imagefolder", "concepts")


def module_of(kind: str) -> ModuleType:
    """Return the module of a dataset of this kind."""
    return importlib.import_module(f"unlearnbench.datasets.{kind}")


def title_of(kind: str) -> str:
    """Return a dataset's title, without looking for its images."""
    return str(module_of(kind).TITLE)


def protocol_names(kind: str) -> list[str]:
    """Return the names of a dataset's protocols, the default first."""
    module = module_of(kind)
    side = getattr(module, "SIDE", 32)  # pixels
    return list(module.profiles((3, side, side)))


def load_dataset(source: Source | str) -> Dataset:
    """Return the dataset of a user's choice, or of a name with its defaults, without loading images.

    Raises:
        UsageError: an unknown name, protocol, judge or extractor, an option the dataset does not take, or a folder
            that holds no dataset.
    """
    if isinstance(source, str):
        source = Source(source)
    if source.concepts is not None and source.dataset == Source.dataset:
        source = replace(source, dataset="concepts", model=source.model or ("" if source.base else "text"))
    if source.dataset not in DATASETS:
        wanted = f"there is no dataset {source.dataset!r}{suggest(source.dataset, DATASETS)}"
        raise UsageError(f"{wanted}: choose from {', '.join(DATASETS)}")
    if source.image_size is not None and source.dataset not in ("imagefolder", "concepts"):
        raise UsageError(f"--image-size is for --dataset imagefolder; the images of {source.dataset} have their size")
    if source.concepts is not None and source.dataset != "concepts":
        raise UsageError(f"--concepts FILE brings its own images: leave out --dataset {source.dataset}")
    if source.inception_weights is not None and not source.inception_weights.is_file():
        raise UsageError(f"--inception-weights {source.inception_weights}: there is no such file")
    dataset: Dataset = module_of(source.dataset).dataset(source)
    return dataset


def resolve(
    source: Source, *, name: str, title: str, class_names: Iterable[str], image_shape: tuple[int, int, int],
    flip: bool, load: "Callable[[ArtifactStore, Progress], Images]", content: str = "",
    train_counts: tuple[int, ...] = (), prompts: Prompts | None = None, tuning_classes: tuple[int, ...] = (),
) -> Dataset:  # fmt: skip
    """Return a dataset from its images and the user's choices among its profiles.

    Raises:
        UsageError: an unknown protocol, judge or extractor, choices that exclude each other, weights without a judge.
    """
    profiles: Mapping[str, Profile] = module_of(source.dataset).profiles(image_shape)
    profile = profiles[_pick(source.protocol, profiles, "protocol", source.dataset)]
    kind, first = _kind(source, profile), next(iter(profile.bases))
    recipe = profile.bases[kind]
    extractor = _pick(source.extractor, [profile.extractor, *get_args(ExtractorChoice)], "extractor", source.dataset)
    _check_one_base(source)
    names = tuple(class_names)
    judges = _choose_judges(source, profile)
    features = INCEPTION_FEATURES if extractor == "inception" else FEATURES[profile.own.network]
    protocol = _fitted(profile.protocol, len(names), features, source.batch_size, clips=kind not in LATENT)
    unguided = _lacks_null_class(source.base, len(names))
    labels = parse_labels(source.labels, names, source.base)
    chosen = {
        "base": _identity(source.base),
        "unguided": unguided,
        "model": kind,
        "labels": source.labels,
        "concepts": digest(prompts.to_json()) if source.concepts is not None and prompts is not None else "",
        "base_steps": source.base_steps,
        "base_minutes": source.base_minutes,
        "extractor": extractor,
        **judges.choices,
        "precision": source.precision,
        "compiled": source.compiled,
    }
    usual = {"precision": "fp32", "base_steps": recipe.steps, "extractor": profile.extractor, "model": first}
    choices = {key: value for key, value in chosen.items() if value and value != usual.get(key)}
    marks, notes = _marks(choices)
    return Dataset(
        name=name + marks, kind=source.dataset, title=title + notes, class_names=names,
        image_shape=image_shape, flip=flip, protocol=without_guidance(protocol) if unguided else protocol,
        base=replace(recipe, steps=source.base_steps or recipe.steps, minutes=source.base_minutes),
        judge=judges.first,
        second=judges.second,
        rejecting=profile.rejecting,
        extractor=profile.own if extractor == "own" else None,
        extractor_name=profile.own_name if extractor == "own" else "2048-d pool3 of torch-fidelity's Inception v3",
        load=load,
        choices=choices,
        content=content,
        checkpoint=source.base,
        unguided=unguided,
        inception_weights=source.inception_weights,
        train_counts=train_counts,
        precision=source.precision,
        compiled=source.compiled,
        weights=judges.weights,
        prompts=(prompts or prompts_of(names)) if kind in PROMPTED else None,
        labels=labels,
        tuning_classes=tuning_classes,
    ).with_fitting_judges().evaluating(source.evaluated)  # fmt: skip


def _marks(choices: Mapping[str, Any]) -> tuple[str, str]:
    """Return what the user's choices add to a dataset's name and title: what is not compared has records of its own."""
    stamp = digest(choices.get("base", ""))[:6]
    marks = {
        "model": (f"-{choices.get('model')}", f", {choices.get('model')}"),
        "base": (f"-base-{stamp}", f", base model {stamp}"),
        "precision": (f"-{choices.get('precision')}", f", unlearning in {choices.get('precision')}"),
        "compiled": ("-compiled", ", compiled"),
    }
    made = [mark for choice, mark in marks.items() if choice in choices]
    return "".join(name for name, _ in made), "".join(title for _, title in made)


def prompts_of(class_names: Sequence[str]) -> Prompts:
    """Return prompts that name classes, each with the next one as its anchor."""
    concepts = [
        Concept(
            name,
            prompts=tuple(f"{words} {name}" for words in ("a photo of a", "a picture of a", "an image of the")),
            paraphrases=(f"one {name} in a photograph", f"this shows a {name}"),
            anchor=class_names[(c + 1) % len(class_names)],
        )
        for c, name in enumerate(class_names)
    ]
    return Prompts(tuple(concepts), unrelated=("a photo", "a picture of something"))


def parse_labels(text: str, class_names: Sequence[str], base: str) -> tuple[int, ...]:
    """Return the label of each class from `NAME=LABEL,...`; none for an empty text.

    Raises:
        UsageError: a class is unknown, or lacks its label, or a label is not a number or given twice.
    """
    if not text:
        return ()
    if not base:
        raise UsageError("--labels names labels of a model that you give: name it with --base, or leave it out")
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, label = part.rpartition("=")
        if name not in class_names or not re.fullmatch(r"[0-9]{1,6}", label):
            raise UsageError(
                f"--labels {one_line(part, 60)}: write NAME=LABEL with a class of {', '.join(class_names[:5])}, ... "
                f"and its number in the model"
            )
        found[name] = int(label)
    if lacking := [name for name in class_names if name not in found]:
        raise UsageError(f"--labels gives no label for {lacking[0]}: give one for every class")
    if len(set(found.values())) < len(found):
        raise UsageError("--labels gives one label to two classes: give each class its own")
    return tuple(found[name] for name in class_names)


def _kind(source: Source, profile: Profile) -> str:
    """Return the kind of the base model: that of a given folder, or the user's choice."""
    if not (source.base and Path(source.base).is_dir()):
        return _pick(source.model, profile.bases, "model", source.dataset)
    kind = kind_in(Path(source.base))
    if source.model and source.model != kind:
        raise UsageError(f"--base {source.base} is a model of kind {kind}: leave out --model {source.model}")
    return kind


def kind_in(folder: Path) -> str:
    """Return the kind of the model in a folder of diffusers' format.

    Raises:
        UsageError: it is a pipeline of another kind.
    """
    index = folder / "model_index.json"
    try:
        pipeline = read_object(index).get("_class_name") if index.is_file() else None
    except (OSError, ValueError) as error:
        raise UsageError(f"{index} cannot be read ({one_line(str(error), 100)}): write the pipeline again") from error
    if pipeline is None:
        return "unet"
    if pipeline not in PIPELINES:
        raise UsageError(
            f"{folder} holds a {one_line(str(pipeline), 60)}, which is not supported here: give a folder of a "
            f"UNet2DModel with class labels, a {' or a '.join(PIPELINES)}"
        )
    return PIPELINES[pipeline]


def _fitted(protocol: Protocol, classes: int, features: int, batch_size: int | None, *, clips: bool) -> Protocol:
    """Return a protocol with enough samples for FID.

    Args:
        protocol: of a profile.
        classes: their number; with few of them each gives more samples.
        features: that FID compares.
        batch_size: of sampling, if not the protocol's.
        clips: whether x0 can be clipped.

    Raises:
        UsageError: its reference set would be empty.
    """
    if protocol.reference == WITHOUT_CLASS_0 and classes < 3:
        raise UsageError(
            f"{protocol.name} drops class 0, which leaves nothing of {classes} classes to compare with: use "
            f"{protocol.family}"
        )
    enough = -(-SAMPLES_PER_FEATURE * features // max(1, classes - 1))
    return replace(
        protocol, batch_size=batch_size or protocol.batch_size, retain_samples=max(protocol.retain_samples, enough),
        clip_x0=protocol.clip_x0 and clips,
    )  # fmt: skip


def _check_one_base(source: Source) -> None:
    """Raise UsageError where a user chooses the base model in more than one way."""
    ways = {"--base": source.base, "--base-steps": source.base_steps, "--base-minutes": source.base_minutes}
    given = [option for option, value in ways.items() if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other: give one of them")


class _Judges(NamedTuple):
    """The judges that a user chose, as fields of a dataset."""

    first: ClassifierRecipe | GivenJudge
    second: ClassifierRecipe | SvmRecipe | GivenJudge
    choices: dict[str, str]
    weights: dict[str, Path]


def _choose_judges(source: Source, profile: Profile) -> _Judges:
    """Return the user's choice among a profile's judges.

    Raises:
        UsageError: an unknown judge, one judge twice, or weights that it does not take or that cannot be read.
    """
    choices: dict[str, str] = {}
    weights: dict[str, Path] = {}
    name = _pick(source.judge, profile.judges, "judge", source.dataset)
    first: ClassifierRecipe | GivenJudge = profile.judges[name]
    second: ClassifierRecipe | SvmRecipe | GivenJudge = profile.second
    if name != next(iter(profile.judges)):
        choices["judge"] = name
    if source.second_judge:
        choices["second_judge"] = _pick(source.second_judge, profile.judges, "judge", source.dataset)
        second = profile.judges[choices["second_judge"]]
        if choices["second_judge"] == name:
            raise UsageError(f"--second-judge {name} is the first judge already: choose a different one")
    elif source.second_judge_weights is not None:
        raise UsageError("--second-judge-weights holds weights of a second judge: name it with --second-judge")
    if source.judge_weights is not None:
        first = _read_judge("--judge", source.judge_weights, first)
        choices["judge_weights"], weights[first.sha256] = first.sha256, source.judge_weights
    if source.second_judge_weights is not None:
        second = _read_judge("--second-judge", source.second_judge_weights, second)
        choices["second_judge_weights"], weights[second.sha256] = second.sha256, source.second_judge_weights
    return _Judges(first, second, choices, weights)


def _read_judge(option: str, path: Path, judge: ClassifierRecipe | SvmRecipe | GivenJudge) -> GivenJudge:
    """Return a judge of the same network with weights from a file; `judges/weights.py` checks that they fit.

    Raises:
        UsageError: this judge takes no weights, or the file cannot be read.
    """
    if isinstance(judge, SvmRecipe) or judge.network not in FROM_FILES:
        raise UsageError(
            f"{option}-weights is for {' and '.join(FROM_FILES.values())}, judges of images of 32 pixels: name one of "
            f"them with {option}"
        )
    if not path.is_file():
        raise UsageError(f"{option}-weights {path}: there is no such file")
    try:
        return GivenJudge(judge.network, file_digest(path))
    except OSError as error:
        raise UsageError(f"{option}-weights {path}: it cannot be read ({error.strerror or error})") from error


def _pick(wanted: str, known: Iterable[str], what: str, dataset: str) -> str:
    """Return a name the user chose, or the first one."""
    names = list(dict.fromkeys(known))
    if wanted and wanted not in names:
        raise UsageError(f"{dataset} has no {what} {wanted!r}{suggest(wanted, names)}: choose from {', '.join(names)}")
    return wanted or names[0]


def _identity(base: str) -> str:
    """Return the identity of a given base model: the hash of its weights, or its name on the Hub."""
    if not base:
        return ""
    if not Path(base).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        raise UsageError(f"--base {base}: there is no such folder, nor is it a Hugging Face Hub name (ORG/NAME)")
    return local_digest(Path(base)) or base


def _lacks_null_class(base: str, classes: int) -> bool:
    """Say whether a base model in a folder has labels for the classes only; the rest is checked on reading."""
    config = _unet_folder(Path(base)) / "config.json"
    try:
        return bool(base) and config.is_file() and read_object(config).get("num_class_embeds") == classes
    except (OSError, ValueError):
        return False


def without_guidance(protocol: Protocol) -> Protocol:
    """Return a protocol without guidance."""
    return replace(protocol, guidance=0.0)


def _unet_folder(folder: Path) -> Path:
    return folder / "unet" if (folder / "unet").is_dir() else folder


def local_digest(folder: Path) -> str | None:
    """Return a hash of all files a local checkpoint's predictions depend on, None where it has no weights."""
    if (folder / "model_index.json").is_file():
        files = [path for ending in ("json", "txt", "safetensors") for path in sorted(folder.glob(f"**/*.{ending}"))]
        return digest([[path.relative_to(folder).as_posix(), file_digest(path)] for path in files])
    unet = _unet_folder(folder)
    files = [unet / WEIGHTS, unet / "config.json", folder / "scheduler" / "scheduler_config.json"]
    return digest([file_digest(path) if path.is_file() else None for path in files]) if files[0].is_file() else None
