"""The base model, untouched: the row every other row is compared with.

Minimises nothing. A benchmark in which this row counts as forgotten is broken.
"""

from unlearnbench import Context, method


@method(title="Original", role="reference")
def original(ctx: Context):
    """Leave the model as it is."""
