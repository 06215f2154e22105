"""The options of `run`, which other commands share, and their help in sections."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from unlearnbench.store import cell as grid

CELLS, SUBJECT, MANNER, FILES = "What to measure", "On what", "How", "Where"
WIDEST = 32  # columns for the names of options
REST = "Other"  # of options without a section


class Command(TyperCommand):
    """A command that reports an option without its value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; fail where an option that takes a value is followed by another option's name."""
        options = [param for param in self.get_params(ctx) if param.param_type_name == "option"]
        names = {name for param in options for name in (*param.opts, *param.secondary_opts)}
        valued = {name for param in options if not getattr(param, "is_flag", False) for name in param.opts}
        before = args[: args.index("--")] if "--" in args else args
        for name, value in pairwise(before):
            if name in valued and value.partition("=")[0] in names:
                ctx.fail(f"Option '{name}' has no value: {value} follows it.")
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


class Sections(Command):
    """A command with options in sections in its help, as plain text, which prints fast."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections."""
        lines: dict[str, list[Any]] = {section: [] for section in (CELLS, SUBJECT, MANNER, FILES, REST)}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                lines[getattr(param, "rich_help_panel", None) or REST].append(record)
        for section, records in filter(lambda item: item[1], lines.items()):
            with formatter.section(section):
                formatter.write_dl(records, col_max=WIDEST)


def finite(value: float | None) -> float | None:
    """Refuse NaN and infinity as a duration."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def _option(section: str, help: str, *names: str, metavar: str | None = None, **more: Any) -> Any:
    """Return an option of a section of the help."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=section, **more)


def one_of(kind: Any) -> Callable[[str], str]:
    """Return a parser of the words of a Literal, which lists them on an error."""

    def read(text: str) -> str:
        from unlearnbench.errors import suggest

        words = get_args(kind)
        if text not in words:
            raise typer.BadParameter(f"there is no {text!r}{suggest(text, words)}: choose from {', '.join(words)}")
        return text

    return read


def _words(section: str, help: str, kind: Any) -> Any:
    """Return an option that takes a word of a Literal."""
    return _option(section, help, metavar="|".join(get_args(kind)), parser=one_of(kind))


# What to measure

Methods = Annotated[
    str, _option(CELLS, "Required: all, a group such as paper, or names separated by commas.", metavar="NAMES")
]
Classes = Annotated[
    str, _option(CELLS, "Classes to forget, one at a time: 0-9 or 0,cat. Several at once: 0+1", metavar="CLASSES")
]
Retained = Annotated[
    str, _option(CELLS, "Measure retention on these classes alone: 0-9 of a model of 1,000.", metavar="CLASSES")
]
Sequence = Annotated[
    str, _option(CELLS, "Instead of --classes: forget these one after another: 0,1,2", metavar="CLASSES")
]
Forgotten = Annotated[
    str, _option(CELLS, "The class that the models forgot: 3, cat, or 0+1", "--class", metavar="CLASS")
]
ToForget = Annotated[str, _option(CELLS, "The class to forget: 3, cat, or 0+1", "--class", metavar="CLASS")]
RowName = Annotated[str, _option(CELLS, "Name of the row, if not that of the folder.", "--name", metavar="NAME")]
Seed = Annotated[
    int | None, _option(CELLS, "Seed; default: that of the model's own cell, or 0.", "--seed", min=0, metavar="N")
]
OneSeed = Annotated[
    int, _option(CELLS, "Seed of unlearning, and of a base model that is trained.", "--seed", min=0, metavar="N")
]
Metrics = Annotated[
    str, _option(CELLS, "all, a group such as attacks, or names: all,attacks or ua,fid", metavar="NAMES")
]
Set = Annotated[
    list[str] | None,
    _option(
        CELLS, "A method's setting; several values are a sweep. May be repeated.", "--set", metavar="METHOD.NAME=V1,V2"
    ),
]
Seeds = Annotated[
    str, _option(CELLS, "Replicates, each with its own base model and sampling noise: 0-2", metavar="SEEDS")
]
BaseSeeds = Annotated[
    str, _option(CELLS, "Seeds of the base model alone, each combined with each of --seeds.", metavar="SEEDS")
]
SamplingSeeds = Annotated[
    str, _option(CELLS, "Seeds of the sampling noise alone, each combined with each of --seeds.", metavar="SEEDS")
]
Controls = Annotated[
    grid.Controls,
    _words(
        CELLS,
        "Sanity checks, methods with a known outcome: for the first class, for every class, or none.",
        grid.Controls,
    ),
]
Track = Annotated[
    grid.Track,
    _words(
        CELLS,
        "Settings of methods: tuned for the dataset where there are such values, as published, or a row of each.",
        grid.Track,
    ),
]
Tuned = Annotated[str, _option(CELLS, "all, a group such as paper, or names separated by commas.", metavar="NAMES")]
TuningClasses = Annotated[
    str,
    _option(CELLS, "Classes to forget, one at a time, if not those that the dataset declares.", metavar="CLASSES"),
]
TuningSeeds = Annotated[
    str, _option(CELLS, "Seeds of base model, unlearning and sampling, which no report shows.", metavar="SEEDS")
]
Trials = Annotated[int, _option(CELLS, "Settings of each method that are tried.", "--trials", min=1, metavar="N")]
Images = Annotated[
    int,
    _option(CELLS, "Images through the model in a cell, forward and backward, with priors.", min=1, metavar="N"),
]
Floor = Annotated[
    float,
    _option(CELLS, "Least percentage retained of what can be chosen.", min=0, max=100, metavar="PERCENT"),
]
Plugin = Annotated[
    list[Path] | None,
    _option(CELLS, "A file with your method or metric. May be repeated.", "--plugin", metavar="FILE"),
]

