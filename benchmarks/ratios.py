"""Print the ratios of a benchmark run: ``python benchmarks/ratios.py RESULTS.json``.

Each line compares one contender's median with the first native one's of its group: above 1, ours is faster.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def table(results: dict[str, object]) -> list[str]:
    """The groups as a Markdown table."""
    groups: dict[str, dict[str, float]] = {}
    for entry in results["benchmarks"]:  # type: ignore[attr-defined]
        groups.setdefault(entry["group"], {})[entry["params"]["who"]] = entry["stats"]["median"]
    lines = ["| what | who | median | ours is faster by |", "|---|---|---:|---:|"]
    for group, medians in groups.items():
        ours = next((t for who, t in medians.items() if who.startswith(("native", "fastrobust", "early"))), None)
        for who, median in medians.items():
            ratio = "" if ours is None or median is ours else f"{median / ours:.2f}x"
            lines.append(f"| {group} | {who} | {human(median)} | {ratio} |")
    return lines


def human(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def main(path: str) -> None:
    results = json.loads(Path(path).read_text())
    print(", ".join(f"{key}: {value}" for key, value in results.get("environment", {}).items()))
    print("\n".join(table(results)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/ratios.py RESULTS.json")
    main(sys.argv[1])
