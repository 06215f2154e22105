"""The cluster file: how many jobs, how long, with which options of Slurm."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from unlearnbench.errors import UsageError, suggest

LauncherName = Literal["slurm", "local"]
Timed = Literal["exclusive", "shared"]
INSTALL = "install it with 'pip install \"unlearnbench[cluster]\"'"
OURS = (  # set by the launcher
    "array", "array_parallelism", "dependency", "error", "job_name", "nodes", "ntasks", "ntasks_per_node", "open_mode",
    "output", "parsable", "signal", "tasks_per_node", "use_srun", "wait",
)  # fmt: skip
LONGEST_LOCAL = 7 * 24 * 60  # minutes, where no time is given
NUMBER, OPTIONS, WORD = "a whole number", "options in braces, {name: value, ...}", "a word"
KINDS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "workers": (int, NUMBER), "minutes": ((int, float), "a number"), "retries": (int, NUMBER),
    "slurm": (dict, OPTIONS), "prepare": (dict, OPTIONS), "timed": (str, WORD), "launcher": (str, WORD),
}  # fmt: skip


@dataclass(frozen=True)
class ClusterConfig:
    """A cluster file, read and checked."""

    workers: int  # jobs at once
    minutes: float | None = None  # that a job's cells should take, where their times are known
    retries: int = 2  # of a cell or a job that ended without a result
    slurm: Mapping[str, Any] = field(default_factory=dict)  # options of submitit or sbatch, for all jobs
    prepare: Mapping[str, Any] = field(default_factory=dict)  # in their place for the job that prepares
    timed: Timed = "shared"
    launcher: LauncherName = "slurm"

    def options(self, *, preparing: bool) -> dict[str, Any]:
        """Return the options of a job, with underscores: of the one that prepares, not timed, or of one with cells."""
        alone = {"exclusive": True} if self.timed == "exclusive" and not preparing else {}
        chosen = {**self.slurm, **(self.prepare if preparing else {}), **alone}
        plain = {name.replace("-", "_"): value for name, value in chosen.items() if value is not False}
        if "cpus_per_task" in plain:  # since Slurm 22.05, srun does not inherit it
            plain["srun_args"] = [*plain.get("srun_args", []), f"--cpus-per-task={plain['cpus_per_task']}"]
        return plain

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return asdict(self)


def read_config(path: Path) -> ClusterConfig:
    """Read a cluster file.

    Raises:
        UsageError: it cannot be read, or something in it is unknown, missing or of the wrong type.
    """
    try:
        import yaml
    except ImportError as error:
        raise UsageError(f"--cluster needs PyYAML: {INSTALL}") from error
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _strict(yaml))
    except OSError as error:
        raise UsageError(f"--cluster {path} cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--cluster {path} is not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or "workers" not in content:
        raise UsageError(f"--cluster {path} needs a line 'workers: N', the number of jobs at once")
    return config_of(content, f"--cluster {path}")


def _strict(yaml: ModuleType) -> Any:
    """Return a loader that takes no name twice, and 1:30 as text: YAML reads it as 90, Slurm as 90 seconds."""

    class Strict(yaml.SafeLoader):  # type: ignore[name-defined, misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value]
            if twice := [name for name in names if names.count(name) > 1]:
                raise yaml.constructor.ConstructorError(problem=f"{twice[0]} is given twice")
            return super().construct_mapping(node, deep)

        def construct_yaml_int(self, node: Any) -> Any:
            return node.value if ":" in node.value else super().construct_yaml_int(node)

    Strict.add_constructor("tag:yaml.org,2002:int", Strict.construct_yaml_int)
    return Strict


def config_of(content: Mapping[Any, Any], where: str) -> ClusterConfig:
    """Return the configuration in a mapping, as `ClusterConfig.to_json` returns it or a file has it.

    Raises:
        UsageError: something in it is unknown or wrong; it begins with `where`.
    """
    known = [one.name for one in fields(ClusterConfig)]
    for name, value in content.items():
        if name not in known:
            raise UsageError(f"{where}: {name!r} is not known{suggest(str(name), known)}; known are {', '.join(known)}")
        if value is None and name == "minutes":
            continue
        kind, words = KINDS[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UsageError(f"{where}: {name} takes {words}, not {value!r}")
    config = ClusterConfig(**content)
    for name, least in (("workers", 1), ("retries", 0)):
        if getattr(config, name) < least:
            raise UsageError(f"{where}: {name} is at least {least}, not {getattr(config, name)}")
    if config.minutes is not None and not 0 < config.minutes < 1e6:
        raise UsageError(f"{where}: minutes is a positive number, not {config.minutes}")
    for name, choices in (("timed", get_args(Timed)), ("launcher", get_args(LauncherName))):
        if getattr(config, name) not in choices:
            raise UsageError(f"{where}: {name} is {' or '.join(choices)}, not {getattr(config, name)!r}")
    for name in ("slurm", "prepare"):
        _check_options(getattr(config, name), f"{where}: {name}")
    _check_time(config, where)
    return config


def _check_time(config: ClusterConfig, where: str) -> None:
    """Raise UsageError unless jobs of Slurm have a time, in which their cells fit."""
    time = config.slurm.get("time")
    if config.launcher == "slurm" and time is None:
        raise UsageError(f"{where}: slurm needs time, the minutes that a job may take, such as 'slurm: {{time: 120}}'")
    if time is not None and config.minutes is not None and config.minutes > time:
        raise UsageError(f"{where}: minutes is {config.minutes:g}, but time lets a job take only {time}")


def _check_options(options: Mapping[Any, Any], where: str) -> None:
    """Raise UsageError for options that no job can have."""
    for name, value in options.items():
        if not isinstance(name, str):
            raise UsageError(f"{where}: {name!r} is not the name of an option")
        if (plain := name.replace("-", "_")) in OURS:
            raise UsageError(f"{where}: the launcher sets {plain} itself: remove it")
        if plain == "time" and not (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            raise UsageError(f"{where}: time is a whole number of minutes, not {value!r}")
        if plain == "setup" and not (isinstance(value, list) and all(isinstance(line, str) for line in value)):
            raise UsageError(f"{where}: setup is a list of shell commands")
        if isinstance(value, Mapping) or (isinstance(value, list) and plain not in ("setup", "srun_args")):
            raise UsageError(f"{where}: {name} takes one value, not {value!r}")


def import_submitit() -> ModuleType:
    """Return the package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise UsageError(f"--cluster needs submitit: {INSTALL}") from error
    return submitit


def for_submitit(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as submitit takes them: those that it does not name itself go to sbatch as they are.

    Raises:
        UsageError: submitit is not installed.
    """
    made_of = inspect.signature(import_submitit().slurm.slurm._make_sbatch_string)
    named = set(made_of.parameters) - {"command", "folder", "map_count"}
    rest = {name: value for name, value in options.items() if name not in named}
    return {**{name: value for name, value in options.items() if name in named}, "additional_parameters": rest}
