"""Where numbers were made: versions, processor, threads, kernels."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np
import torch

import fastrobust
from fastrobust import _backend


def environment() -> dict[str, Any]:
    """The entries that belong beside any published number, as JSON types."""
    found = {
        "fastrobust": fastrobust.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels": _kernels(),
    }
    if torch.cuda.is_available():
        found["cuda_device"] = torch.cuda.get_device_name()
    return found


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _kernels() -> str:
    if _backend.backend == "reference":
        return "reference (FASTROBUST_BACKEND=reference)"
    if _backend.cpu is None:
        return f"reference ({_backend.missing['cpu']})"
    return f"native, {_backend.cpu.isa()}"
