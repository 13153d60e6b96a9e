"""Two threads unless OMP_NUM_THREADS says otherwise, and the environment in the JSON."""

from __future__ import annotations

import os
from typing import Any

import torch

from fastrobust.evaluation.environment import environment

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["environment"] = environment()
