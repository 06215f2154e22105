"""The exceptions that cross module borders."""


class UsageError(Exception):
    """The user asked for something that cannot be done; its text is one sentence that says what to do instead.

    The command line prints it without a traceback and exits with status 2.
    """


class PluginError(Exception):
    """A method or metric breaks its contract; raised where the plugin is declared or where it breaks it."""


class Unmeasurable(Exception):
    """A metric has no meaning for this cell (too few samples, say); the record keeps null and this reason."""


class NonFiniteError(Exception):
    """Unlearning produced a weight or a logged value that is NaN or infinite: the cell failed."""