# On what

Dataset = Annotated[str, _option(SUBJECT, "One of 'unlearnbench list datasets'.", metavar="NAME")]
Protocol = Annotated[str, _option(SUBJECT, "Rules of evaluation; see 'unlearnbench list datasets'.", metavar="NAME")]
DataRoot = Annotated[Path | None, _option(SUBJECT, "Folder of the images, or to download them to.", metavar="DIR")]
ImageSize = Annotated[
    int | None, _option(SUBJECT, "Side in pixels that images of a folder are resized to.", metavar="N")
]
Base = Annotated[
    str, _option(SUBJECT, "Your base model: a diffusers folder, or its name on the Hub.", metavar="DIR|ID")
]
Model = Annotated[str, _option(SUBJECT, "Kind of base model to train: unet, dit or text.", metavar="KIND")]
Concepts = Annotated[
    Path | None,
    _option(
        SUBJECT, "File of concepts: prompts, paraphrases, anchors and folders of images.", "--concepts", metavar="FILE"
    ),
]
Labels = Annotated[
    str, _option(SUBJECT, "Labels of the classes in a --base that knows more.", "--labels", metavar="NAME=LABEL,...")
]
BaseSteps = Annotated[int | None, _option(SUBJECT, "Training steps of the base model.", min=1, metavar="N")]
BaseMinutes = Annotated[
    float | None,
    _option(
        SUBJECT, "Training time of the base model, instead of a number of steps.", min=0.01, metavar="MINUTES",
        callback=finite,
    ),
]  # fmt: skip
Judge = Annotated[str, _option(SUBJECT, "Judge, if not the protocol's.", metavar="NAME")]
JudgeWeights = Annotated[
    Path | None, _option(SUBJECT, "Weights of --judge (safetensors), instead of training it.", metavar="FILE")
]
SecondJudge = Annotated[str, _option(SUBJECT, "Second judge, if not the protocol's.", metavar="NAME")]
SecondJudgeWeights = Annotated[
    Path | None, _option(SUBJECT, "Weights of --second-judge (safetensors), instead of training it.", metavar="FILE")
]
Extractor = Annotated[str, _option(SUBJECT, "Feature extractor for FID: inception or own.", metavar="NAME")]
Inception = Annotated[
    Path | None, _option(SUBJECT, "torch-fidelity's Inception weights, for use without network.", metavar="FILE")
]

# How

Device = Annotated[str, _option(MANNER, "auto, cpu, cuda, cuda:1", metavar="NAME")]
Devices = Annotated[
    str,
    _option(
        MANNER,
        "Several devices of one model, each running one cell: GPUs, 0,1 or all; or sets of cores, cpu:0-3,cpu:4-7+12",
        metavar="NAMES",
    ),
]
BatchSize = Annotated[
    int | None, _option(MANNER, "Images per forward pass of sampling, to fit the memory.", min=1, metavar="N")
]
Precision = Annotated[
    grid.Precision,
    _words(MANNER, "Precision of all methods' forward passes (bf16: CUDA only); weights stay in fp32.", grid.Precision),
]
Compile = Annotated[bool, _option(MANNER, "Compile the networks of all methods (torch.compile).", "--compile")]
Repeats = Annotated[int, _option(MANNER, "Timing repeats per cell; tables report the median.", min=1, metavar="N")]
Rerun = Annotated[grid.Rerun, _words(MANNER, "Which recorded cells to measure again.", grid.Rerun)]
Timeout = Annotated[
    float | None, _option(MANNER, "Seconds after which a cell is stopped.", min=1, metavar="SECONDS", callback=finite)
]
Minutes = Annotated[
    float | None,
    _option(
        MANNER,
        "Time budget in minutes; run the same command again to resume.",
        min=0.01,
        metavar="MINUTES",
        callback=finite,
    ),
]
StopIfWeak = Annotated[
    bool, _option(MANNER, "End the run as soon as the untouched model fails its checks.", "--stop-if-weak")
]
NoReport = Annotated[bool, _option(MANNER, "Record the cells, render no report, as for a task of many.", "--no-report")]
Cluster = Annotated[
    Path | None,
    _option(MANNER, "Run as jobs of a cluster, as this YAML file says.", "--cluster", metavar="FILE"),
]
Detach = Annotated[bool, _option(MANNER, "With --cluster: submit the jobs, and do not wait for them.", "--detach")]
PrintJobs = Annotated[
    bool, _option(MANNER, "With --cluster: write the job scripts, and submit nothing.", "--print-jobs")
]
DryRun = Annotated[bool, _option(MANNER, "Check everything, show what would run, and stop.", "--dry-run")]

PaperMethods = Annotated[
    str, typer.Option("--methods", help="Of the paper's two tables: paper, or up to four names.", metavar="NAMES")
]

# Where

Results = Annotated[Path, _option(FILES, "Folder of the records.", "--results", metavar="DIR")]
Out = Annotated[Path, _option(FILES, "Folder for the report.", "--out", metavar="DIR")]
SaveModels = Annotated[
    Path | None, _option(FILES, "Folder for the unlearned models, one subfolder each.", "--save-models", metavar="DIR")
]
