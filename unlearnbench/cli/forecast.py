"""What a run would do, found out without doing it: what must be made or downloaded first, and how long it will take."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from unlearnbench.cli.outlook import HEADERS, UNKNOWN, about, legend, table
from unlearnbench.datasets import ClassifierRecipe, Dataset, Images
from unlearnbench.errors import plural
from unlearnbench.judges.features import inception_reference
from unlearnbench.judges.judges import classifier
from unlearnbench.measure.prepared import OTHER_JUDGES, base_artifact, image_digests, train_features
from unlearnbench.models.checkpoints import read_checkpoint
from unlearnbench.report.data.cost import Costs
from unlearnbench.run.cell import identify_all
from unlearnbench.run.estimate import variants
from unlearnbench.run.plan import Plan, select
from unlearnbench.run.progress import spell
from unlearnbench.store.artifacts import Artifact, ArtifactStore, Tensors
from unlearnbench.store.cell import Cell, Controls, Rerun
from unlearnbench.store.hashing import digest, file_digest
from unlearnbench.store.records import DeviceModel, Record, ResultStore, device_model

DOWNLOAD = "(to download)"  # ends the names of what would come over the network
MOST_NAMED = 5  # methods named in a line
MEASURES = "'unlearnbench estimate' with the same options measures it"


class Missing(Exception):
    """Something is not at hand, and a look makes and downloads nothing."""


class Look(ArtifactStore):
    """A cache that is looked into and left as it is."""

    def get(
        self, kind: str, inputs: Mapping[str, Any], build: Callable[[], tuple[Tensors, Mapping[str, Any]]]
    ) -> Artifact:
        """Return a sound artifact.

        Raises:
            Missing: there is none.
        """
        folder = self._folder(kind, inputs)
        try:
            note = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
            payload = folder / "payload.safetensors"
            if file_digest(payload) != note["sha256"]:
                raise Missing(kind)
            key = digest({"kind": kind, "inputs": inputs})
            return Artifact(kind, key, note["sha256"], load_file(payload), note["facts"], reused=True)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise Missing(kind) from error

    def fetch(self, what: str) -> None:
        """Stop before a download."""
        raise Missing(f"{what} {DOWNLOAD}")


def forecast(
    plan: Plan, store: ResultStore, cache: Path, device: str, rerun: Rerun, repeats: int = 1,
    models: Path | None = None, controls: Controls = "first", devices: str = "",
) -> Iterator[str]:  # fmt: skip
    """Yield what a run with these arguments, those of `Benchmark`, would do, line by line; nothing is written.

    Raises:
        UsageError: it could not run: there is no such device, or the base model or the images cannot be read.
    """
    found = identify_all(device, devices)
    plan.dataset.check_device(found[0]["identity"]["type"])
    reading = store.read()
    here = device_model(found[0]["identity"])
    selection = select(plan, reading.records, rerun, here, repeats=repeats, models=models, controls=controls)
    todo = {cell.id for cell in selection.todo}
    yield from (cell.id if cell.id in todo else f"{cell.id} (recorded)" for cell in plan.cells)
    yield from (f"warning: {warning}" for warning in plan.warnings)
    yield from (f"warning: {problem}" for problem in reading.problems)
    checks = f", {len(plan.controls)} of them to check the suite (--controls)" if plan.controls else ""
    yield f"{plural(len(plan.cells), 'cell')}{checks}"
    yield f"to measure: {len(todo)}; recorded in {store.root} already: {len(plan.cells) - len(todo)} (--rerun {rerun})"
    names = ", ".join(each["name"] for each in found)
    yield f"device{'s' * (len(found) > 1)}: {names} ({found[0]['identity']['name']})"
    if selection.todo:
        needs = {need for spec in plan.metrics for need in spec.needs}
        seeds = sorted({cell.base_seed for cell in selection.todo})
        there, lacking = at_hand(plan.dataset, Look(cache), torch.device(found[0]["device"]), needs, seeds)
        yield f"in the cache {cache}: {', '.join(there) or 'nothing that is needed'}"
        yield f"to be made first: {', '.join(lacking) or 'nothing'}"
        yield from by_records(plan, selection.todo, reading.records, here, len(found))


def at_hand(
    dataset: Dataset, look: Look, device: torch.device, needs: Collection[str], base_seeds: Iterable[int]
) -> tuple[list[str], list[str]]:
    """Return what `preparation.prepare` would find in the cache, and what it would have to make or download.

    Raises:
        UsageError: the images, or the base model, cannot be read or do not fit.
    """
    if dataset.checkpoint and Path(dataset.checkpoint).is_dir():
        read_checkpoint(dataset.checkpoint, dataset)
    there: list[str] = []
    lacking: list[str] = []
    try:
        images: Images | None = dataset.load(look, _quiet)
        there.append("images")
    except Missing as missing:
        images = None
        lacking.append(str(missing))
    for name, get in _parts(dataset, images, look, device, needs, base_seeds).items():
        try:
            if images is None:
                raise Missing(name)
            get()
            there.append(name)
        except Missing:
            lacking.append(name)
    return there, lacking + _downloads(dataset, lacking, needs)


def _parts(
    dataset: Dataset, images: Images | None, look: Look, device: torch.device, needs: Collection[str],
    base_seeds: Iterable[int],
) -> dict[str, Callable[[], Any]]:  # fmt: skip
    """Return {name: what gets it} of all that belongs to a dataset besides its images; None of these: names alone."""
    sources = image_digests(images) if images is not None else {}
    made: Any = (images, sources, look, device, _quiet)
    others = [name for name, (ends, _) in OTHER_JUDGES.items() if any(need.endswith(ends) for need in needs)]
    own, featured = dataset.extractor, any(need.endswith("_features") for need in needs)

    def base(seed: int) -> Artifact:
        return base_artifact(dataset.with_base_seed(seed), made[0].train, sources["train"], look, device, _quiet)

    def extractor() -> Mapping[str, str]:
        if own is None:
            return inception_reference(dataset.inception_weights)
        return classifier(dataset, "extractor", own, *made).reference

    def features() -> Artifact:
        return train_features(torch.nn.Identity(), extractor(), *made)

    minutes = "" if dataset.base.minutes is None else f", {dataset.base.minutes:g} minutes"
    bases = {"base model" if dataset.checkpoint else f"base model (seed {seed}{minutes})": seed for seed in base_seeds}
    return {
        "judge": partial(classifier, dataset, "judge", dataset.judge, *made),
        **{f"{name} judge": partial(OTHER_JUDGES[name][1], dataset, *made) for name in others},
        **({"feature extractor": extractor} if featured and own is not None else {}),
        **({"features of the training images": features} if featured else {}),
        **{name: partial(base, seed) for name, seed in bases.items()},
    }


def _quiet(what: str, done: int, total: int) -> None:
    """Show no progress."""


def _downloads(dataset: Dataset, lacking: Collection[str], needs: Collection[str]) -> list[str]:
    """Return the weights that would come over the network."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torchvision.models import ResNet34_Weights

    wanted = []
    if isinstance(dataset.judge, ClassifierRecipe) and dataset.judge.pretrained and "judge" in lacking:
        wanted.append(("ImageNet weights of the judge", ResNet34_Weights.IMAGENET1K_V1.url))
    if dataset.extractor is None and not dataset.inception_weights and any(n.endswith("_features") for n in needs):
        wanted.append(("Inception weights of FID", URL_INCEPTION_V3))
    found = [f"{name} {DOWNLOAD}" for name, url in wanted if not _downloaded(url)]
    hub = dataset.checkpoint and "base model" in lacking and not Path(dataset.checkpoint).is_dir()
    return [*found, *([f"{dataset.checkpoint} of the Hugging Face Hub {DOWNLOAD}"] if hub else [])]


