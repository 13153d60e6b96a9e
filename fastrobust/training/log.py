"""Where a run's history goes: a CSV file always, TensorBoard when it is installed."""

from __future__ import annotations

import csv
import importlib
import io
from pathlib import Path
from typing import Any

from .checkpoint import write_atomic

History = list[dict[str, Any]]
"""One row per epoch: epoch (from 1), loss and accuracy on the training points, lr and eps at its last step,
clean, robust, certified and noisy validation accuracy (None where not measured), seconds."""

COLUMNS = ("epoch", "loss", "accuracy", "lr", "eps", "clean", "robust", "certified", "noisy", "seconds")


def write_csv(path: Path, history: History) -> None:
    """Write the whole history; after a resume the file holds each epoch once."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomic(path, text.getvalue())


class TensorBoard:
    """Scalars per epoch for TensorBoard, or nothing where it is not installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def add(self, row: dict[str, Any]) -> None:
        if self.writer is None:
            try:
                tensorboard = importlib.import_module("torch.utils.tensorboard")
            except ImportError:
                return
            # purge_step hides what a killed run wrote after its last checkpoint.
            self.writer = tensorboard.SummaryWriter(str(self.folder), purge_step=row["epoch"])
        for name in COLUMNS[1:]:
            if row[name] is not None:
                self.writer.add_scalar(name, row[name], row["epoch"])
        self.writer.flush()
