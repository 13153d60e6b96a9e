"""Bounds against what is known: closed forms, a dense CROWN, a mixed-integer optimum; and what callers rely on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import dense_crown, least_margin
from sample_nets import Layers, Mixed, Odd, shaken
from torch import Tensor, nn

import fastrobust as fr

Method = Callable[..., fr.bounds.Bounds]
METHODS = (fr.bounds.ibp, fr.bounds.crown_ibp, fr.bounds.crown, fr.bounds.alpha_crown)


def chain(*sizes: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for a, b in pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1]).eval()


def linears(model: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in model if isinstance(layer, nn.Linear)]


# --- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_a_linear_model_is_bounded_by_the_dual_norm(method: Method, norm: str) -> None:
    torch.manual_seed(0)
    model, x, eps = nn.Linear(12, 5), 0.4 + 0.2 * torch.rand(7, 12), 0.1
    threat = {"Linf": fr.Linf, "L2": fr.L2, "L1": fr.L1}[norm](eps)
    order = {"Linf": 1, "L2": 2, "L1": torch.inf}[norm]
    far = eps * torch.linalg.vector_norm(model.weight.detach().double(), order, dim=1)
    z = model.double()(x.double()).detach()
    model.float()
    for sound, most in ((False, 1e-6), ("exact", 1e-5), (True, 1e-5)):
        bounds = method(model, x, threat, sound)
        assert float((bounds.lower.detach() - (z - far)).abs().max()) <= most
        assert float((bounds.upper.detach() - (z + far)).abs().max()) <= most


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_the_first_convolution_is_bounded_by_the_dual_norm_behind_normalisation(norm: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, 2, 1)
    model = nn.Sequential(fr.models.Normalize([0.4, 0.5, 0.6], [0.2, 0.25, 0.5]), conv, nn.ReLU(), nn.Flatten())
    x, eps = 0.4 + 0.2 * torch.rand(2, 3, 6, 6), 0.05
    threat = fr.L2(eps) if norm == "L2" else fr.L1(eps)
    found = fr.bounds.ibp(model, x, threat, False)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda p: nn.Sequential(model[0], conv)(p[None]).flatten()))(x)
    far = eps * torch.linalg.vector_norm(jacobian.flatten(2), 2 if norm == "L2" else torch.inf, dim=2)
    z = conv(model[0](x)).flatten(1)
    assert float((found.upper - (z + far).clamp(min=0)).abs().max()) <= 1e-5
    assert float((found.lower - (z - far).clamp(min=0)).abs().max()) <= 1e-5


@pytest.mark.parametrize("sizes", [(4, 9, 3), (6, 20, 20, 4), (5, 12, 12, 12, 12, 3)])
def test_crown_is_that_of_dense_matrices(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(len(sizes))
    model, x = chain(*sizes), torch.rand(8, sizes[0])
    low, high = x - 0.1, x + 0.1
    lower, upper = dense_crown(linears(model), low, high)
    bounds = fr.bounds.crown(model, x, (low, high), False)
    # Boxes met with those of intervals are never worse.
    assert float((lower - bounds.lower).max()) <= 1e-5
    assert float((bounds.upper - upper).max()) <= 1e-5
    assert float((bounds.lower - lower).median()) <= 1e-2
    sound = fr.bounds.crown(model, x, (low, high), "exact")
    assert bool((sound.lower <= bounds.lower + 1e-6).all())
    assert float((bounds.lower - sound.lower).max()) <= 1e-4


def test_margins_lie_between_intervals_and_the_mixed_integer_optimum() -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        model, x = chain(3, 8, 8, 3), torch.rand(1, 3)
        low, high, y = x - 0.2, x + 0.2, model(x).argmax(1)
        found = {m: fr.bounds.margins(model, x, y, (low, high), m)[0] for m in
                 ("ibp", "crown_ibp", "crown", "alpha_crown")}  # fmt: skip
        for j in set(range(3)) - {int(y)}:
            best = least_margin(linears(model), low[0], high[0], int(y), j)
            ways = [float(found[m][j]) for m in ("ibp", "crown", "alpha_crown")]
            assert ways == sorted(ways)
            assert ways[-1] <= best + 1e-5
            attacked = min(float(z[int(y)] - z[j]) for z in model(low + (high - low) * torch.rand(500, 3)).detach())
            assert best <= attacked + 1e-5
        assert all(float(m[int(y)]) == 0 for m in found.values())


def test_margins_are_no_differences_of_bounds() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 2), torch.rand(3, 6), torch.zeros(3, dtype=torch.int64)
    model.weight.data[1] = model.weight.data[0]  # the logits differ by the biases alone
    got = fr.bounds.margins(model, x, y, fr.Linf(0.1), "ibp", "exact")[:, 1]
    assert float((got - (model.bias[0] - model.bias[1])).abs().max()) <= 1e-5


def test_separately_rounded_logits_are_allowed_for() -> None:
    """Rows that are nearly equal: the difference of the rows is tiny, what rounding does to each logit is not."""
    torch.manual_seed(0)
    model, x = nn.Linear(2000, 2), torch.rand(64, 2000)
    model.weight.data[1] = model.weight.data[0]
    model.bias.data.zero_()
    y = torch.zeros(64, dtype=torch.int64)
    margin = fr.bounds.margins(model, x, y, (x, x), "crown", "float32")[:, 1]
    for order in (slice(None), torch.randperm(2000), torch.arange(2000).flip(0)):
        a = (x * model.weight[0]).cumsum(1)[:, -1]
        b = (x[:, order] * model.weight[1][order]).cumsum(1)[:, -1]
        assert bool((margin <= (a - b).detach()).all())
    assert float(margin.max()) < 0


# --- properties -------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_random_convolutional_networks_hold_every_point(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    model = shaken(Layers(data.draw, 2, 7))
    method = data.draw(st.sampled_from(METHODS[:3]))
    x = torch.randn(3, 2, 7, 7)
    low, high = x - 0.1 * torch.rand_like(x), x + 0.1 * torch.rand_like(x)
    bounds = method(model, x, (low, high))
    for point in (low, high, *(low + (high - low) * torch.rand_like(x) for _ in range(5))):
        z = model(point)
        assert bool(((bounds.lower <= z) & (z <= bounds.upper)).all())


def test_products_pools_and_concatenation_hold_every_point() -> None:
    torch.manual_seed(0)
    model, x = shaken(Mixed()), torch.rand(4, 2, 6, 6)
    for method in METHODS:
        bounds = method(model, x, fr.Linf(0.02, box=(-1.0, 2.0)))
        for _ in range(50):
            z = model(x + 0.02 * (2 * torch.rand_like(x) - 1).round())
            assert bool(((bounds.lower <= z) & (z <= bounds.upper)).all())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_bounds_grow_with_eps_and_start_at_the_forward_pass(method: Method) -> None:
    torch.manual_seed(0)
    model, x = shaken(fr.models.small_cnn(1, 2, 12, 3)), torch.rand(3, 1, 12, 12)
    z = model(x).detach()
    before = method(model, x, fr.Linf(0.0))
    assert bool(((before.lower <= z) & (z <= before.upper)).all())
    assert float((before.upper - before.lower).max()) <= 2e-2
    for eps in (0.001, 0.01, 0.03):
        bounds = method(model, x, fr.Linf(eps))
        assert bool((bounds.lower <= before.lower).all())
        assert bool((bounds.upper >= before.upper).all())
        before = bounds


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_samples_do_not_share_their_bounds(method: Method) -> None:
    torch.manual_seed(0)
    model, x = shaken(fr.models.small_cnn(1, 2, 12, 3)), torch.rand(5, 1, 12, 12)
    whole = method(model, x, fr.Linf(0.01))
    parts = [method(model, part, fr.Linf(0.01)) for part in x.split(2)]
    for end in ("lower", "upper"):
        together = torch.cat([getattr(part, end) for part in parts])
        torch.testing.assert_close(together, getattr(whole, end), rtol=1e-3, atol=1e-4)


def test_every_model_of_the_library_has_bounds() -> None:
    for name in ("mlp", "small_cnn", "cnn7", "resnet18", "preact_resnet18"):
        torch.manual_seed(0)
        model, x = shaken(fr.models.create(name, (3, 16, 16), 10, 4)), torch.rand(2, 3, 16, 16)
        for method in (fr.bounds.ibp, fr.bounds.crown_ibp):
            bounds = method(model, x, fr.Linf(1e-3))
            z = model((x + 1e-3 * torch.randn_like(x).sign()).clamp(0, 1))
            assert bool(((bounds.lower <= z) & (z <= bounds.upper)).all()), name


def test_unsound_bounds_have_gradients() -> None:
    torch.manual_seed(0)
    model, x = chain(4, 8, 3).double(), torch.rand(2, 4, dtype=torch.float64)

    def worst(*tensors: Tensor) -> Tensor:
        bounds = fr.bounds.ibp(model, x, fr.Linf(0.1), False)
        return bounds.upper - bounds.lower

    weight = model[0].weight
    (slope,) = torch.autograd.grad(worst().sum(), weight)
    step = 1e-6
    with torch.no_grad():
        weight[0, 0] += step
        up = worst().sum()
        weight[0, 0] -= 2 * step
        down = worst().sum()
        weight[0, 0] += step
    assert float(slope[0, 0]) == pytest.approx(float(up - down) / (2 * step), rel=1e-4)


# --- side effects, errors ---------------------------------------------------------------------------------------


def test_nothing_of_the_model_or_of_torch_changes() -> None:
    model = fr.models.small_cnn(1, 2, 12, 3).train()
    x = torch.rand(2, 1, 12, 12)
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    settings_before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()
    fr.bounds.alpha_crown(model, x, fr.Linf(0.01))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    after = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()
    assert after == settings_before


def test_new_parameters_are_seen() -> None:
    model, x = chain(4, 8, 3), torch.rand(2, 4)
    first = fr.bounds.crown(model, x, fr.Linf(0.01))
    with torch.no_grad():
        model[0].weight.data *= 2
    second = fr.bounds.crown(model, x, fr.Linf(0.01))
    assert not torch.equal(first.lower, second.lower)
    model[0] = nn.Linear(4, 8)
    third = fr.bounds.crown(model, x, fr.Linf(0.01))
    z = model(x)
    assert bool(((third.lower <= z) & (z <= third.upper)).all())


def test_empty_batches_and_one_class() -> None:
    model = chain(4, 8, 1)
    for method in METHODS:
        assert method(model, torch.rand(0, 4), fr.Linf(0.1)).lower.shape == (0, 1)
    assert (
        fr.bounds.margins(model, torch.rand(3, 4), torch.zeros(3, dtype=torch.int64), fr.Linf(0.1)).tolist()
        == [[0.0]] * 3
    )


@pytest.mark.parametrize(
    "last", [nn.SiLU(), nn.GELU(), nn.Tanh(), nn.Softplus(), nn.ELU(), nn.Hardtanh(), nn.LeakyReLU(), nn.Softmax(1)]
)
def test_functions_of_what_overflowed_have_bounds(last: nn.Module) -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), last).eval(), torch.rand(2, 4)
    model[0].weight.data *= 1e30
    model[1].weight.data *= 1e30
    for method in METHODS:
        bounds = method(model, x, fr.Linf(0.1))
        assert bool((bounds.lower <= bounds.upper).all())


def test_bounds_that_overflow_say_nothing() -> None:
    model, x = chain(4, 8, 8, 2), torch.rand(2, 4)
    model[0].weight.data *= 1e30
    model[2].weight.data *= 1e30
    for method in METHODS:
        bounds = method(model, x, fr.Linf(0.1))
        assert not bounds.lower.isnan().any()
        assert not bounds.upper.isnan().any()
        assert bool((bounds.lower == -torch.inf).all())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"threat": 0.1}, TypeError, "threat must be a threat model or a pair"),
        ({"threat": (torch.ones(2, 4), torch.zeros(2, 4))}, ValueError, "lower must be at most upper"),
        ({"threat": (torch.zeros(2, 3), torch.ones(2, 3))}, ValueError, r"lower must have the shape of x \(2, 4\)"),
        ({"x": torch.full((2, 4), torch.nan)}, ValueError, "x must"),
        ({"x": torch.full((2, 4), 2.0)}, ValueError, "x must"),
        ({"x": torch.zeros(2, 4, dtype=torch.float16)}, TypeError, "x must have dtype float32 or float64"),
        ({"sound": "float16"}, ValueError, "sound must be True, False, 'exact' or 'float32'"),
        ({"model": lambda x: x}, TypeError, "model must be a torch.nn.Module"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"model": chain(4, 8, 3), "x": torch.zeros(2, 4), "threat": fr.Linf(0.1)} | change
    with pytest.raises(error, match=message):
        fr.bounds.crown(**arguments)


def test_weights_that_are_not_finite_are_named() -> None:
    model, x = chain(4, 8, 3), torch.zeros(2, 4)
    model[2].weight.data[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"'2\.weight' holds NaN or Inf"):
        fr.bounds.ibp(model, x, fr.Linf(0.1))


def test_networks_without_rules_are_refused() -> None:
    x = torch.rand(2, 6)
    with pytest.raises(fr.network.CaptureError, match="draws random numbers"):
        fr.bounds.ibp(Odd("random"), x, fr.Linf(0.1))

    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x)

    with pytest.raises(ValueError, match=r"aten.sin.default has no rule for bounds \(.*test_methods.py"):
        fr.bounds.ibp(Sine(), x, fr.Linf(0.1))
    hooked = chain(6, 4, 2)
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="has forward hooks"):
        fr.bounds.ibp(hooked, x, fr.Linf(0.1))


def test_flushed_denormals_are_refused() -> None:
    if not torch.set_flush_denormal(True):
        return
    try:
        with pytest.raises(ValueError, match="gradual underflow"):
            fr.bounds.ibp(chain(4, 3), torch.zeros(1, 4), fr.Linf(0.1))
    finally:
        torch.set_flush_denormal(False)
