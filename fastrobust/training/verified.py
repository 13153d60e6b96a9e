"""The train-verify loop: train, prove, sort what was not proven, and train on with weight on the real failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastrobust import bounds
from fastrobust.attacks import PGD
from fastrobust.data import Dataset, Splits, split_rows
from fastrobust.data.keys import key
from fastrobust.threat import threat_of

from .checkpoint import write_atomic
from .config import TrainConfig
from .trainer import TrainResult, fit

__all__ = ["Advice", "Round", "Verified", "train_verify"]

_SAMPLE, _PROBE = 4, 32  # what a key is for; unproven samples that stronger methods are tried on
Progress = Callable[["Round"], Any]


@dataclass(frozen=True)
class Round:
    """One round. Shares in [0, 1] of the validation sample; certified + real + unproven = 1.

    Attributes:
        certified: proven.
        real: falsified: the network errs on the sample, or on a point that the attack found near it.
        unproven: neither.
        repeated: training samples whose failures were real, and that the next round's training sees more often.
        epochs: of training in this round.
    """

    number: int
    certified: float
    real: float
    unproven: float
    repeated: int
    epochs: int


@dataclass(frozen=True)
class Advice:
    """What would prove more, of the unproven validation samples: a change, and the share of the whole sample."""

    change: str
    gain: float


@dataclass(frozen=True)
class Verified:
    """What `train_verify` returns.

    Attributes:
        rounds: all rounds.
        samples: how many validation samples their shares are of.
        best: the number of the round with the largest certified share; its weights are in the model.
        why: why the loop ended.
        advice: changes of the verifier, its slopes, or the threat model, the most helpful first.
        training: of that round.
    """

    rounds: list[Round]
    samples: int
    best: int
    why: str
    advice: list[Advice]
    training: TrainResult


def train_verify(
    model: nn.Module, splits: Splits, config: TrainConfig, out_dir: str | Path, rounds: int = 5, epochs: int = 5,
    sample: int = 500, repeats: int = 3, cascade: Sequence[str] = ("ibp", "crown_ibp"), patience: int = 1,
    progress: Progress | None = None, bar: bool = False, resume: bool = True,
) -> Verified:  # fmt: skip
    """Train with `config`, then in rounds: verify, and train on with weight on the real failures.

    The share certified is that of samples of splits.val, which training never sees; splits.test is not looked at. The
    same is done with as many training samples: those with real failures come `repeats` times into the next round's
    epochs. Unproven ones get no weight: more training on them would be for the verifier's weakness, and `advice` says
    which change of the verifier would mend it. Each round is in `out_dir`/rounds.json, its training in
    `out_dir`/round-N, where a killed run continues.

    Args:
        config: of the first round; later ones run `epochs` at full eps, from the weights of the round before, with a
            fifth of the learning rate.
        rounds: at most, the first included.
        sample: samples to verify, of each split.
        cascade: methods of `fastrobust.bounds.certify`.
        patience: rounds without a rise of the certified share after which the loop ends.
        progress: called with each round.
        bar: whether to show each training's progress bar.
        resume: continue what `out_dir` holds; see `fit`.

    Raises:
        ValueError: for rounds, epochs, sample or repeats below 1; and as `fit` and `fastrobust.bounds.certify`.
    """
    for name, value in (("rounds", rounds), ("epochs", epochs), ("sample", sample), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"train_verify: {name} must be at least 1, got {value}")
    folder, found, stale = Path(out_dir), list[Round](), 0
    best: TrainResult | None = None
    own, why = splits, f"{rounds} rounds are done"
    now, validation = config, _some(splits.val, sample, _seed(config, 0))
    for number in range(1, rounds + 1):
        result = fit(model, own, now, folder / f"round-{number}", resume, bar)
        verdicts = _verify(model, validation, config, cascade)
        rows = split_rows(splits.train.labels, (min(sample, len(splits.train)),), _seed(config, number))[0]
        trained = _verify(model, splits.train.subset(rows), config, cascade)
        real = [i for i, verdict in zip(rows.tolist(), trained, strict=True) if verdict == "falsified"]
        sure, wrong, open_ = (verdicts.count(name) / len(verdicts) for name in ("robust", "falsified", "unknown"))
        found.append(Round(number, sure, wrong, open_, len(real), now.epochs))
        if progress is not None:
            progress(found[-1])
        if best is None or sure > max(r.certified for r in found[:-1]):
            best, stale = result, 0
        else:
            stale += 1
        _write(folder, found, config, None)
        if stale >= patience:
            why = f"the certified share did not rise for {stale} {'round' if stale == 1 else 'rounds'}"
            break
        again = torch.tensor(list(range(len(splits.train))) + real * (repeats - 1))
        own = Splits(splits.train.subset(again), splits.val, splits.test)
        now = replace(config, epochs=epochs, eps_start=0.0, eps_warmup=0.0, init="model", lr=config.lr / 5,
                      seed=config.seed + number)  # fmt: skip
    assert best is not None
    model.load_state_dict(best.best.weights)
    advice = _advice(model, validation, config, cascade)
    top = max(found, key=lambda r: r.certified).number
    verified = Verified(found, len(validation), top, why, advice, best)
    _write(folder, found, config, verified)
    return verified


def _seed(config: TrainConfig, number: int) -> int:
    return key(_SAMPLE, config.seed, number) % 2**31


def _some(part: Dataset, count: int, seed: int) -> Dataset:
    return part.subset(split_rows(part.labels, (min(count, len(part)),), seed)[0])


def _verify(model: nn.Module, part: Dataset, config: TrainConfig, cascade: Sequence[str]) -> list[str]:
    """The verdict on each sample at the config's eps."""
    threat, steps = threat_of(config.norm, config.eps), max(1, config.val_steps)
    attack = PGD(model, threat=threat, alpha=2.5 * config.eps / steps, steps=steps, compile=config.compile)
    device = next(model.parameters()).device
    verdicts: list[str] = []
    for x, y in zip(part.images.split(250), part.labels.split(250), strict=True):
        at, labels = x.to(device), y.to(device)
        verdicts += bounds.certify(model, at, labels, threat, cascade, attack if config.eps else None).verdict
    return verdicts


