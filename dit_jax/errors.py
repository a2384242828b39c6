"""Errors that are one line for the user: what was wrong, where, what would do.

The command line prints the message of a `DitJaxError` alone, without a traceback.
"""


class DitJaxError(Exception):
    """Base of the errors a user can act on."""


class InputError(DitJaxError, ValueError):
    """Bad input, found before work starts."""


class TrainingError(DitJaxError, RuntimeError):
    """A run that cannot go on; names the step and what is safe on disk."""
