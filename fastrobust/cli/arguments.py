"""What the commands' arguments have in common: a parser that answers in one line, fractions, counts."""

from __future__ import annotations

import argparse
import math
from typing import Any, NoReturn

DATA_HELP = "mnist5k, digits, idx:FOLDER (MNIST's files) or images:FOLDER (a folder per class)"


class Parser(argparse.ArgumentParser):
    """argparse with one line for an error instead of the usage text, and defaults in the help."""

    def __init__(self, prog: str | None = None, **kwargs: Any) -> None:
        super().__init__(prog, formatter_class=_Formatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def number(text: str) -> float:
    """A finite number at least 0, or a fraction such as 8/255."""
    value = _value(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be a number >= 0 or a fraction such as 8/255, got {text!r}")
    return value


def real(text: str) -> float:
    """A finite number of either sign, or a fraction."""
    value = _value(text)
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text!r}")
    return value


def whole(text: str, least: int = 0) -> int:
    """A whole number at least 0."""
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """A whole number at least 1."""
    return whole(text, least=1)


def _value(text: str) -> float:
    """The number; NaN for what is none, or infinite."""
    above, slash, below = text.partition("/")
    try:
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        return math.nan
    return value if math.isfinite(value) else math.nan


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples and names the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = any(action.default is value for value in (None, False, (), argparse.SUPPRESS))
        return action.help if silent else f"{action.help} (default: %(default)s)"
