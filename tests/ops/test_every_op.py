"""One test for every registered op: native against reference, torch.library's own checks, functorch and compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastrobust import _backend
from fastrobust._registry import OPS, OpSpec, explain
from fastrobust._selfcheck import disagreement

NAMES = sorted(OPS)


def arguments(spec: OpSpec, device: torch.device) -> list[tuple[Any, ...]]:
    return list(spec.samples(device))


def copied(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)


def tensors(result: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """The results and the (perhaps mutated) arguments."""
    results = result if isinstance(result, tuple) else (result,)
    return [t for t in (*results, *args) if isinstance(t, Tensor)]


@pytest.mark.parametrize("name", NAMES)
def test_native_is_as_exact_as_the_reference(name: str, device: torch.device, isa: str) -> None:
    spec = OPS[name]
    module = _backend.module_for(device)
    if module is None:
        assert "reference" in explain(name, device)  # a build without kernels says so
        return
    for args in arguments(spec, device):
        assert disagreement(spec, module, args) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_torch_library_contract(name: str, device: torch.device) -> None:
    """Schema, fake tensors, autograd registration and AOT dispatch, by torch's own checker."""
    for args in arguments(OPS[name], device):
        torch.library.opcheck(OPS[name].op, args)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_is_the_loop(name: str) -> None:
    spec = OPS[name]
    for args in arguments(spec, torch.device("cpu")):
        mapped = tuple(torch.stack([a, a]) if isinstance(a, Tensor) else a for a in args)
        in_dims = tuple(0 if isinstance(a, Tensor) else None for a in args)
        expected = tensors(spec.op(*args), args)

        def call(*a: Any) -> Any:
            out = spec.op(*a)
            return a[0] if out is None else out  # an in-place op's result is its first argument

        got = tensors(torch.func.vmap(call, in_dims=in_dims)(*mapped), mapped)
        got = got[-len(expected):]  # fmt: skip
        for e, g in zip(expected, got, strict=True):
            assert torch.equal(g[0], e)
            assert torch.equal(g[1], e)


@pytest.mark.parametrize("name", NAMES)
def test_threads_and_batch_do_not_change_a_bit(name: str, isa: str) -> None:
    spec = OPS[name]
    before = torch.get_num_threads()
    try:
        for args in arguments(spec, torch.device("cpu")):
            runs = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                mine = copied(args)
                runs.append(tensors(spec.run(*mine), mine))
            for other in runs[1:]:
                assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=False))
    finally:
        torch.set_num_threads(before)


def test_explain_names_path_and_reason() -> None:
    for name in NAMES:
        assert name in explain(name)
        assert "native" in explain(name) or "reference" in explain(name)
    with pytest.raises(KeyError, match="name must be one of"):
        explain("nonsense")
