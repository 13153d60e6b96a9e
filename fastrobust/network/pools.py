"""The engine's rules of pools: windows of rows and columns, which need not be regular."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from fastrobust.network.capture import args_of
from fastrobust.network.tape import AVG_POOL, MAX_POOL, Tape, Unsupported, meta, pair

__all__ = ["adaptive_average_pool", "average_pool", "max_pool", "mean"]


def max_pool(tape: Tape, node: Node) -> int:
    """aten.max_pool2d."""
    source, kernel, stride, padding, rest = _pool_arguments(tape, node)
    dilation, ceil = (*rest, *[1, False][len(rest) :])[:2]
    if pair(dilation, 2) != (1, 1):
        raise Unsupported("dilated pooling")
    return _pool(tape, node, MAX_POOL, source, kernel, stride, padding, bool(ceil))


def average_pool(tape: Tape, node: Node) -> int:
    """aten.avg_pool2d."""
    source, kernel, stride, padding, rest = _pool_arguments(tape, node)
    ceil, with_padding, divisor = (*rest, *[False, True, None][len(rest) :])[:3]
    return _pool(tape, node, AVG_POOL, source, kernel, stride, padding, bool(ceil), bool(with_padding), divisor)


def adaptive_average_pool(tape: Tape, node: Node) -> int:
    """aten.adaptive_avg_pool2d."""
    source = tape.source(args_of(node)[0])
    _, height, width = tape.values[source]
    wanted = [w if w is not None else s for w, s in zip(pair(args_of(node)[1], 2), (height, width), strict=True)]
    rows, columns = ([(i * s // n, -(-(i + 1) * s // n)) for i in range(n)]
                     for n, s in zip(wanted, (height, width), strict=True))  # fmt: skip
    return _windows(tape, AVG_POOL, source, rows, columns, [float((b - a) * (d - c)) for a, b in rows
                                                            for c, d in columns])  # fmt: skip


def mean(tape: Tape, node: Node) -> int:
    """aten.mean.dim over rows and columns."""
    source = tape.source(args_of(node)[0])
    value = meta(args_of(node)[0])
    dims = sorted(d % value.dim() for d in args_of(node)[1])
    _, height, width = tape.values[source]
    if value.dim() != 4 or dims != [2, 3]:
        raise Unsupported("only means over rows and columns")
    return _windows(tape, AVG_POOL, source, [(0, height)], [(0, width)], [float(height * width)])


def _pool_arguments(tape: Tape, node: Node) -> tuple[int, Any, Any, Any, tuple[Any, ...]]:
    kernel = pair(args_of(node)[1], 2)
    stride = pair(args_of(node)[2], 2) if len(args_of(node)) > 2 and args_of(node)[2] else kernel
    padding = pair(args_of(node)[3], 2) if len(args_of(node)) > 3 else (0, 0)
    return tape.source(args_of(node)[0]), kernel, stride, padding, tuple(args_of(node)[4:])


def _pool(
    tape: Tape, node: Node, kind: int, source: int, kernel: Any, stride: Any, padding: Any, ceil: bool,
    with_padding: bool = False, divisor: Any = None,
) -> int:  # fmt: skip
    _, height, width = tape.values[source]
    spans: list[list[tuple[int, int]]] = []
    for size, k, s, p in zip((height, width), kernel, stride, padding, strict=True):
        count = -(-(size + 2 * p - k) // s) + 1 if ceil else (size + 2 * p - k) // s + 1
        if ceil and (count - 1) * s >= size + p:
            count -= 1
        spans.append([(i * s - p, min(i * s - p + k, size + p)) for i in range(count)])
    sizes = []
    for a, b in spans[0]:
        for c, d in spans[1]:
            inner = (min(b, height) - max(a, 0)) * (min(d, width) - max(c, 0))
            sizes.append(float(divisor or ((b - a) * (d - c) if with_padding else inner)))
    rows, columns = ([(max(a, 0), min(b, size)) for a, b in span]
                     for span, size in zip(spans, (height, width), strict=True))  # fmt: skip
    return _windows(tape, kind, source, rows, columns, sizes if kind == AVG_POOL else [])


def _windows(
    tape: Tape, kind: int, source: int, rows: list[tuple[int, int]], columns: list[tuple[int, int]],
    divisor: list[float],
) -> int:  # fmt: skip
    channels = tape.values[source][0]
    return tape.append(
        kind, source, (channels, len(rows), len(columns)), row_begin=[a for a, _ in rows],
        row_end=[b for _, b in rows], column_begin=[a for a, _ in columns], column_end=[b for _, b in columns],
        divisor=divisor,
    )  # fmt: skip