def _downloaded(url: str) -> bool:
    """Say whether torch's hub has a file of weights."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).is_file()


def inception_is_here(dataset: Dataset) -> bool:
    """Say whether FID's Inception network can be had without a download."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return bool(dataset.inception_weights) or _downloaded(URL_INCEPTION_V3)


def by_records(
    plan: Plan, cells: Sequence[Cell], records: Iterable[Record], device: DeviceModel, devices: int = 1
) -> Iterator[str]:
    """Yield what cells will take, as a table of methods and in all, by the records of the same device and settings.

    Args:
        plan: holds the cells.
        cells: to be measured.
        records: of earlier ones.
        device: model of the device.
        devices: how many of that model take a cell each, all the time.
    """
    known = [record for record in records if record.status == "ok" and record.device_model.matches(device)]
    rows = [(alike, [record for record in known if _alike(record.cell, alike[0])]) for alike in variants(cells)]
    behind = [record for _, found in rows for record in found]
    if behind:
        costs = Costs(behind)
        yield ""
        yield from table([_row(plan, alike, found, costs) for alike, found in rows])
        yield ""
        yield legend(costs.probe)
    yield duration(rows, devices)


def _alike(one: Cell, other: Cell) -> bool:
    """Say whether two cells do the same work: dataset, protocol, method, settings."""
    return all(
        getattr(one, name) == getattr(other, name) for name in ("dataset", "protocol", "method", "settings")
    ) and bool(one.earlier) == bool(other.earlier)


