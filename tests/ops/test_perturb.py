"""pgd_step, project and random_start: the geometry, the layouts, the errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastrobust import ops

NORMS = {"Linf": 0.1, "L2": 0.8, "L1": 4.0}
SHAPES = [(1, 1), (3, 5), (2, 3, 7, 5), (5, 31), (2, 33), (1, 1025), (4, 3, 32, 32), (0, 4), (3, 0)]


def size(delta: Tensor, norm: str) -> Tensor:
    rows = delta.double().flatten(1).abs()
    if rows.shape[1] == 0:
        return rows.sum(1)
    return {"Linf": rows.amax(1), "L2": (rows**2).sum(1).sqrt(), "L1": rows.sum(1)}[norm]


def inside(point: Tensor, x: Tensor, eps: float | Tensor, norm: str, box: tuple[float, float] = (0.0, 1.0)) -> bool:
    wide = point.double()
    in_box = bool(((wide >= box[0]) & (wide <= box[1])).all())
    limit = torch.as_tensor(eps, dtype=torch.float64)
    return in_box and bool((size(wide - x.double(), norm) <= limit).all())


def case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, dtype=dtype, generator=g)
    x = torch.where(torch.rand(shape, generator=g) < 0.3, x.round(), x)  # many coordinates at the box
    return x, torch.rand(shape, dtype=dtype, generator=g), torch.randn(shape, generator=g)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_stay_in_ball_and_box(norm: str, shape: tuple[int, ...], dtype: torch.dtype, isa: str) -> None:
    eps = NORMS[norm]
    x, x_adv, grad = case(shape, dtype)
    for point in (
        ops.project(x_adv, x, eps, norm),
        ops.random_start(x, eps, norm, seed=1),
        ops.pgd_step(ops.project(x_adv, x, eps, norm), x, grad, eps / 3, eps, norm),
        ops.pgd_step(x, x, grad, 100.0, eps, norm),
    ):
        assert point.shape == x.shape
        assert point.dtype == dtype
        assert inside(point, x, eps, norm)


@given(
    st.sampled_from(list(NORMS)),
    st.floats(1e-7, 50.0),
    st.floats(1e-7, 50.0),
    st.integers(1, 70),
    st.integers(0, 2**20),
    st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.25, 0.75), (-1e6, 1e6)]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_points_stay_in_ball_and_box_whatever_the_numbers(
    norm: str, eps: float, step: float, dim: int, seed: int, box: tuple[float, float], wide: bool
) -> None:
    dtype = torch.float64 if wide else torch.float32
    g = torch.Generator().manual_seed(seed)
    lo, hi = box
    x = (torch.rand(3, dim, dtype=torch.float64, generator=g) * (hi - lo) + lo).to(dtype).clamp(lo, hi)
    grad = torch.randn(3, dim, generator=g) * 10 ** torch.randint(-30, 30, (3, 1), generator=g)
    x_adv = ops.random_start(x, eps, norm, box, seed=seed)
    assert inside(x_adv, x, eps, norm, box)
    for _ in range(3):
        x_adv = ops.pgd_step(x_adv, x, grad, step, eps, norm, box)
        assert inside(x_adv, x, eps, norm, box)
    assert torch.equal(ops.project(x_adv, x, eps, norm, box), x_adv)  # projecting twice changes nothing


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_projection_is_the_nearest_point(norm: str, isa: str) -> None:
    """Against scipy's general convex solver: no feasible point is nearer than the projection."""
    from scipy.optimize import minimize

    x, x_adv, _ = case((6, 8), torch.float64, seed=3)
    eps = 0.5 if norm == "L2" else 1.0
    found = ops.project(x_adv, x, eps, norm)
    for row in range(6):
        c, v = x[row].numpy(), x_adv[row].numpy()
        if norm == "L2":
            ball = {"type": "ineq", "fun": lambda z, c=c: eps**2 - ((z - c) ** 2).sum()}
            best = minimize(lambda z, v=v: ((z - v) ** 2).sum(), c, bounds=[(0, 1)] * 8, constraints=[ball],
                            method="SLSQP", options={"ftol": 1e-14, "maxiter": 500})  # fmt: skip
            nearest = best.x
        else:  # z = c + p - q with p, q >= 0 makes the L1 ball linear
            ball = {"type": "ineq", "fun": lambda s: eps - s.sum()}
            bounds = [(0, 1 - a) for a in c] + [(0, a) for a in c]
            best = minimize(lambda s, c=c, v=v: ((c + s[:8] - s[8:] - v) ** 2).sum(), [0.01] * 16, bounds=bounds,
                            constraints=[ball], method="SLSQP", options={"ftol": 1e-14, "maxiter": 500})  # fmt: skip
            nearest = c + best.x[:8] - best.x[8:]
        mine = float(((found[row] - x_adv[row]) ** 2).sum().sqrt())
        other = math.sqrt(float(((nearest - v) ** 2).sum()))
        assert mine <= other + 1e-6
        assert abs(mine - other) < 1e-5


