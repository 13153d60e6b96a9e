"""Print the ratios of a benchmark run: ``python benchmarks/ratios.py RESULTS.json [--readme]``.

Each line compares one contender's median with the first native one's of its group: above 1, ours is faster. With
--readme the table replaces the one in README.md.
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


def main(path: str, readme: bool) -> None:
    results = json.loads(Path(path).read_text())
    where = results.get("environment", {})
    print(", ".join(f"{key}: {value}" for key, value in where.items()))
    print("\n".join(table(results)))
    if readme:
        page = Path(__file__).resolve().parents[1] / "README.md"
        head, _, rest = page.read_text().partition("<!-- bench -->\n")
        tail = rest.partition("<!-- /bench -->")[2]
        machine = f"{where['processor']}, {where['threads']} threads, {where['kernels']}, torch {where['torch']}:"
        block = "\n".join([machine, "", *table(results)])
        page.write_text(f"{head}<!-- bench -->\n{block}\n<!-- /bench -->{tail}")


if __name__ == "__main__":
    arguments = [a for a in sys.argv[1:] if a != "--readme"]
    if len(arguments) != 1:
        raise SystemExit("usage: python benchmarks/ratios.py RESULTS.json [--readme]")
    main(arguments[0], "--readme" in sys.argv)
