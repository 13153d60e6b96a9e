"""Two threads unless OMP_NUM_THREADS says otherwise, and the environment in the JSON."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch

from fastrobust import _backend
from fastrobust.evaluation.environment import environment

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["environment"] = environment()


@pytest.fixture(scope="session")
def peak() -> float:
    """Floating-point operations a second that this machine's threads can do at most, measured."""
    assert _backend.cpu is not None
    threads, rates = torch.get_num_threads(), []
    for _ in range(9):
        start = time.perf_counter()
        operations = _backend.cpu.multiply_adds(threads, 2_000_000)
        rates.append(operations / (time.perf_counter() - start))
    return max(rates)