@pytest.mark.parametrize("norm", NORMS)
def test_step_is_the_steepest(norm: str, isa: str) -> None:
    """From the centre of a wide box no feasible move of that length gains more: the dual norm of the gradient."""
    _, _, grad = case((4, 50))
    x = torch.full((4, 50), 0.5)
    step = {"Linf": 0.01, "L2": 0.05, "L1": 0.2}[norm]
    moved = ops.pgd_step(x, x, grad, step, 10.0, norm).double() - 0.5
    rows = grad.double()
    dual = {"Linf": rows.abs().sum(1), "L2": (rows**2).sum(1).sqrt(), "L1": rows.abs().amax(1)}[norm]
    assert torch.allclose((rows * moved).sum(1), step * dual, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [0.05, 0.2 / 7, -0.03])
def test_linf_steps_to_and_fro_repeat_the_same_numbers(dtype: torch.dtype, step: float, isa: str) -> None:
    """Whatever the rounding, the second round ends where the first did: attacks recognise cycles by that."""
    g = torch.Generator().manual_seed(1)
    x = 4 * torch.rand(64, 33, dtype=dtype, generator=g) - 2  # sums that cross 0 and powers of two
    grad = torch.randn(64, 33, generator=g)
    rounds = [x]
    for _ in range(3):
        there = ops.pgd_step(rounds[-1], x, grad, step, 1.0, "Linf", (-9.0, 9.0))
        rounds.append(ops.pgd_step(there, x, -grad, step, 1.0, "Linf", (-9.0, 9.0)))
    assert torch.equal(rounds[1], rounds[2])
    assert torch.equal(rounds[2], rounds[3])
    assert ((rounds[1] - x).abs() <= 4 * torch.finfo(dtype).eps).all()


