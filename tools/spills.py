"""Reads nvcc's output (made with -Xptxas -v) from standard input and fails where a kernel spills registers.

A spilled register turns arithmetic into memory traffic, which a kernel bound by memory cannot afford.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


def readable(names: list[str]) -> list[str]:
    """The C++ names; the mangled ones where there is no c++filt."""
    try:
        result = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return names
    return result.stdout.splitlines()


def main() -> int:
    entry, arch, seen = "", "", 0
    registers: dict[str, int] = defaultdict(int)
    spills: list[tuple[str, str, int]] = []
    for line in sys.stdin:
        if found := ENTRY.search(line):
            entry, arch = found.groups()
            seen += 1
        elif (found := SPILL.search(line)) and entry:
            stored = int(found[1]) + int(found[2])
            if stored:
                spills.append((entry, arch, stored))
        elif found := REGISTERS.search(line):
            registers[arch] = max(registers[arch], int(found[1]))
    if not seen:
        print("spills: no kernel in the output; was it made with -Xptxas -v?", file=sys.stderr)
        return 1
    for (_, arch, stored), name in zip(spills, readable([name for name, _, _ in spills]), strict=True):
        print(f"spills: {stored} bytes on {arch} in {name}", file=sys.stderr)
    most = ", ".join(f"{arch} {count}" for arch, count in sorted(registers.items()))
    print(f"{seen} kernels compiled, {len(spills)} spill registers; most registers: {most}")
    return 1 if spills else 0


if __name__ == "__main__":
    sys.exit(main())
