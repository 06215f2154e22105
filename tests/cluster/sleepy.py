"""A method that sleeps, and a metric that measures nothing: cells that take as long as they are told."""

import os
import time
from typing import Annotated

from annotated_types import Interval

from unlearnbench import Context, PluginError, Score, method, metric

if os.environ.get("SLEEPY_FAILS_IN_JOBS") and "SLURM_JOB_ID" in os.environ:
    raise PluginError("not on this cluster")


@method(title="Sleeps")
def sleeps(ctx: Context, *, seconds: Annotated[float, Interval(ge=0)] = 1.0) -> None:
    time.sleep(seconds)


@metric(title="Nothing", unit="", better="neither", aspect="retention", format=".0f")
def nothing(num_classes):
    return Score(float(num_classes), 1)
