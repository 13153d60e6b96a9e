"""A network and its program."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from saved.archives import Net, export


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def program(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(net, tmp_path_factory.mktemp("pt2") / "net.pt2", 2, 1, 8, 8)
