"""``python -m benchmarks [--readme] [PYTEST ARGS]``: run the suites, write results/cpu.json, print the ratios."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import memory, ratios

HERE = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    """Exit code of pytest; the table is printed when all went well."""
    results = HERE / "results" / "cpu.json"
    results.parent.mkdir(exist_ok=True)
    rest = [a for a in arguments if a != "--readme"]
    code = pytest.main(
        [
            str(HERE),
            "-p",
            "no:cacheprovider",
            "--benchmark-only",
            "--benchmark-quiet",
            "--benchmark-disable-gc",
            "--benchmark-warmup=on",
            f"--benchmark-json={results}",
            *rest,
        ]
    )
    if code == 0:
        ratios.main(
            str(results), "--readme" in arguments, memory.table() if sys.platform == "linux" and not rest else []
        )
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
