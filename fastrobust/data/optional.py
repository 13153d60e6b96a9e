"""Packages that only some users need: imported when used, named when missing."""

from __future__ import annotations

import importlib
from types import ModuleType


def need(module: str, package: str, user: str, extra: str = "demo") -> ModuleType:
    """Import `module` for the function `user`, or say which package and which extra bring it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{user} needs {package}: pip install 'fastrobust[{extra}]'") from error
