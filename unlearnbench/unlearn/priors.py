"""Priors: a method's preparation before unlearning; built once, cached, charged to every cell at the original cost.

A prior is reused where everything that its bytes depend on is the same: see `_prior_key`.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from unlearnbench.cost.phases import Cost
from unlearnbench.errors import PluginError
from unlearnbench.models.training import global_rng_kept
from unlearnbench.store.artifacts import Artifact, Tensors
from unlearnbench.store.provenance import device_key
from unlearnbench.store.revisions import of_parts
from unlearnbench.unlearn.harness import Harness
from unlearnbench.unlearn.streams import Counts


def prior_artifact(
    harness: Harness, name: str, build: Callable[[], Tensors], inputs: Mapping[str, Any], *, shared: bool
) -> Artifact:
    """Return a prior from the cache, or build it in phase `prior`; its work is counted separately.

    Args:
        harness: of the method.
        name: of the prior, within the method.
        build: returns named tensors.
        inputs: JSON values and tensors that `build` uses.
        shared: whether it is independent of the forget class.

    Raises:
        PluginError: its name is not a plain word.
    """
    if not re.fullmatch(r"\w{1,50}", name):
        raise PluginError(f"{harness.method}: name a prior by one plain word, not {name!r}")

    def make() -> tuple[Tensors, dict[str, Any]]:
        before = harness.counts.copy()
        with global_rng_kept(harness.device), harness.meter.phase("prior") as cost:
            tensors = build()
        work = harness.counts.since(before)
        harness.counts.add(work, sign=-1)  # `charge_prior` adds it
        return tensors, {"cost": cost.to_json(), "counts": vars(work)}

    artifact = harness.store.get(f"prior-{harness.method}-{name}", _prior_key(harness, name, inputs, shared), make)
    if not artifact.reused:
        harness.made.add(artifact.key)
    return artifact


def charge_prior(harness: Harness, name: str, artifact: Artifact, *, shared: bool) -> None:
    """Charge a cell for a prior, whichever cell built it, and add it to the record."""
    cost, reused = artifact.facts["cost"], artifact.key not in harness.made
    if reused:
        harness.meter.charge("prior", Cost.earlier(cost))
    harness.counts.add(Counts(**artifact.facts["counts"]))
    harness.priors[name] = {"seconds": cost["seconds"], "shared": shared, "reused": reused, "key": artifact.key}


def _prior_key(harness: Harness, name: str, inputs: Mapping[str, Any], shared: bool) -> dict[str, Any]:
    """Return everything that a prior's bytes depend on."""
    dataset = harness.dataset
    computing = {"precision": dataset.precision, "compiled": dataset.compiled}
    return {
        "dataset": dataset.name,
        "content": dataset.content,
        "sampler": dataset.protocol.sampler,
        "base": harness.base_digest,
        "method": harness.method,
        "source": harness.source_hash,
        "name": name,
        "inputs": _describe(inputs),
        "target": None if shared else harness.target,
        "seed": harness.seed,
        "device": device_key(harness.device_identity),  # its cost is charged again, so it must be this model's
        "software": dict(harness.software),
        "harness": of_parts(("unlearning", "sampler")),
        **{name: value for name, value in computing.items() if value not in ("fp32", False)},
    }


def _describe(value: Any) -> Any:
    """Return a value as JSON, with tensors replaced by the hash of their bytes."""
    if isinstance(value, Tensor):
        array = value.detach().cpu().numpy()
        return {"dtype": str(array.dtype), "shape": array.shape, "sha256": hashlib.sha256(array.tobytes()).hexdigest()}
    if isinstance(value, Mapping):
        return {key: _describe(item) for key, item in value.items()}
    return value
