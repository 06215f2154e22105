"""Preparation of a dataset: images, base model, judges, feature extractor; made once and cached."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.datasets import Dataset, Images, Split
from unlearnbench.datasets.recipes import SvmRecipe
from unlearnbench.judges.features import extractor_for, inception
from unlearnbench.judges.forward import forward_batches
from unlearnbench.judges.judges import (
    Judge,
    ReadyJudge,
    build_classifier,
    classifier,
    classifier_key,
    making,
    rejecting_judge,
    second_judge,
    test_performance,
)
from unlearnbench.models.base import UNGUIDED, _base_inputs, base_artifact, base_reference, image_digests
from unlearnbench.models.denoiser import Denoiser, restored
from unlearnbench.models.kept import Kept, keep
from unlearnbench.models.networks import Classifier, frozen
from unlearnbench.plugins.spec import SAMPLE_ANEW
from unlearnbench.protocols import Progress
from unlearnbench.store.artifacts import Artifact, ArtifactStore, Tensors, software
from unlearnbench.store.revisions import later

FEATURES = "compute features of the training images"
OTHER_JUDGES: Mapping[str, tuple[tuple[str, ...], Callable[..., ReadyJudge]]] = {  # name -> suffixes of needs, maker
    "second": (("_second",), second_judge),
    "rejecting": (("_verdicts", *SAMPLE_ANEW), rejecting_judge),
}


@dataclass(frozen=True)
class Prepared:
    """A dataset's preparation in memory: frozen networks in eval mode, and the references of their weights.

    The base is on the device; judges and extractor stay on the CPU until used, so that they do not add to a method's
    memory.
    """

    train: Split
    notes: tuple[str, ...]  # on how the images were read
    base: Denoiser
    kept: Kept  # the training images, as the base takes them
    judge: Classifier
    extractor: nn.Module | None  # None where no metric asks for features
    train_features: Tensor | None  # (N, D) float32 of the training images; None likewise
    second: Judge | None  # the second judge; None where no metric asks for it
    rejecting: Judge | None  # the rejecting judge; None likewise
    test_performance: Mapping[str, Any]  # of the judge: test_accuracy, n; of the other judges by name
    artifacts: dict[str, dict[str, Any]]


def prepare(
    dataset: Dataset, store: ArtifactStore, device: torch.device, progress: Progress, needs: Collection[str]
) -> Prepared:
    """Return the preparation of a dataset, made on first use and cached.

    Args:
        dataset: to prepare.
        store: the cache.
        device: trains and computes.
        progress: shows progress.
        needs: of the run's metrics, which determine the judges and the feature extractor.

    Raises:
        UsageError: images or weights are missing and cannot be downloaded, or do not fit.
    """
    images = dataset.load(store, progress)
    sources = image_digests(images)
    features = any(need.endswith("_features") for need in needs)
    extractor: nn.Module | None = None
    features_artifact = None
    artifacts: dict[str, dict[str, Any]] = {"images": {"sha256": sources["train"]}}
    if dataset.checkpoint:  # fail before long trainings if the checkpoint is unusable
        base_artifact(dataset, images.train, sources["train"], store, device, progress)
    if features and dataset.extractor is None:
        extractor, artifacts["extractor"] = inception(dataset.inception_weights)
    progress = _numbered(_wanted(dataset, needs, sources, store, device, artifacts.get("extractor")), store, progress)
    made = (dataset, images, sources, store, device, progress)
    judge = classifier(dataset, "judge", dataset.judge, *made[1:])
    others = _other_judges(needs, *made)
    if features and dataset.extractor is not None:
        extractor, artifacts["extractor"] = _own_extractor(*made)
    if extractor is not None:
        features_artifact = train_features(extractor, artifacts["extractor"], *made[1:])
    base = base_artifact(dataset, images.train, sources["train"], store, device, progress)
    artifacts |= {"base": base_reference(dataset, base), "judge": judge.reference}
    artifacts |= {name: ready.reference for name, ready in others.items()}
    denoiser = restored(base.facts, base.tensors, device)
    return Prepared(
        train=images.train,
        notes=(*images.notes, *([UNGUIDED] if dataset.unguided else [])),
        base=denoiser,
        kept=keep(dataset, images.train, sources["train"], denoiser.codec, store, device, progress),
        judge=frozen(build_classifier(dataset, dataset.judge), judge.tensors, torch.device("cpu")),
        extractor=extractor,
        train_features=features_artifact.tensors["features"] if features_artifact is not None else None,
        second=others["second"].judge if "second" in others else None,
        rejecting=others["rejecting"].judge if "rejecting" in others else None,
        test_performance={**test_performance(judge.facts), **{name: ready.facts for name, ready in others.items()}},
        artifacts=artifacts,
    )


Wanted = list[tuple[str, tuple[str, Mapping[str, Any]] | None]]  # (step as shown by progress, key of its artifact)


def _wanted(
    dataset: Dataset, needs: Collection[str], sources: Mapping[str, str], store: ArtifactStore, device: torch.device,
    extractor: Mapping[str, str] | None,
) -> Wanted:  # fmt: skip
    """Return the steps of preparation with their artifact keys, in order; None for keys that are unknown yet.

    Args:
        dataset: to prepare.
        needs: of the metrics to come.
        sources: digests of the images.
        store: the cache.
        device: trains.
        extractor: reference of Inception's weights, if used.
    """
    recipes: dict[str, Any] = {"judge": dataset.judge}
    recipes |= {f"{name} judge": getattr(dataset, name) for name in _other_judge_names(needs)}
    features = any(need.endswith("_features") for need in needs)
    if features and dataset.extractor is not None:
        recipes["extractor"] = dataset.extractor
    wanted: Wanted = [
        (making(kind, recipe), classifier_key(dataset, kind, recipe, sources, device))
        for kind, recipe in recipes.items()
        if not isinstance(recipe, SvmRecipe)  # fitted every time, not cached
    ]
    if features:
        if dataset.extractor is not None:
            key = classifier_key(dataset, "extractor", dataset.extractor, sources, device)
            extractor = store.reference(*key)
        made = None if extractor is None else ("features", _features_inputs(extractor, sources, device))
        wanted.append((FEATURES, made))
    base = "read the base model" if dataset.checkpoint else "train the base model"
    return [*wanted, (base, ("base", _base_inputs(dataset, sources["train"], device)))]


def _numbered(wanted: Wanted, store: ArtifactStore, progress: Progress) -> Progress:
    """Announce the missing steps, and return a progress that counts them: `train the judge (1 of 3)`."""
    missing = [step for step, made in wanted if made is None or store.reference(*made) is None]
    if missing:
        others = f", and {len(wanted) - len(missing)} are in the cache" if len(missing) < len(wanted) else ""
        progress(f"{len(missing)} of {len(wanted)} steps to do ({', '.join(missing)}){others}", 0, 0)

    def show(what: str, done: int, total: int) -> None:
        if what in missing:
            what = f"{what} ({missing.index(what) + 1} of {len(missing)})"
        progress(what, done, total)

    return show


def _other_judge_names(needs: Collection[str]) -> list[str]:
    """Return the names of the further judges that metrics need."""
    return [name for name, (endings, _) in OTHER_JUDGES.items() if any(need.endswith(endings) for need in needs)]


def _other_judges(
    needs: Collection[str], dataset: Dataset, images: Images, sources: Mapping[str, str], store: ArtifactStore,
    device: torch.device, progress: Progress,
) -> dict[str, ReadyJudge]:  # fmt: skip
    """Return the further judges that metrics need, by name."""
    return {
        name: OTHER_JUDGES[name][1](dataset, images, sources, store, device, progress)
        for name in _other_judge_names(needs)
    }


def _own_extractor(
    dataset: Dataset, images: Images, sources: Mapping[str, str], store: ArtifactStore, device: torch.device,
    progress: Progress,
) -> tuple[nn.Module, dict[str, str]]:  # fmt: skip
    """Return the dataset's own extractor behind torch-fidelity's interface, and the reference of its weights."""
    assert dataset.extractor is not None
    artifact = classifier(dataset, "extractor", dataset.extractor, images, sources, store, device, progress)
    network = frozen(build_classifier(dataset, dataset.extractor), artifact.tensors, torch.device("cpu"))
    return extractor_for(f"unlearnbench-{dataset.name}", network), artifact.reference


def train_features(
    extractor: nn.Module, reference: Mapping[str, str], images: Images, sources: Mapping[str, str],
    store: ArtifactStore, device: torch.device, progress: Progress,
) -> Artifact:  # fmt: skip
    """Return the features of all training images; reference sets are subsets of them."""

    def build() -> tuple[Tensors, dict[str, Any]]:
        progress(FEATURES, 0, 0)
        return {"features": forward_batches(extractor, images.train.images, device).float()}, {}

    return store.get("features", _features_inputs(reference, sources, device), build)


def _features_inputs(extractor: Mapping[str, str], sources: Mapping[str, str], device: torch.device) -> dict[str, Any]:
    """Return the inputs of the cache key of the training images' features."""
    images = sources["train"]
    return {
        "extractor": dict(extractor), "images": images, "device": device.type, "software": software(),
        **later("judges"),
    }  # fmt: skip
