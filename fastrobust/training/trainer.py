"""`fit`: the one call that trains a network, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastrobust.bounds import propagation_for
from fastrobust.data import Splits
from fastrobust.models import Denoised
from fastrobust.network import CaptureError

from .certified import ibp_init
from .config import CERTIFIED, TrainConfig
from .log import History
from .objectives import OBJECTIVES
from .ranks import Ranks
from .run import Run
from .validation import Accuracies, certifiable


@dataclass(frozen=True)
class Snapshot:
    """Weights (a state dict on the CPU) after `epoch` epochs and their validation accuracies in [0, 1]."""

    epoch: int
    clean: float
    robust: float | None
    certified: float | None
    noisy: float | None
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class TrainResult:
    """The history, and the best and the last weights. `best` is what to use: robust accuracy often falls late
    in training while the loss still improves (Rice et al., ICML 2020)."""

    history: History
    best: Snapshot
    last: Snapshot


def fit(
    model: nn.Module,
    splits: Splits,
    config: TrainConfig,
    out_dir: str | Path,
    resume: bool = True,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> TrainResult:
    """Train `model` on splits.train, choose by splits.val, and leave the best weights in it.

    `out_dir` receives checkpoint.pt and checkpoint.prev.pt (all that resuming needs), best.pt ({"model": state
    dict, "epoch", "clean", "robust", "certified", "noisy", "config"}), log.csv and, with TensorBoard installed, its
    events. Every file is replaced atomically and loads with `torch.load(weights_only=True)`.

    With `resume` a folder that holds a run of the same config, data and model continues it: a run killed at
    any moment ends with the same weights, bit for bit on the CPU (at one thread count), as one that was not.
    A finished run is only read back. resume=False starts over and discards what is there.

    Under torchrun each global batch is spread over the processes and the gradients are averaged: the result
    is that of one process within float error (dropout excepted; batch norm: see `Ranks.prepare`). Rank 0
    alone reads and writes. `device`: where to train, None for where the model is.

    Errors: ValueError for unusable data or when the folder's run had another config, data or model;
    checkpoint.CheckpointError when its checkpoints are damaged or gone; FloatingPointError when the loss or
    its gradient is not finite, before that step touches the weights.
    """
    if config.objective not in OBJECTIVES:
        raise ValueError(f"fit: objective must be one of {', '.join(OBJECTIVES)}, got {config.objective!r}")
    for name, part in (("train", splits.train), ("val", splits.val)):
        if len(part) == 0:
            raise ValueError(f"fit: splits.{name} must not be empty")
    ranks = Ranks.join(torch.device(device) if device is not None else next(model.parameters()).device)
    model.to(ranks.device)
    if config.objective in ("denoise", "stability") and not isinstance(model, Denoised):
        raise ValueError(
            f"fit: the model must be a fastrobust.models.Denoised for {config.objective}, got {type(model).__name__}"
        )
    if config.val_bounds == "smoothing":
        try:
            certifiable(model, splits.val, config, ranks.device)
        except ValueError as error:
            raise ValueError(f"fit: val_bounds must be possible for this model: {error}") from error
    elif config.objective in CERTIFIED or config.val_bounds != "none":
        try:
            propagation_for(model, splits.train.images[:1].to(ranks.device))
        except (CaptureError, ValueError) as error:
            raise ValueError(f"fit: the model must be one that bounds can follow: {error}") from error
    if config.init == "ibp":
        ibp_init(model, config.seed)
    # Layers that draw (dropout) are seeded before every step; the caller's generators are left as they were.
    with torch.random.fork_rng([ranks.device] if ranks.device.type == "cuda" else []):
        run = Run(ranks.prepare(model), splits, config, Path(out_dir), ranks)
        run.open(resume)
        with tqdm(
            desc=config.objective,
            total=config.epochs * run.steps,
            initial=run.step_count,
            unit="step",
            disable=not progress or ranks.rank > 0,
        ) as bar:
            while not run.done:
                run.epoch(bar)
    last, best = run.history[-1], run.best
    own = {name: value.cpu().clone() for name, value in run.result_state().items()}
    model.load_state_dict(best["weights"])
    latest = Snapshot(**{name: last[name] for name in ("epoch", *Accuracies._fields)}, weights=own)
    return TrainResult(run.history, Snapshot(**best), latest)
