"""The options of `run`, some of which other commands share, and the help that shows them in sections."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from unlearnbench import grid

CELLS, SUBJECT, MANNER, FILES = "What to measure", "On what", "How", "Where"
WIDEST = 32  # columns for the names of options
REST = "Other"  # of the options that name no section


class Sections(TyperCommand):
    """A command whose help shows its options in sections; plain text, so that it is there at once."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections."""
        lines: dict[str, list[Any]] = {section: [] for section in (CELLS, SUBJECT, MANNER, FILES, REST)}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                lines[getattr(param, "rich_help_panel", None) or REST].append(record)
        for section, records in lines.items():
            with formatter.section(section):
                formatter.write_dl(records, col_max=WIDEST)


def _option(section: str, help: str, *names: str, metavar: str | None = None, **more: Any) -> Any:
    """Return an option of a section of the help."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=section, **more)


# What to measure

Methods = Annotated[str, _option(CELLS, "all, a group such as paper, or names with commas between", metavar="NAMES")]
Classes = Annotated[
    str, _option(CELLS, "Classes to forget, one at a time: 0-9 or 0,cat. Several at once: 0+1", metavar="CLASSES")
]
Sequence = Annotated[
    str, _option(CELLS, "Instead of --classes: forget these one after another: 0,1,2", metavar="CLASSES")
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
    _option(CELLS, "Shams of known outcome, which check the suite: for the first class, for every one, or none."),
]
Plugin = Annotated[
    list[Path] | None,
    _option(CELLS, "A file with a method or metric of yours. May be repeated.", "--plugin", metavar="FILE"),
]

# On what

Dataset = Annotated[str, _option(SUBJECT, "One of 'unlearnbench list datasets'.", metavar="NAME")]
Protocol = Annotated[
    str, _option(SUBJECT, "Rules of evaluation; 'unlearnbench list datasets' has each dataset's.", metavar="NAME")
]
DataRoot = Annotated[Path | None, _option(SUBJECT, "Folder where the images are, or are downloaded to.", metavar="DIR")]
ImageSize = Annotated[
    int | None, _option(SUBJECT, "Side in pixels to which the images of a folder are resized.", metavar="N")
]
Base = Annotated[
    str, _option(SUBJECT, "A base model of yours: a diffusers folder, or its name on the Hub.", metavar="DIR|ID")
]
BaseSteps = Annotated[int | None, _option(SUBJECT, "Train the base model for so many steps.", min=1, metavar="N")]
Judge = Annotated[str, _option(SUBJECT, "Another judge than the protocol's.", metavar="NAME")]
Extractor = Annotated[str, _option(SUBJECT, "Whose features FID compares: inception or own.", metavar="NAME")]
Inception = Annotated[
    Path | None, _option(SUBJECT, "torch-fidelity's Inception weights, where there is no network.", metavar="FILE")
]

# How

Device = Annotated[str, _option(MANNER, "auto, cpu, cuda, cuda:1", metavar="NAME")]
BatchSize = Annotated[
    int | None, _option(MANNER, "Images per forward pass of sampling, to fit the memory.", min=1, metavar="N")
]
Jobs = Annotated[int, _option(MANNER, "Cells at once; each is timed alone all the same.", min=1, max=64, metavar="N")]
Repeats = Annotated[
    int, _option(MANNER, "Time each cell's unlearning so often; tables show the median.", min=1, metavar="N")
]
Rerun = Annotated[grid.Rerun, _option(MANNER, "Which of the recorded cells to measure again.")]
Timeout = Annotated[float | None, _option(MANNER, "Seconds after which a cell is stopped.", min=1, metavar="SECONDS")]
Minutes = Annotated[
    float | None,
    _option(MANNER, "Stop after so long; the same command goes on from there.", min=0.01, metavar="MINUTES"),
]
DryRun = Annotated[bool, _option(MANNER, "Print the cells and stop.", "--dry-run")]

# Where

Results = Annotated[Path, _option(FILES, "Folder of the records.", "--results", metavar="DIR")]
Out = Annotated[Path, _option(FILES, "Folder for the report.", "--out", metavar="DIR")]
SaveModels = Annotated[
    Path | None, _option(FILES, "Folder for the unlearned models, one each.", "--save-models", metavar="DIR")
]
