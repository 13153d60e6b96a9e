"""One thread for all tests here: their networks are small."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _quiet(one_thread: None) -> None:
    pass
