"""The operations that a program of `torch.export` may call: those of deterministic classifiers in eval mode.

A list of what is allowed, not of what is not: among the operations of torch are some that open files or read memory
without looking at its bounds (such as `_reshape_alias`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["find", "writes"]

POINTWISE = """
abs add addcdiv addcmul atan bitwise_and bitwise_not bitwise_or bitwise_xor ceil clamp clamp_max clamp_min copysign cos
cosh div elu eq erf exp exp2 expm1 floor floor_divide fmod ge gelu gt hardshrink hardsigmoid hardswish hardtanh isfinite
isinf isnan le leaky_relu lerp log log10 log1p log2 log_sigmoid logaddexp logical_and logical_not logical_or logical_xor
lt masked_fill maximum minimum mish mul nan_to_num ne neg pow prelu reciprocal relu relu6 remainder round rsqrt rsub
selu sigmoid sign silu sin sinh softplus softshrink sqrt square sub tan tanh threshold trunc where xlogy
"""
REDUCTIONS = """
_log_softmax _softmax all amax amin any argmax argmin count_nonzero cummax cumprod cumsum linalg_vector_norm log_softmax
logsumexp max mean min norm prod softmax sort std std_mean sum topk var var_mean
"""
LAYERS = """
_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d addbmm addmm addmv alpha_dropout avg_pool1d avg_pool2d
avg_pool3d baddbmm batch_norm bilinear bmm channel_shuffle constant_pad_nd conv1d conv2d conv3d conv_transpose1d
conv_transpose2d convolution cosine_similarity dot dropout einsum embedding feature_dropout glu
group_norm im2col instance_norm layer_norm linear matmul max_pool1d max_pool2d max_pool2d_with_indices max_pool3d mm mv
native_dropout native_group_norm native_layer_norm outer pad pixel_shuffle pixel_unshuffle
reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d rms_norm scaled_dot_product_attention tensordot
upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
"""
SHAPES = """
_unsafe_view alias broadcast_to cat chunk clone contiguous detach diagonal expand expand_as flatten flip
gather hstack index index_select meshgrid movedim moveaxis narrow numpy_T permute repeat repeat_interleave reshape
reshape_as roll select slice split split_with_sizes squeeze stack swapaxes swapdims t tile transpose tril triu unbind
unflatten unfold unsqueeze view view_as vstack
"""
MAKERS = """
_to_copy arange eye full full_like lift_fresh lift_fresh_copy linspace new_full new_ones new_zeros ones ones_like
scalar_tensor to type_as zeros zeros_like
"""
SIZES = "_assert_scalar _assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size sym_numel sym_size"

ATEN = frozenset(" ".join((POINTWISE, REDUCTIONS, LAYERS, SHAPES, MAKERS, SIZES)).split())
IN_PLACE = frozenset(f"{name}_" for name in (*POINTWISE.split(), "copy", "detach", "dropout", "fill", "zero"))
# On sizes, which are numbers. Powers and shifts are left out: their results can be astronomical.
SIZE_OPERATORS: dict[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in (
        "add", "and_", "eq", "floordiv", "ge", "gt", "le", "lt", "mod", "mul", "ne", "neg", "not_", "or_", "sub",
        "truediv",
    )},
    **{f"torch.{name}": getattr(torch, name) for name in (
        "sym_float", "sym_int", "sym_max", "sym_min", "sym_not",
    )},
}  # fmt: skip


class _BatchNorm:
    """Stands in for what decomposed programs call, and which reads past the end of statistics that are too short."""

    _schema = torch.ops.aten._native_batch_norm_legit_no_training.default._schema

    def __call__(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        nothing = x.new_zeros(0)
        return F.batch_norm(x, mean, var, weight, bias, False, momentum, eps), nothing, nothing


STAND_INS: dict[str, Callable[..., Any]] = {"torch.ops.aten._native_batch_norm_legit_no_training.default": _BatchNorm()}
TRAINING = ("train", "training")  # arguments that say that a layer behaves as in training


def find(target: str) -> Callable[..., Any]:
    """The operation of this name, such as "torch.ops.aten.conv2d.default". ValueError if it is not on the list."""
    found = SIZE_OPERATORS.get(target) or STAND_INS.get(target)
    if found is not None:
        return found
    parts = target.split(".")
    if len(parts) == 5 and parts[:3] == ["torch", "ops", "aten"] and parts[3] in ATEN | IN_PLACE:
        packet = getattr(torch.ops.aten, parts[3], None)
        if packet is not None and parts[4] in packet.overloads():
            operation: Callable[..., Any] = getattr(packet, parts[4])
            if writes(operation) == (parts[3] in IN_PLACE):  # others write to an argument called out
                return operation
    raise ValueError(f"it calls {target[:80]!r}, which is not among the operations that are run from a file")


def writes(run: Callable[..., Any]) -> bool:
    """Whether the operation changes its first argument."""
    schema = getattr(run, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
