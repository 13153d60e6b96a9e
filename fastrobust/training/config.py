"""Everything that decides the outcome of a training run, in one record that survives JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Two runs with equal configs, data and initial weights end with equal weights.

    objective: "standard" (cross-entropy), "pgd" (Madry et al., ICLR 2018), "trades" (Zhang et al., ICML 2019), the
    certified ones "ibp", "crown_ibp", "sabr", "mtl_ibp" (`certified.py`; Linf), those for smoothing "gaussian",
    "smooth_adv", "macer", "consistency", "smoothmix", "denoise", "stability" (`smoothed.py`), or a name added to
    `OBJECTIVES`. eps in the units of the input (0-1) under `norm`; alpha: step size of the attack, None for
    2.5 eps / steps (those for smoothing: 2 eps / steps). eps_start: the epoch at which eps begins to grow from 0 (alpha
    with it), eps_warmup: how many it takes, eps_growth: see `epsilon`. eps_factor: training's radius is that many times
    eps; validation's is eps. attack_mode: the model's mode while it is attacked in training, "eval" or "train" (batch
    statistics). compile: attack a compiled copy of it, with the parameters of the moment, where that is proven to be
    the same and the run is long enough.

    kappa: final weight of the clean loss in "ibp" and "crown_ibp". loss_fusion: of "crown_ibp", bound the loss itself,
    with one linear function a sample (Xu et al., NeurIPS 2020). subset: radius of SABR's boxes, as a share of eps.
    mixture: weight of the bound's loss in "mtl_ibp". regularizer: weight of the terms of Shi et al. (NeurIPS 2021)
    while eps grows. init: "ibp" draws the initial weights as they do (`ibp_init`), "model" leaves them as they are.

    sigma: standard deviation of Gaussian noise, in the units of the input; what smoothing is trained for, 0 for none.
    Where it is given, validation measures the accuracy on noisy copies, `val_draws` of each sample, and makes no attack
    on the network, since what will be robust is its smoothed vote. draws: noisy copies of a sample in a training step;
    None: see `noise_draws`. weight: of what MACER (lambda), Consistency (lambda) and SmoothMix (eta) add; None: 12, 10
    and 5. What they add grows from 0 as eps does (`eps_start`, `eps_warmup`). margin and inverse_temperature: MACER's
    gamma and beta. entropy: Consistency's eta. inner: the attack in "smooth_adv", "pgd" or "ddn", at L2 radius eps.

    lr: the highest learning rate; schedule: see `learning_rate`; milestones and gamma: of "piecewise", in
    epochs; peak: where "cyclic" is highest, as a share of the run. clip_norm: largest global gradient norm,
    None for no clipping. ema_decay: decay per step of the weight average that is then validated and kept, 0
    for none.

    val_steps: PGD steps of the validation attack, 0 for none; val_bounds: the method of `fastrobust.bounds.margins`
    that certifies the validation samples, "none" for none, "smoothing" to certify the smoothed network at L2 radius eps
    by `Smooth.certify_at` with up to `val_samples` copies (alpha 0.001, always the same noise); val_every: in epochs.
    patience: stop after that many validations without a better one, None for never. The best checkpoint is chosen by
    certified validation accuracy where there is one, else by accuracy under noise where there is sigma, else by robust
    accuracy, by clean accuracy for the standard objective or val_steps=0. last_batch: "keep" or "drop" a partial one.

    checkpoint_every: steps between checkpoints inside an epoch, 0 for one per epoch; it does not change the
    outcome.
    """

    objective: str = "pgd"
    epochs: int = 10
    batch_size: int = 128
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    eps: float = 8 / 255
    alpha: float | None = None
    steps: int = 10
    random_start: bool = True
    eps_start: float = 0.0
    eps_warmup: float = 0.0
    eps_growth: Literal["linear", "smoothed"] = "linear"
    eps_factor: float = 1.0
    attack_mode: Literal["eval", "train"] = "eval"
    compile: bool = True
    beta: float = 6.0
    kappa: float = 0.0
    loss_fusion: bool = False
    subset: float = 0.4
    mixture: float = 0.01
    regularizer: float = 0.0
    init: Literal["model", "ibp"] = "model"
    sigma: float = 0.0
    draws: int | None = None
    weight: float | None = None
    margin: float = 8.0
    inverse_temperature: float = 16.0
    entropy: float = 0.5
    inner: Literal["pgd", "ddn"] = "pgd"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    schedule: Literal["constant", "piecewise", "cosine", "cyclic"] = "piecewise"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    peak: float = 0.4
    ema_decay: float = 0.0
    augment: Literal["none", "crop_flip"] = "none"
    last_batch: Literal["keep", "drop"] = "keep"
    val_steps: int = 10
    val_bounds: Literal["none", "ibp", "crown_ibp", "crown", "smoothing"] = "none"
    val_draws: int = 16
    val_samples: int = 1000
    val_every: int = 1
    patience: int | None = None
    checkpoint_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(float(value) for value in self.milestones))
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"TrainConfig: {name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not low <= value < float("inf"):
                raise ValueError(f"TrainConfig: {name} must be finite and >= {low}, got {value}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"TrainConfig: ema_decay must lie in [0, 1), got {self.ema_decay}")
        if not 0 < self.peak < 1:
            raise ValueError(f"TrainConfig: peak must lie in (0, 1), got {self.peak}")
        for name in ("kappa", "subset", "mixture"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"TrainConfig: {name} must lie in [0, 1], got {getattr(self, name)}")
        if self.objective in CERTIFIED and self.norm != "Linf":
            raise ValueError(f"TrainConfig: norm must be Linf for {self.objective}, got {self.norm!r}")
        self._check_smoothing()
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"TrainConfig: milestones must ascend, got {self.milestones}")

    def _check_smoothing(self) -> None:
        certified = self.val_bounds == "smoothing"
        needs = self.objective if self.objective in SMOOTHED else "val_bounds='smoothing'"
        if (self.objective in SMOOTHED or certified) and not self.sigma > 0:
            raise ValueError(f"TrainConfig: sigma must be > 0 for {needs}, got {self.sigma}")
        if (self.objective in ("smooth_adv", "smoothmix") or certified) and self.norm != "L2":
            raise ValueError(f"TrainConfig: norm must be L2 for {needs}, got {self.norm!r}")
        if certified and not self.eps > 0:
            raise ValueError(f"TrainConfig: eps must be > 0 for val_bounds='smoothing', got {self.eps}")
        if self.objective == "consistency" and self.noise_draws < 2:
            raise ValueError(f"TrainConfig: draws must be >= 2 for consistency, got {self.draws}")
        for name in ("margin", "inverse_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"TrainConfig: {name} must be > 0, got {getattr(self, name)}")

    @property
    def noise_draws(self) -> int:
        """Noisy copies of a sample in a training step: `draws`, or what the objective's authors use.

        MACER 16, SmoothAdv and SmoothMix 4 (of their 1 to 8), Consistency 2, else 1.
        """
        return self.draws if self.draws is not None else _DRAWS.get(self.objective, 1)

    @property
    def selects_by(self) -> Literal["clean", "robust", "noisy", "certified"]:
        """The validation accuracy that chooses the best checkpoint."""
        if self.val_bounds != "none":
            return "certified"
        if self.sigma > 0:
            return "noisy"
        return "clean" if self.objective == "standard" or self.val_steps == 0 else "robust"

    @property
    def largest_eps(self) -> float:
        """Training's radius when it has grown."""
        return self.eps * self.eps_factor

    def to_json(self) -> str:
        """A JSON object with every field; `from_json` gives an equal config back."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """The config of a JSON object; fields left out take their defaults, unknown ones are a ValueError."""
        values: dict[str, Any] = json.loads(text)
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"TrainConfig: fields must be known ones, got {', '.join(unknown)}")
        return cls(**values)


CERTIFIED = ("ibp", "crown_ibp", "sabr", "mtl_ibp")
"""Objectives that propagate boxes."""
SMOOTHED = ("gaussian", "smooth_adv", "macer", "consistency", "smoothmix", "denoise", "stability")
"""Objectives on noisy copies, for networks that are to be smoothed."""

_DRAWS = {"smooth_adv": 4, "macer": 16, "consistency": 2, "smoothmix": 4}

_CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("Linf", "L2", "L1"),
    "attack_mode": ("eval", "train"),
    "eps_growth": ("linear", "smoothed"),
    "init": ("model", "ibp"),
    "val_bounds": ("none", "ibp", "crown_ibp", "crown", "smoothing"),
    "inner": ("pgd", "ddn"),
    "optimizer": ("sgd", "adamw"),
    "schedule": ("constant", "piecewise", "cosine", "cyclic"),
    "augment": ("none", "crop_flip"),
    "last_batch": ("keep", "drop"),
}
_AT_LEAST: dict[str, float] = {
    "epochs": 1,
    "batch_size": 1,
    "steps": 1,
    "val_every": 1,
    "patience": 1,
    "eps": 0,
    "alpha": 0,
    "eps_start": 0,
    "eps_warmup": 0,
    "eps_factor": 0,
    "regularizer": 0,
    "beta": 0,
    "lr": 0,
    "momentum": 0,
    "weight_decay": 0,
    "clip_norm": 0,
    "gamma": 0,
    "val_steps": 0,
    "sigma": 0,
    "draws": 1,
    "weight": 0,
    "margin": 0,
    "inverse_temperature": 0,
    "entropy": 0,
    "val_draws": 1,
    "val_samples": 1,
    "checkpoint_every": 0,
}
