"""Reads nvcc's output (made with -Xptxas -v) from standard input and reports the kernels that spill registers.

    python tools/spills.py PATTERN < log       fails where a kernel whose C++ name matches PATTERN spills

A spilled register turns arithmetic into memory traffic, which an elementwise kernel, bound by memory, cannot afford.
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


def main(pattern: str) -> int:
    entry, arch, seen = "", "", 0
    registers: dict[str, int] = defaultdict(int)
    spills: list[tuple[str, str, int]] = []
    for line in sys.stdin:
        if found := ENTRY.search(line):
            entry, arch = found.groups()
            seen += 1
        elif (found := SPILL.search(line)) and entry:
            if spilled := int(found[1]) + int(found[2]):
                spills.append((entry, arch, spilled))
            entry = ""
        elif found := REGISTERS.search(line):
            registers[arch] = max(registers[arch], int(found[1]))
    if not seen:
        print("spills: no kernel in the output; was it made with -Xptxas -v?", file=sys.stderr)
        return 1
    bad = 0
    for (_, arch, spilled), name in zip(spills, readable([entry for entry, _, _ in spills]), strict=True):
        forbidden = re.search(pattern, name) is not None
        bad += forbidden
        print(f"{'ERROR' if forbidden else 'note'}: {spilled} bytes spilled on {arch} in {name}")
    most = ", ".join(f"{arch} {count}" for arch, count in sorted(registers.items()))
    print(f"spills: {seen} kernels compiled, {len(spills)} spill, {bad} of them must not; most registers: {most}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
