"""Judges of generated images, trained on the real ones and cached.

Three judges classify every image: the first, whose softmax output metrics use; the second, of a different kind; and
the rejecting judge, a classifier with a reject option, trained on no-object images as well (`negatives.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from unlearnbench.datasets import Dataset, Images
from unlearnbench.datasets.recipes import ClassifierRecipe, GivenJudge, RejectingRecipe, SvmRecipe
from unlearnbench.errors import UsageError
from unlearnbench.judges.fit import fit_classifier
from unlearnbench.judges.forward import forward_batches
from unlearnbench.judges.rejecting import RejectingJudge
from unlearnbench.judges.weights import read_weights
from unlearnbench.models.networks import CLASSIFIERS, Classifier, frozen
from unlearnbench.plugins.spec import NO_OBJECT
from unlearnbench.protocols import Progress
from unlearnbench.store.artifacts import Artifact, ArtifactStore, Tensors, software
from unlearnbench.store.revisions import later


class Judge(Protocol):
    """Classifies images."""

    def names(self, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.int64]:
        """Return the class of each image (n, C, H, W), or NO_OBJECT: (n,)."""


@dataclass(frozen=True)
class NetworkJudge:
    """Predicts the class of the largest logit."""

    network: Classifier

    def names(self, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.int64]:
        """Return the class of each image (n, C, H, W): (n,)."""
        named: NDArray[np.int64] = forward_batches(self.network, images, device).argmax(dim=1).numpy()
        return named


@dataclass(frozen=True)
class SvmJudge:
    """A support vector machine with a Gaussian kernel on raw pixels (scikit-learn's SVC)."""

    svm: Any

    @classmethod
    def fitted(cls, recipe: SvmRecipe, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> "SvmJudge":
        """Fit it, which is deterministic and faster than reading a fitted one from the cache."""
        from sklearn.svm import SVC

        return cls(SVC(C=recipe.c, gamma=recipe.gamma).fit(_pixels(images), labels))

    def names(self, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.int64]:
        """Return the class of each image (n, C, H, W): (n,)."""
        named: NDArray[np.int64] = self.svm.predict(_pixels(images))
        return named


def _pixels(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    flat: NDArray[np.float64] = images.reshape(len(images), -1) / 255.0
    return flat


@dataclass(frozen=True)
class ReadyJudge:
    """A judge with its performance on test images and its artifact reference for the record."""

    judge: Judge
    facts: Mapping[str, Any]
    reference: dict[str, str]


def second_judge(
    dataset: Dataset, images: Images, sources: Mapping[str, str], store: ArtifactStore, device: torch.device,
    progress: Progress,
) -> ReadyJudge:  # fmt: skip
    """Return the second judge, fitted or from the cache."""
    recipe = dataset.second
    if not isinstance(recipe, SvmRecipe):
        made = classifier(dataset, "second judge", recipe, images, sources, store, device, progress)
        network = NetworkJudge(frozen(build_classifier(dataset, recipe), made.tensors, torch.device("cpu")))
        return ReadyJudge(network, test_performance(made.facts), made.reference)
    judge = SvmJudge.fitted(recipe, images.train.images, images.train.labels)
    return ReadyJudge(judge, test_performance(_test(judge, images, device)), {"key": "svm", "sha256": sources["train"]})


def rejecting_judge(
    dataset: Dataset, images: Images, sources: Mapping[str, str], store: ArtifactStore, device: torch.device,
    progress: Progress,
) -> ReadyJudge:  # fmt: skip
    """Return the rejecting judge, trained or from the cache."""
    recipe = dataset.rejecting
    made = classifier(dataset, "rejecting judge", recipe, images, sources, store, device, progress)
    network = frozen(build_classifier(dataset, recipe), made.tensors, torch.device("cpu"))
    return ReadyJudge(RejectingJudge(network, recipe.threshold), test_performance(made.facts), made.reference)


def test_performance(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's entry on a judge: the shares of n test images that it classifies correctly and rejects."""
    shares = {name: facts[name] for name in ("test_accuracy", "test_rejected") if name in facts}
    return {**shares, "n": int(facts["test_n"])}


def _test(judge: Judge, images: Images, device: torch.device) -> dict[str, Any]:
    """Return the shares of test images that a judge classifies correctly and, where it can, rejects."""
    named, labels = judge.names(images.test.images, device), images.test.labels
    facts = {"test_accuracy": float(np.mean(named == labels)), "test_n": len(labels)}
    return facts | ({"test_rejected": float(np.mean(named == NO_OBJECT))} if isinstance(judge, RejectingJudge) else {})


def build_classifier(dataset: Dataset, recipe: ClassifierRecipe | GivenJudge) -> Classifier:
    """Return an untrained network; a rejecting one has an additional output."""
    outputs = dataset.num_classes + isinstance(recipe, RejectingRecipe)
    return CLASSIFIERS[recipe.network](dataset.image_shape[0], outputs)


def classifier(
    dataset: Dataset, kind: str, recipe: ClassifierRecipe | GivenJudge, images: Images, sources: Mapping[str, str],
    store: ArtifactStore, device: torch.device, progress: Progress,
) -> Artifact:  # fmt: skip
    """Return a classifier's weights and test performance: trained, read from a file, or from the cache.

    Args:
        dataset: gives sizes, and files of weights.
        kind: names the artifact and its progress.
        recipe: how it is trained, or the digest of the file it is read from.
        images: to train and to test.
        sources: digests of both parts.
        store: the cache.
        device: trains.
        progress: shows how far it is.
    """

    def build() -> tuple[Tensors, dict[str, Any]]:
        show = partial(progress, making(kind, recipe))
        if isinstance(recipe, GivenJudge):
            show(0, 0)
            model = _read_given(dataset, recipe)
        else:
            model = _trained(dataset, recipe, images, device, show)
        judge = RejectingJudge(model, recipe.threshold) if isinstance(recipe, RejectingRecipe) else NetworkJudge(model)
        return model.state_dict(), _test(judge, images, device)

    return store.get(*classifier_key(dataset, kind, recipe, sources, device), build)


def making(kind: str, recipe: ClassifierRecipe | GivenJudge) -> str:
    """Return the name of the step that obtains a classifier, as progress shows it."""
    return f"{'read' if isinstance(recipe, GivenJudge) else 'train'} the {kind}"


def _trained(
    dataset: Dataset, recipe: ClassifierRecipe, images: Images, device: torch.device,
    progress: Callable[[int, int], None],
) -> Classifier:  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build_classifier(dataset, recipe)
    if recipe.pretrained:
        model.start_from_imagenet()  # type: ignore[operator]
    fit_classifier(model.to(device), images.train, recipe, progress)
    return model


def _read_given(dataset: Dataset, recipe: GivenJudge) -> Classifier:
    """Return a judge with the weights of its file.

    Raises:
        UsageError: the file is missing or was changed.
    """
    path = dataset.weights[recipe.sha256]
    weights = read_weights(f"the judge's weights {path}", path, recipe.network, dataset.num_classes)
    if weights.sha256 != recipe.sha256:
        raise UsageError(f"the judge's weights {path} changed after the run began: start it again")
    with torch.random.fork_rng(devices=[]):  # its first weights are random
        model = build_classifier(dataset, recipe)
    model.load_state_dict(weights.tensors)
    return model


def classifier_key(
    dataset: Dataset, kind: str, recipe: ClassifierRecipe | GivenJudge, sources: Mapping[str, str],
    device: torch.device,
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """Return kind and inputs of a classifier in the cache."""
    inputs = {
        "classes": dataset.num_classes,
        "images": dict(sources),
        "recipe": asdict(recipe),
        "device": device.type,
        "software": software(),
        **later("judges"),
    }
    return kind.replace(" ", "-"), inputs
