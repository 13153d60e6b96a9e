"""The training loop and its state. Read `Run.epoch`, then `Run.step`; the rest keeps what they did."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastrobust.data import Batch, Splits, batches, crop_flip, steps_per_epoch
from fastrobust.data.keys import key

from . import checkpoint
from .adversary import Adversary
from .config import TrainConfig
from .ema import Ema
from .identity import check_same, identity
from .log import History, TensorBoard, write_csv
from .objectives import OBJECTIVES
from .ranks import Ranks, running_statistics
from .schedules import epsilon, learning_rate
from .validation import Accuracies, validate

_ATTACK, _MODEL = 1, 2  # what a key is for
_PASSES_THAT_PAY = 100_000  # of samples through the attack


class Run:
    """A run and its state: all that changes while training is what `state` returns."""

    def __init__(self, model: nn.Module, splits: Splits, config: TrainConfig, folder: Path, ranks: Ranks) -> None:
        self.model, self.splits, self.config, self.folder, self.ranks = model, splits, config, folder, ranks
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = _optimizer(self.parameters, config)
        self.ema = Ema(model, config.ema_decay) if config.ema_decay else None
        self.steps = steps_per_epoch(len(splits.train), config.batch_size, config.last_batch)
        smallest = len(splits.train) % config.batch_size if config.last_batch == "keep" else 0
        if self.steps == 0 or min(smallest or config.batch_size, config.batch_size) < ranks.size:
            raise ValueError(
                f"fit: every batch must hold a sample for each of {ranks.size} ranks; {len(splits.train)} samples "
                f"in batches of {config.batch_size} (last_batch={config.last_batch!r}) do not"
            )
        # A short run is over before a compiled copy would have paid for itself.
        passes = config.epochs * config.steps * len(splits.train)
        self.attacks = replace(config, compile=config.compile and passes >= _PASSES_THAT_PAY)
        self.epochs_done = self.batches_done = self.step_count = self.stale = 0
        self.sums = {"loss": 0.0, "correct": 0.0, "seen": 0.0, "seconds": 0.0}
        self.history: History = []
        self.best: dict[str, Any] = {}
        self.done = False
        self.board = TensorBoard(folder / "tensorboard")

    def epoch(self, bar: tqdm[Any]) -> None:
        config, began = self.config, time.perf_counter()
        if not self.model.training:
            self.model.train()
        for batch in batches(
            self.splits.train,
            config.batch_size,
            seed=config.seed,
            epoch=self.epochs_done,
            start=self.batches_done,
            last=config.last_batch,
            augment=crop_flip if config.augment == "crop_flip" else None,
            rank=self.ranks.rank,
            world_size=self.ranks.size,
        ):
            loss = self.step(batch)
            bar.update()
            bar.set_postfix(epoch=self.epochs_done + 1, loss=f"{loss:.3f}", refresh=False)
            if config.checkpoint_every and self.step_count % config.checkpoint_every == 0:
                self.sums["seconds"] += time.perf_counter() - began
                began = time.perf_counter()
                self.save()
        self.finish_epoch(began)

    def step(self, batch: Batch) -> float:
        config, device = self.config, self.ranks.device
        now = self.epochs_done + (self.batches_done + 0.5) / self.steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, now)
        seed = key(_ATTACK, config.seed, self.step_count)
        adversary = Adversary(self.attacks, epsilon(config, now), seed, batch.index)
        x, y = batch.images.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
        self.seed_layers(key(_MODEL, config.seed, self.step_count, self.ranks.rank))

        loss, logits = OBJECTIVES[config.objective](self.model, x, y, adversary)
        self.optimizer.zero_grad()
        loss.backward()

        # The weighted mean over the ranks' shares is the mean over the global batch.
        weight = len(batch.index) / batch.total
        self.ranks.average([p.grad for p in self.parameters if p.grad is not None], weight)
        self.ranks.average(running_statistics(self.model), weight)
        correct = (logits.detach().argmax(1) == y).sum().item()
        mean_loss, correct = self.ranks.sum(loss.item() * weight, correct)
        largest = math.inf if config.clip_norm is None else config.clip_norm
        norm = nn.utils.clip_grad_norm_(self.parameters, largest).item()
        if not (math.isfinite(mean_loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"fit: loss {mean_loss} with gradient norm {norm} at epoch {self.epochs_done + 1}, step "
                f"{self.step_count + 1}; stopped before it touched the weights. "
                "Lower lr, or set clip_norm or eps_warmup"
            )
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        self.step_count += 1
        self.batches_done += 1
        self.sums["loss"] += mean_loss * batch.total
        self.sums["correct"] += correct
        self.sums["seen"] += batch.total
        return mean_loss

    def seed_layers(self, seed: int) -> None:
        """Seed what layers such as dropout draw from, on the device in use only."""
        torch.default_generator.manual_seed(seed)
        if self.ranks.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def finish_epoch(self, began: float) -> None:
        config, sums = self.config, self.sums
        self.epochs_done += 1
        found: dict[str, float | None] = dict.fromkeys(Accuracies._fields)
        if self.epochs_done % config.val_every == 0 or self.epochs_done == config.epochs:
            found = self.validate()
        now = self.epochs_done - 0.5 / self.steps
        row = {
            "epoch": self.epochs_done,
            "loss": sums["loss"] / sums["seen"],
            "accuracy": sums["correct"] / sums["seen"],
            "lr": learning_rate(config, now),
            "eps": epsilon(config, now),
            **found,
            "seconds": sums["seconds"] + time.perf_counter() - began,
        }
        self.history.append(row)
        self.batches_done = 0
        self.sums = dict.fromkeys(sums, 0.0)
        self.done = self.epochs_done == config.epochs or (config.patience is not None and self.stale >= config.patience)
        self.save()
        self.export()
        if self.ranks.rank == 0:
            self.board.add(row)

    def validate(self) -> dict[str, float | None]:
        """Validate what would be kept, and keep it if it is better than all before."""
        with self.ema.applied(self.model) if self.ema is not None else nullcontext():
            found = validate(self.model, self.splits.val, self.attacks, self.ranks)._asdict()
        row = {"epoch": self.epochs_done, **found}
        if not self.best or _better(row, self.best, self.config.selects_by):
            weights = {name: value.detach().cpu().clone() for name, value in self.result_state().items()}
            self.best, self.stale = {**row, "weights": weights}, 0
        else:
            self.stale += 1
        return found

    def result_state(self) -> dict[str, Tensor]:
        return self.ema.state if self.ema is not None else self.model.state_dict()

    def state(self) -> dict[str, Any]:
        # No schedule and no generator state: all follow from the config and the counters here.
        return {
            "identity": self.identity,
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state if self.ema is not None else None,
            "epoch": self.epochs_done,
            "batch": self.batches_done,
            "step": self.step_count,
            "stale": self.stale,
            "sums": self.sums,
            "history": self.history,
            "best": self.best,
            "done": self.done,
        }

    @cached_property
    def identity(self) -> dict[str, Any]:
        return identity(self.config, self.splits, self.model)

    def open(self, resume: bool) -> None:
        """Continue the folder's run, or start one; every rank gets the state that rank 0 reads or makes."""
        state = self.ranks.from_first(lambda: self._read(resume))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.state = {name: value.to(self.ranks.device) for name, value in state["ema"].items()}
        self.epochs_done, self.batches_done, self.step_count = state["epoch"], state["batch"], state["step"]
        self.stale, self.sums, self.history = state["stale"], state["sums"], state["history"]
        self.best, self.done = state["best"], state["done"]
        self.export()

    def _read(self, resume: bool) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = checkpoint.load(self.folder) if resume else None
        if found is not None:
            check_same(found["identity"], self.identity, self.folder)
            return found
        leftovers = [name for name in ("best.pt", "log.csv") if (self.folder / name).exists()]
        if resume and leftovers:
            raise checkpoint.CheckpointError(
                f"fit: {self.folder} holds {' and '.join(leftovers)} of a run but no checkpoint to continue from; "
                "use another folder, or start over with resume=False"
            )
        for name in (*leftovers, checkpoint.PREVIOUS, checkpoint.CURRENT):
            (self.folder / name).unlink(missing_ok=True)
        # The initial weights are part of the run: a kill before the first checkpoint must not draw new ones.
        state = self.state()
        checkpoint.save(self.folder, state)
        return state

    def save(self) -> None:
        if self.ranks.rank == 0:
            checkpoint.save(self.folder, self.state())

    def export(self) -> None:
        """Write what people read. It repeats the checkpoint, so a kill in between is mended on resuming."""
        if self.ranks.rank > 0 or not self.history:
            return
        write_csv(self.folder / "log.csv", self.history)
        if not self.best:
            return
        numbers = {name: value for name, value in self.best.items() if name != "weights"}
        content = {**numbers, "model": self.best["weights"], "config": self.config.to_json()}
        checkpoint.write_atomic(self.folder / "best.pt", content)


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def _better(row: dict[str, Any], best: dict[str, Any], by: str) -> bool:
    """Higher accuracy of the kind that selects; between equals, of the other kinds; else the earlier stays."""
    order = [by, *(kind for kind in ("robust", "noisy", "clean") if kind != by)]
    return [row[kind] or 0.0 for kind in order] > [best[kind] or 0.0 for kind in order]
