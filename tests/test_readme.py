"""The README's Python runs, and its files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_example_runs() -> None:
    blocks = re.findall(r"<!-- run -->\n```python\n(.*?)```", README, re.S)
    assert len(blocks) == 1
    names: dict[str, object] = {}
    exec(blocks[0], names)
    assert names["x_adv"].shape == names["x"].shape  # type: ignore[attr-defined]
    assert names["result"].success.shape == (8,)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/**/*.md")), ids=lambda page: page.stem)
def test_pages_run(page: Path) -> None:
    """The blocks of a page that say so, one after another."""
    names: dict[str, object] = {}
    for block in re.findall(r"<!-- run -->\n```python\n(.*?)```", page.read_text(), re.S):
        exec(block, names)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make ([\w-]+)", README + (ROOT / "docs/gpu.md").read_text(), re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target
