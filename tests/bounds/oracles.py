"""What bounds are compared with: exact corners, every way to add up, a dense CROWN in float64, and a mixed-integer
program."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn


def exact_corner(weight: list[float], bias: float, lower: list[float], upper: list[float]) -> Fraction:
    """The least value of <weight, x> + bias over a box, in rational arithmetic."""
    ends = ((low if w >= 0 else high) for w, low, high in zip(weight, lower, upper, strict=True))
    return Fraction(bias) + sum((Fraction(w) * Fraction(x) for w, x in zip(weight, ends, strict=True)), Fraction(0))


def corners(weight: Tensor, bias: Tensor, lower: Tensor, upper: Tensor) -> np.ndarray:
    """The same for rows of weights (n, inputs), and a box each, in extended precision."""
    w, low, high = (t.double().numpy().astype(np.longdouble) for t in (weight, lower, upper))
    return np.where(w >= 0, w * low, w * high).sum(1) + bias.double().numpy()


def evaluations(weight: Tensor, bias: Tensor, x: Tensor) -> Iterator[Tensor]:
    """<weight, x> + bias of rows (n, inputs) in float32, added up in several orders, with and without fused steps."""
    products = weight * x
    for terms in (
        torch.cat([products, bias[:, None]], 1), torch.cat([bias[:, None], products], 1),
        torch.cat([products, bias[:, None]], 1).flip(1),
    ):  # fmt: skip
        total = terms[:, 0].clone()
        for k in range(1, terms.shape[1]):
            total += terms[:, k]
        yield total
    order = products.abs().argsort(1)
    for ranked in (products.gather(1, order), products.gather(1, order.flip(1))):
        total = torch.zeros_like(bias)
        for k in range(ranked.shape[1]):
            total += ranked[:, k]
        yield total + bias
    total = bias.clone()
    for k in range(products.shape[1]):
        total = (total.double() + weight[:, k].double() * x[:, k].double()).float()  # fused, but for a double rounding
    yield total
    yield torch.einsum("ni,ni->n", weight, x) + bias


def dense_crown(layers: list[nn.Linear], lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """CROWN for Linear-ReLU chains as matrices in float64, sample by sample; bounds of the last layer."""
    found = []
    for low, high in zip(lower.double(), upper.double(), strict=True):
        boxes: list[tuple[Tensor, Tensor]] = []
        for last in range(len(layers)):
            matrix, shift = layers[last].weight.double(), layers[last].bias.double()
            ends = []
            for sign in (1.0, -1.0):
                a, c = sign * matrix, sign * shift
                for k in range(last - 1, -1, -1):
                    lo, hi = boxes[k]
                    on, off = lo >= 0, hi <= 0
                    slope = torch.where(on, 1.0, torch.where(off, 0.0, hi / (hi - lo)))
                    flat = torch.where(on, 1.0, torch.where(off, 0.0, (hi > -lo).double()))
                    shift_up = torch.where(on | off, 0.0, -hi * lo / (hi - lo))
                    c = c + a.clamp(max=0) @ shift_up
                    a = a.clamp(min=0) * flat + a.clamp(max=0) * slope
                    c = c + a @ layers[k].bias.double()
                    a = a @ layers[k].weight.double()
                ends.append(sign * (a.clamp(min=0) @ low + a.clamp(max=0) @ high + c))
            boxes.append((ends[0], ends[1]))
        found.append(torch.stack(boxes[-1]))
    both = torch.stack(found)
    return both[:, 0], both[:, 1]


def least_margin(layers: list[nn.Linear], lower: Tensor, upper: Tensor, y: int, j: int) -> float:
    """min z_y - z_j over a box (inputs,) for a Linear-ReLU chain: a mixed-integer program, HiGHS to its tolerances."""
    sizes = [layers[0].in_features, *(layer.out_features for layer in layers)]
    # Variables: the input, then for each layer its results z, and for hidden ones a = relu(z) and d in {0, 1}.
    low, high, kinds = list(lower.double().numpy()), list(upper.double().numpy()), [0] * sizes[0]
    rows, least, most = [], [], []
    before, reach = 0, (lower.double(), upper.double())
    total = sizes[0] + sum(sizes[1:]) + 2 * sum(sizes[1:-1])

    def row(entries: dict[int, float], a: float, b: float) -> None:
        line = np.zeros(total)
        for k, value in entries.items():
            line[k] += value
        rows.append(line)
        least.append(a)
        most.append(b)

    for number, layer in enumerate(layers):
        w, b = layer.weight.detach().double(), layer.bias.detach().double()
        z = len(low)
        lo = w.clamp(min=0) @ reach[0] + w.clamp(max=0) @ reach[1] + b
        hi = w.clamp(min=0) @ reach[1] + w.clamp(max=0) @ reach[0] + b
        low, high, kinds = low + list(lo.numpy() - 1e-6), high + list(hi.numpy() + 1e-6), kinds + [0] * len(b)
        for i in range(len(b)):
            row({**{before + k: -float(w[i, k]) for k in range(w.shape[1])}, z + i: 1.0}, float(b[i]), float(b[i]))
        if number == len(layers) - 1:
            break
        a, d = z + len(b), z + 2 * len(b)
        low, high = low + [0.0] * len(b) + [0.0] * len(b), high + list(hi.clamp(min=0).numpy() + 1e-6) + [1.0] * len(b)
        kinds += [0] * len(b) + [1] * len(b)
        for i in range(len(b)):
            row({a + i: 1.0, z + i: -1.0}, 0.0, np.inf)  # a >= z
            row(
                {a + i: 1.0, z + i: -1.0, d + i: -float(lo[i].clamp(max=0)) + 1e-6},
                -np.inf,
                -float(lo[i].clamp(max=0)) + 1e-6,
            )
            row({a + i: 1.0, d + i: -float(hi[i].clamp(min=0)) - 1e-6}, -np.inf, 0.0)
        before, reach = a, (lo.clamp(min=0), hi.clamp(min=0))
    goal = np.zeros(total)
    goal[z + y], goal[z + j] = 1.0, -1.0
    found = milp(
        goal, integrality=kinds, bounds=Bounds(low, high), constraints=LinearConstraint(np.array(rows), least, most)
    )
    assert found.success, found.message
    return float(found.fun)
