"""Print the ratios of a benchmark run: ``python benchmarks/ratios.py RESULTS.json [--readme]``.

Each line compares one contender's median with the first native one's of its group: above 1, ours is faster. With
--readme the table replaces the one in README.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OURS = ("native", "fastrobust", "early")


def groups(results: dict[str, Any]) -> dict[str, tuple[str, float, dict[str, float]]]:
    """For each group our contender, its median, and the ratios of the others' medians to it."""
    medians: dict[str, dict[str, float]] = {}
    for entry in results["benchmarks"]:
        medians.setdefault(entry["group"], {})[entry["params"]["who"]] = entry["stats"]["median"]
    found = {}
    for group, by_name in medians.items():
        ours = next(who for who in (*by_name, "") if who.startswith(OURS))
        found[group] = (ours, by_name[ours], {w: t / by_name[ours] for w, t in by_name.items() if w != ours})
    return found


def shares(results: dict[str, Any]) -> dict[str, str]:
    """For each group that counts its operations: at what rate ours does them, and the share of the machine's peak."""
    found = {}
    for entry in results["benchmarks"]:
        extra = entry["extra_info"]
        if "share of the peak" in extra:
            found[entry["group"]] = f", {extra['GFLOP/s']:.0f} GFLOP/s, {100 * extra['share of the peak']:.0f}% of peak"
    return found


def table(results: dict[str, Any]) -> list[str]:
    """The groups as a Markdown table."""
    lines = ["| what | who | median | ours is faster by |", "|---|---|---:|---:|"]
    rates = shares(results)
    for group, (ours, median, ratios) in groups(results).items():
        lines.append(f"| {group} | {ours} | {human(median)}{rates.get(group, '')} | |")
        lines += [f"| | {who} | {human(ratio * median)} | {ratio:.2f}x |" for who, ratio in ratios.items()]
    return lines


def short_table(results: dict[str, Any]) -> list[str]:
    """A line a group."""
    lines = ["| what | fastrobust | is faster by |", "|---|---:|---|"]
    rates = shares(results)
    for group, (_, median, ratios) in groups(results).items():
        than = " · ".join(f"{who} {ratio:.{0 if ratio >= 10 else 1}f}x" for who, ratio in ratios.items())
        lines.append(f"| {group} | {human(median)}{rates.get(group, '')} | {than} |")
    return lines


def human(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def main(path: str, readme: bool, more: list[str] | None = None) -> None:
    """Print the ratios and `more` lines; with `readme` put them in its place."""
    results = json.loads(Path(path).read_text())
    where = results.get("environment", {})
    print(", ".join(f"{key}: {value}" for key, value in where.items()))
    more = ["", *more] if more else []
    print("\n".join([*table(results), *more]))
    if readme:
        page = Path(__file__).resolve().parents[1] / "README.md"
        head, _, rest = page.read_text().partition("<!-- bench -->\n")
        tail = rest.partition("<!-- /bench -->")[2]
        machine = f"{where['processor']}, {where['threads']} threads, {where['kernels']}, torch {where['torch']}:"
        block = "\n".join([machine, "", *short_table(results), *more])
        page.write_text(f"{head}<!-- bench -->\n{block}\n<!-- /bench -->{tail}")


if __name__ == "__main__":
    arguments = [a for a in sys.argv[1:] if a != "--readme"]
    if len(arguments) != 1:
        raise SystemExit("usage: python benchmarks/ratios.py RESULTS.json [--readme]")
    main(arguments[0], "--readme" in sys.argv)