def _advice(model: nn.Module, part: Dataset, config: TrainConfig, cascade: Sequence[str]) -> list[Advice]:
    """Of some unproven samples, how many a stronger verifier, tuned slopes or a smaller radius would prove."""
    verdicts = _verify(model, part, config, cascade)
    unproven = [i for i, verdict in enumerate(verdicts) if verdict == "unknown"]
    if not unproven:
        return []
    probe = part.subset(unproven[:_PROBE])
    device = next(model.parameters()).device
    x, y = probe.images.to(device), probe.labels.to(device)
    share = len(unproven) / len(part) / len(probe)  # what one sample of the probe stands for
    tried = [(f"verify with {name}", name, 1.0) for name in ("crown_ibp", "crown") if name not in cascade]
    tried += [("tune the slopes (alpha_crown)", "alpha_crown", 1.0)] if "alpha_crown" not in cascade else []
    tried += [(f"certify at {scale:.0%} of eps", cascade[-1], scale) for scale in (0.9, 0.75)]
    found = []
    for change, method, scale in tried:
        proven = 0
        for a, b in zip(x.split(4), y.split(4), strict=True):
            verdict = bounds.certify(model, a, b, threat_of(config.norm, scale * config.eps), (method,)).verdict
            proven += verdict.count("robust")
        found.append(Advice(change, proven * share))
    return sorted(found, key=lambda advice: -advice.gain)


def _write(folder: Path, rounds: list[Round], config: TrainConfig, result: Verified | None) -> None:
    content: dict[str, Any] = {"config": asdict(config), "rounds": [asdict(r) for r in rounds]}
    if result is not None:
        content |= {"best": result.best, "why": result.why, "advice": [asdict(a) for a in result.advice]}
    write_atomic(folder / "rounds.json", json.dumps(content, indent=1) + "\n")
