"""Plans for single models: somebody's unlearned model to be measured, and one model to be unlearned."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearnbench.datasets import Source, local_digest
from unlearnbench.errors import UsageError, one_line, suggest
from unlearnbench.models.checkpoints import read_checkpoint
from unlearnbench.models.saved import read_facts
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.spec import MethodSpec
from unlearnbench.run.plan import Plan, make_plan
from unlearnbench.store.cell import Cell, Target
from unlearnbench.store.fields import PLAIN

DIGITS = 12  # of the hash of a given model's files, in its settings
NOT_RUN = "a model that was given is not unlearned here"


@dataclass(frozen=True)
class Given:
    """An unlearned model in a folder."""

    folder: Path
    name: str  # of its row
    cell: Cell | None  # that it was saved for, by this package

    @classmethod
    def read(cls, folder: Path, name: str = "") -> "Given":
        """Look into a folder.

        Args:
            folder: in diffusers' format.
            name: of the row, if not that of the folder.

        Raises:
            UsageError: there is no such folder, or the name is not a plain word.
        """
        if not folder.is_dir():
            raise UsageError(
                f"there is no model folder {folder}: give one in diffusers' format, as --save-models writes"
            )
        name = name or folder.resolve().name
        if PLAIN.fullmatch(name) is None:
            raise UsageError(
                f"{one_line(name, 60)!r} cannot name a row: give letters, digits, dots, dashes or underscores as --name"
            )
        facts = read_facts(folder)
        return cls(folder, name, None if facts is None else Cell.from_json(facts["cell"]))


def plan_of_given(
    registry: Registry, models: Sequence[Given], *, classes: str, source: Source, metrics: str, seed: int | None,
    retained: str = "",
) -> Plan:  # fmt: skip
    """Return the plan that measures given models, and the untouched base model beside them.

    Args:
        registry: of the metrics.
        models: at least one.
        classes: that they forgot, as for `make_plan`; empty for those that they were saved for.
        source: the dataset.
        metrics: as for `make_plan`.
        seed: of noise and attacks; None for that of the models' own cells, or 0.
        retained: classes that retention is measured on, as for `make_plan`.

    Raises:
        UsageError: an argument is unknown or malformed, the class is unknown, or a model does not fit the dataset.
    """
    _check_names(registry, models)
    references = ",".join(spec.name for spec in registry.controls() if spec.role == "reference")
    own = [model.cell for model in models if model.cell is not None]
    if not classes and len(own) < len(models):
        raise UsageError("say what the model forgot: --class 3, or --class cat")
    seeds = str(seed if seed is not None else own[0].seed if own else 0)
    asked = classes or ",".join(dict.fromkeys("+".join(f"@{c}" for c in cell.forget_classes) for cell in own))
    plan = make_plan(
        registry, methods=references, classes=asked, source=source, metrics=metrics, sweeps=[], seeds=seeds,
        controls="none", retained=retained,
    )  # fmt: skip
    for model in models:
        read_checkpoint(str(model.folder), plan.dataset, option="")  # at once, not after minutes of training
    templates = {cell.target: cell for cell in plan.cells}
    cells = []
    for model in models:
        targets = list(templates) if classes or model.cell is None else [Target(model.cell.forget_classes)]
        weights = {"weights": str(local_digest(model.folder))[:DIGITS]}
        cells += [replace(templates[target], method=model.name, settings=weights) for target in targets]
    return replace(
        plan,
        methods={**plan.methods, **{model.name: _row(model.name) for model in models}},
        cells=[*plan.cells, *cells],
        overrides={**plan.overrides, **{cell.id: {} for cell in cells}},
        source_hashes={**plan.source_hashes, **{f"method:{model.name}": "" for model in models}},
        given={model.name: model.folder.absolute() for model in models},
    )


def _check_names(registry: Registry, models: Sequence[Given]) -> None:
    known = [plugin.name for plugin in registry.plugins("method")]
    names = [model.name for model in models]
    for name in names:
        if name in known:
            raise UsageError(f"{name} is the name of a method: give another one for the row with --name")
        if names.count(name) > 1:
            raise UsageError(
                f"two models would be called {name}: rename a folder, or measure one at a time with --name"
            )


def _row(name: str) -> MethodSpec:
    """Return the declaration of a row that no plugin stands for."""

    def function(ctx: Any) -> None:
        raise AssertionError(NOT_RUN)

    return MethodSpec(
        name=name, title=name, paper="", role="given", groups=(), streams=frozenset(), settings={}, tuned={},
        function=function, truth={},
    )  # fmt: skip


def plan_of_unlearning(
    registry: Registry, method: str, *, classes: str, source: Source, sweeps: Sequence[str], seed: int
) -> Plan:
    """Return the plan of one cell that is unlearned and not measured.

    Raises:
        UsageError: an argument is unknown or malformed, or gives more than one cell.
    """
    known = [plugin.name for plugin in registry.plugins("method")]
    if method not in known:
        raise UsageError(f"there is no method {method!r}{suggest(method, known)}: choose from {', '.join(known)}")
    plan = make_plan(
        registry, methods=method, classes=classes, source=source, metrics="all", sweeps=sweeps, seeds=str(seed),
        controls="none",
    )  # fmt: skip
    if len(plan.cells) != 1:
        raise UsageError(
            f"that makes {len(plan.cells)} models: give one class (0+1 for several at once), and one value"
        )
    if not plan.unlearns(plan.cells[0]):
        raise UsageError(f"{method} does not unlearn: choose a method of 'unlearnbench list methods'")
    if plan.methods[method].inference:
        raise UsageError(
            f"{method} leaves the weights alone and acts while samples are drawn, so there is no model to save: "
            f"'unlearnbench run --methods {method}' measures it"
        )
    return replace(plan, metrics=[], warnings=[])
