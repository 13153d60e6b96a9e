from collections.abc import Callable, Sequence
from typing import Any

def pgd_step(
    out: int,
    x_adv: int,
    x: int,
    grad: int,
    dtype: int,
    grad_dtype: int,
    batch: int,
    dim: int,
    alpha: float,
    alpha_each: int,
    norm: int,
    eps: float,
    eps_each: int,
    lo: float,
    hi: float,
    lo_each: int,
    hi_each: int,
    exact: bool,
    flags: int,
    threads: int,
    /,
) -> None: ...
def random_start(
    out: int,
    x: int,
    dtype: int,
    batch: int,
    dim: int,
    norm: int,
    eps: float,
    eps_each: int,
    lo: float,
    hi: float,
    lo_each: int,
    hi_each: int,
    seed: int,
    index: int,
    draw: int,
    threads: int,
    /,
) -> None: ...
def logit_loss(
    logits: int,
    dtype: int,
    batch: int,
    classes: int,
    kind: int,
    label: int,
    target: int,
    reference: int,
    smoothing: float,
    value: int,
    prediction: int,
    correct: int,
    grad: int,
    threads: int,
    /,
) -> int: ...
def plain_pgd_step(
    out: Any,
    x_adv: Any,
    x: Any,
    grad: Any,
    step: Any,
    eps: Any,
    norm: Any,
    box: Any,
    projection: Any,
    flags: Any,
    /,
) -> bool: ...
def plain_logit_loss(
    logits: Any,
    y: Any,
    kind: int,
    smoothing: float,
    loss: Any,
    prediction: Any,
    correct: Any,
    grad: Any,
    /,
) -> bool: ...
def setup(
    tensor: type,
    dtypes: tuple[Any, ...],
    threads: Callable[[], int],
    intercepting: tuple[Callable[[], Any], ...],
) -> None: ...
def multiply_adds(threads: int, rounds: int) -> float: ...
def isas() -> list[str]: ...
def fab_step(
    out: int,
    x: int,
    centre: int,
    slope: int,
    lead: int,
    low: int,
    high: int,
    batch: int,
    dim: int,
    norm: int,
    eta: float,
    most_back: float,
    threads: int,
    /,
) -> None: ...
def own_threads(count: int) -> None: ...
def isa() -> str: ...
def select_isa(name: str) -> bool: ...

class Engine:
    def __init__(
        self, values: Sequence[tuple[int, int, int]], ops: Sequence[dict[str, Any]], tensors: Sequence[int]
    ) -> None: ...
    def load(self, tensors: Sequence[int], /) -> None: ...
    def forward(self, x: int, batch: int, logits: int, threads: int, /) -> None: ...
    def gradient(
        self,
        x: int,
        batch: int,
        logits: int,
        kind: int,
        label: int,
        target: int,
        reference: int,
        smoothing: float,
        loss: int,
        prediction: int,
        correct: int,
        grad: int,
        threads: int,
        /,
    ) -> None: ...
    def pgd(
        self,
        x_adv: int,
        x: int,
        batch: int,
        dim: int,
        steps: int,
        alpha: float,
        alpha_each: int,
        norm: int,
        eps: float,
        eps_each: int,
        lo: float,
        hi: float,
        lo_each: int,
        hi_each: int,
        exact: bool,
        bad: int,
        kind: int,
        label: int,
        target: int,
        reference: int,
        early_stop: bool,
        patience: int,
        best: bool,
        cycles: bool,
        success: int,
        value: int,
        taken: int,
        threads: int,
        /,
    ) -> None: ...
    def boxes(
        self, centre: int, radius: int, batch: int, centre_out: int, radius_out: int, threads: int, /
    ) -> None: ...
    def votes(
        self,
        x: int,
        index: int,
        images: int,
        first: int,
        samples: int,
        sigma: float,
        seed: int,
        counts: int,
        threads: int,
        /,
    ) -> None: ...
    @property
    def workspace(self) -> int: ...
