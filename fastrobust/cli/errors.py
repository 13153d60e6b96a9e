"""What the user got wrong: one clear line and exit code 2, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in the command, or a package or file it needs; its text is what the user reads."""


@contextmanager
def user_input() -> Iterator[None]:
    """Turn the errors that bad input raises in the library into a UserError.

    Put it around code that reads arguments and files, not around the work: an error there is a bug and keeps
    its traceback.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise UserError(describe(error)) from error


def describe(error: Exception) -> str:
    """The error in one line, without Python's error numbers."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split())