def test_l1_step_fills_the_box_coordinate_by_coordinate() -> None:
    x = torch.tensor([[0.5, 0.9, 0.2, 0.0]])
    grad = torch.tensor([[3.0, 4.0, -2.0, -1.0]])
    moved = ops.pgd_step(x, x, grad, 0.7, 5.0, "L1")
    # 0.1 fits on coordinate 1, then 0.5 on coordinate 0, then the rest, 0.1, downwards on coordinate 2.
    assert torch.allclose(moved, torch.tensor([[1.0, 1.0, 0.1, 0.0]]), atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_gradient_moves_nothing_and_is_counted(norm: str, bad: float, isa: str) -> None:
    eps = NORMS[norm]
    x, x_adv, grad = case((4, 3, 5, 5))
    x_adv = ops.project(x_adv, x, eps, norm)
    grad[1] = 0
    grad[2, 0, 0, 0] = bad
    flags = torch.zeros(4, dtype=torch.int32)
    out = ops.pgd_step(x_adv, x, grad, eps / 3, eps, norm, flags=flags)
    assert flags.tolist() == [1, 0, 3, 1]
    assert torch.isfinite(out).all()
    assert torch.equal(out[1], x_adv[1])
    assert out[2, 0, 0, 0] == x_adv[2, 0, 0, 0]
    assert norm == "Linf" or torch.equal(out[2], x_adv[2])
    assert not torch.equal(out[0], x_adv[0])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_gradient_dtypes(norm: str, dtype: torch.dtype, isa: str) -> None:
    eps = NORMS[norm]
    x, _x_adv, grad = case((3, 70))
    grad = grad.to(dtype)
    assert torch.equal(ops.pgd_step(x, x, grad, 0.05, eps, norm), ops.pgd_step(x, x, grad.float(), 0.05, eps, norm))


@pytest.mark.parametrize("norm", NORMS)
def test_layouts_agree(norm: str, isa: str) -> None:
    eps = NORMS[norm]
    x, x_adv, grad = case((3, 4, 6, 5))
    expected = ops.pgd_step(x_adv, x, grad, 0.05, eps, norm)
    last = torch.channels_last
    same = torch.allclose if norm != "Linf" else torch.equal  # sums run in another order
    out = ops.pgd_step(*(t.to(memory_format=last) for t in (x_adv, x, grad)), 0.05, eps, norm)
    assert same(out, expected)
    assert out.is_contiguous(memory_format=last)
    mixed = ops.pgd_step(x_adv.to(memory_format=last), x, grad, 0.05, eps, norm)
    assert same(mixed, expected)
    stretched = torch.empty(3, 4, 6, 10)[..., ::2].copy_(x_adv)
    assert torch.equal(ops.pgd_step(stretched, x, grad, 0.05, eps, norm), expected)
    result = ops.pgd_step_(stretched, x, grad, 0.05, eps, norm)
    assert result is stretched
    assert torch.equal(stretched, expected)
    spread = grad[:1].expand_as(grad)
    assert torch.equal(
        ops.pgd_step(x_adv, x, spread, 0.05, eps, norm), ops.pgd_step(x_adv, x, spread.clone(), 0.05, eps, norm)
    )
    offset = torch.empty(3 * 120 + 1)[1:].view(3, 4, 6, 5).copy_(x_adv)
    assert torch.equal(ops.pgd_step(offset, x, grad, 0.05, eps, norm), expected)


@pytest.mark.parametrize("norm", NORMS)
def test_in_place_writes_and_bumps_the_version(norm: str) -> None:
    x, x_adv, grad = case((3, 20))
    for function, rest in ((ops.pgd_step_, (grad, 0.05)), (ops.project_, ())):
        copy = x_adv.clone()
        version = copy._version
        returned = function(copy, x, *rest, NORMS[norm], norm)  # type: ignore[operator]
        assert returned is copy
        assert copy._version > version
        outside = {ops.pgd_step_: ops.pgd_step, ops.project_: ops.project}[function]
        assert torch.equal(copy, outside(x_adv, x, *rest, NORMS[norm], norm))  # type: ignore[operator]


def test_stale_graph_is_refused() -> None:
    """Autograd must notice that a saved tensor was overwritten."""
    x, x_adv, grad = case((2, 4))
    weight = torch.ones(2, 4, requires_grad=True)
    loss = (weight * x_adv).sum()
    ops.pgd_step_(x_adv, x, grad, 0.05, 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("norm", NORMS)
def test_per_sample_and_per_feature_arguments(norm: str, isa: str) -> None:
    x, x_adv, grad = case((3, 6))
    eps = torch.tensor([0.0, 0.1, 1.5])
    step = torch.tensor([0.1, 0.0, 0.3])
    lo, hi = torch.full((6,), -0.5), torch.linspace(1.0, 2.0, 6)
    out = ops.pgd_step(x_adv, x, grad, step, eps, norm, (lo, hi))
    assert torch.equal(out[0], x[0])  # eps = 0 is the identity
    for i in range(3):
        row = slice(i, i + 1)
        alone = ops.pgd_step(x_adv[row], x[row], grad[row], float(step[i]), float(eps[i]), norm, (lo, hi))
        assert torch.equal(out[row], alone)
    assert ((out >= lo) & (out <= hi)).all()


def test_random_start_depends_on_ids_alone() -> None:
    x = torch.full((5, 37), 0.5)
    for norm, eps in NORMS.items():
        whole = ops.random_start(x, eps, norm, seed=3)
        ids = torch.tensor([4, 1])
        part = ops.random_start(x[:2], eps, norm, seed=3, index=ids)
        assert torch.equal(part, whole[ids])
        assert not torch.equal(ops.random_start(x, eps, norm, seed=4), whole)
        assert not torch.equal(ops.random_start(x, eps, norm, seed=3, draw=1), whole)


def test_philox_known_answers() -> None:
    """Random123's kat_vectors for philox4x32-10."""
    from fastrobust.ops._rounding import philox

    def words(seed: int, counter: tuple[int, int, int, int]) -> list[int]:
        block, draw, sample, stream = counter
        return [int(w) for w in philox(seed, torch.tensor(block), draw, torch.tensor(sample), stream)]

    ones = 0xFFFFFFFF
    assert words(0, (0, 0, 0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert words(2**64 - 1, (ones, ones, ones, ones)) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert words(0x299F31D0A4093822, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)) == [
        0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1,
    ]  # fmt: skip


def test_random_starts_have_the_right_distribution() -> None:
    """Radii of uniform points in a ball are U^(1/d); Linf coordinates are uniform (Kolmogorov-Smirnov)."""
    from scipy.stats import kstest

    x = torch.zeros(4000, 6)
    box = (-10.0, 10.0)
    flat = ops.random_start(x, 1.0, "Linf", box, seed=5)
    assert kstest(flat.flatten().numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
    for norm in ("L2", "L1"):
        point = ops.random_start(x, 1.0, norm, box, seed=5)
        assert kstest(size(point, norm).numpy() ** 6, "uniform").pvalue > 1e-3
        assert abs(float(point.mean())) < 0.01


def test_global_random_state_is_untouched() -> None:
    state = torch.random.get_rng_state()
    ops.random_start(torch.rand(2, 3, generator=torch.Generator().manual_seed(0)), 0.1, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())


X = torch.full((2, 3), 0.5)
BAD_CALLS = [
    ({"x_adv": [1]}, TypeError, "x_adv must be a tensor"),
    ({"x_adv": X.half()}, TypeError, "x_adv must have dtype float32 or float64, got float16"),
    ({"x": X.double()}, TypeError, "x must have dtype float32"),
    ({"grad": X[0]}, ValueError, r"grad must have the shape of x \(2, 3\), got \(3,\)"),
    ({"grad": X.int()}, TypeError, "grad must have dtype"),
    ({"eps": -1.0}, ValueError, "eps must be finite and >= 0, got -1.0"),
    ({"eps": math.nan}, ValueError, "eps must be finite"),
    ({"eps": "big"}, TypeError, "eps must be a number"),
    ({"eps": torch.ones(3)}, ValueError, r"eps must be a number or have shape \(2,\)"),
    ({"eps": torch.tensor([0.1, -0.1])}, ValueError, "eps must be finite and >= 0"),
    ({"step": math.inf}, ValueError, "step must be finite"),
    ({"norm": "Linfty"}, ValueError, "norm must be one of Linf, L2, L1, got 'Linfty'"),
    ({"box": (1.0, 0.0)}, ValueError, "box must have lo <= hi"),
    ({"box": 0.5}, ValueError, "box must be a pair"),
    ({"box": (torch.zeros(2), 1.0)}, ValueError, "the box's lower end"),
    ({"projection": "none"}, ValueError, "projection must be 'exact' or 'sequential'"),
    ({"flags": torch.zeros(3, dtype=torch.int32)}, ValueError, "flags must be"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_CALLS)
@pytest.mark.parametrize("function", [ops.pgd_step, ops.pgd_step_])
def test_errors_name_the_argument(function, change, error, message) -> None:  # type: ignore[no-untyped-def]
    arguments = {"x_adv": X.clone(), "x": X, "grad": X, "step": 0.1, "eps": 0.2, **change}
    with pytest.raises(error, match=f"{function.__name__}: {message}"):
        function(**arguments)


def test_in_place_on_a_tensor_that_requires_grad_is_refused() -> None:
    leaf = X.clone().requires_grad_()
    with pytest.raises(ValueError, match="x_adv must not require grad"):
        ops.pgd_step_(leaf, X, X, 0.1, 0.2)


def test_compiled_and_eager_agree() -> None:
    x, x_adv, grad = case((4, 11))

    def both(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        fresh = ops.pgd_step(a, b, c, 0.05, 0.1)
        ops.pgd_step_(a, b, c, 0.05, 0.1)
        return fresh, a

    expected = both(x_adv.clone(), x, grad)
    got = torch.compile(both, fullgraph=True, backend="aot_eager")(x_adv.clone(), x, grad)
    assert all(torch.equal(e, g) for e, g in zip(expected, got, strict=False))
