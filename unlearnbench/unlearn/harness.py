"""The harness behind a method's context: device, seed, images, cache, meter; hidden from the method."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from unlearnbench.cost.meter import Meter
from unlearnbench.datasets import Dataset
from unlearnbench.models.denoiser import Denoiser
from unlearnbench.models.kept import Kept
from unlearnbench.protocols import Progress
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cell import Target
from unlearnbench.unlearn.streams import Counts


@dataclass(frozen=True)
class Harness:
    """The resources behind a context, hidden from the method."""

    dataset: Dataset
    kept: Kept
    base: Denoiser
    base_digest: str
    method: str
    source_hash: str
    streams: frozenset[str]
    seed: int
    target: Target
    device: torch.device
    store: ArtifactStore
    meter: Meter
    device_identity: Mapping[str, Any]
    software: Mapping[str, str]
    progress: Progress
    counts: Counts = field(default_factory=Counts)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    priors: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> its entry in the record
    made: set[str] = field(default_factory=set)  # keys of the priors that this process built