def _row(plan: Plan, cells: Sequence[Cell], records: Sequence[Record], costs: Costs) -> list[str]:
    """Return a method's row of the table: means over its records."""
    label = plan.label(cells[0])
    if not records:
        return [label, str(len(cells)), *[UNKNOWN] * (len(HEADERS) - 2)]
    prior, rte, sample = (
        fmean(float(record.cost.get(phase, {}).get("seconds", 0.0)) for record in records)
        for phase in ("prior", "forget", "sample")
    )
    steps = fmean(record.counts.get("optimizer_steps", 0) for record in records)
    times = (prior, rte, prior + rte, sample)
    peaks = [peak for record in records if (peak := costs.number(record, costs.memory)) is not None]
    return [
        label,
        str(len(cells)),
        f"{rte / steps:.3g}" if steps else "-",
        *[about(seconds, extrapolated=False) for seconds in times],
        f"{fmean(peaks):.2f}" if peaks else UNKNOWN,
        about(fmean(record.wall_seconds or 0.0 for record in records), extrapolated=False),
    ]


def duration(rows: Sequence[tuple[Sequence[Cell], Sequence[Record]]], devices: int = 1) -> str:
    """Return how long cells will take one after another, given those of each method with the records that tell."""
    known = [(cells, records) for cells, records in rows if records]
    unknown = list(dict.fromkeys(cells[0].method for cells, records in rows if not records))
    named = ", ".join(unknown[:MOST_NAMED]) + (f" and {len(unknown) - MOST_NAMED} more" * (len(unknown) > MOST_NAMED))
    if not known:
        return (
            f"how long it will take is not known: there is no record of {named} with these settings on this device and "
            f"dataset yet; {MEASURES}"
        )
    seconds = sum(len(cells) * fmean(record.wall_seconds or 0.0 for record in records) for cells, records in known)
    how = "one after another" if devices == 1 else f"on {devices} devices at once"
    behind = sum(len(records) for _, records in known)
    some, every = (sum(len(cells) for cells, _ in part) for part in (known, rows))
    which = f"{some} of {plural(every, 'cell')}" if unknown else plural(every, "cell")
    rest = f"; not known for {named} ({MEASURES})" if unknown else ""
    return (
        f"about {spell(seconds / devices)} for {which}, {how}, by {plural(behind, 'record')} of the same device, "
        f"dataset and settings{rest}; what must be made first comes on top"
    )
