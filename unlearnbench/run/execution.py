"""The execution options of a run, independent of its cells."""

from dataclasses import dataclass
from pathlib import Path

from unlearnbench.store.cell import Controls, Rerun


@dataclass(frozen=True)
class Execution:
    """The options of a run that do not affect its cells: devices, rerun policy, time limits."""

    cache: Path  # folder of artifacts
    device: str = "auto"  # as the user named it
    devices: str = ""  # several, as the user named them; `device` is ignored then
    plugin_files: tuple[Path, ...] = ()  # given with --plugin
    rerun: Rerun = "missing"  # which cells run although they have a record
    repeats: int = 1  # timing repeats of each cell's unlearning
    controls: Controls = "first"  # as in the plan; with `first`, records of another class suffice
    models: Path | None = None  # absolute path of the folder that takes the unlearned models, None for none
    timeout: float | None = None  # seconds a cell may take, None for no limit
    minutes: float | None = None  # after which the run stops, None for no limit
    stop_if_weak: bool = False  # end the run when the untouched model fails its checks
