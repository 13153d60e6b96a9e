"""A network with most of what exports hold, its archive, and changes made to archives."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

Edit = Callable[[bytes], bytes]
OLD = "serialized_exported_program.json"


class Net(nn.Module):
    """Most of what exports of classifiers hold: buffers, a constant, sizes, several results, in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.last = nn.Sequential(nn.Dropout(), nn.Linear(36, 6))
        self.first[1].running_mean.uniform_()  # type: ignore[union-attr, operator]
        self.register_buffer("mean", torch.full((1, 1, 1), 0.4), persistent=False)
        self.scale = torch.tensor([2.0])

    def forward(self, x: Tensor) -> Tensor:
        h = self.first((x - self.mean) / 0.3)
        a, b = self.last(h.view(x.shape[0], -1)).split(3, dim=1)
        top = b.max(dim=1, keepdim=True).values
        return torch.cat([a * self.scale, torch.where(b > 0, b, 0.1 * b), top], dim=1)


def export(model: nn.Module, path: Path, *shape: int, static: bool = False) -> Path:
    dynamic = None if static else ({0: Dim.DYNAMIC},)
    torch.export.save(torch.export.export(model, (torch.zeros(*shape),), dynamic_shapes=dynamic), path)
    return path


def edited(path: Path, edits: Mapping[str, bytes | Edit], name: str = "edited.pt2") -> Path:
    """A copy of an archive with some members replaced, or added."""
    out = path.with_name(name)
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(out, "w") as after:
        names, waiting = before.namelist(), dict(edits)
        if OLD in names:  # of torch 2.6 and 2.7
            root = ""
            old = {"models/model.json": OLD, "data/weights/model.pt": "serialized_state_dict.pt",
                   "data/constants/model.pt": "serialized_constants.pt"}  # fmt: skip
            waiting = {old.get(short, short): edit for short, edit in waiting.items()}
        else:
            root = names[0].split("/")[0] + "/"
        for member in names:
            edit, data = waiting.pop(member.removeprefix(root), None), before.read(member)
            after.writestr(member, data if edit is None else edit if isinstance(edit, bytes) else edit(data))
        for short, edit in waiting.items():
            if not isinstance(edit, bytes):
                pytest.skip(f"this version of torch writes no {short}")
            after.writestr(f"{root}{short}", edit)
    return out


def pickled(what: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(what, buffer)
    return buffer.getvalue()


def graph_edit(change: Callable[[Any], None]) -> dict[str, Edit]:
    """Changes the description of the graph."""

    def edit(data: bytes) -> bytes:
        content = json.loads(data)
        change(content)
        return json.dumps(content).encode()

    return {"models/model.json": edit}
