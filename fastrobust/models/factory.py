"""The one place that turns a model's name into a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from .plain import cnn7, mlp, small_cnn
from .resnet import preact_resnet18, resnet18

# name -> (default width, constructor from (in_shape, classes, width))
MODELS: dict[str, tuple[int, Callable[[Sequence[int], int, int], nn.Module]]] = {
    "mlp": (256, lambda shape, classes, width: mlp(shape, (width, width), classes)),
    "small_cnn": (16, lambda shape, classes, width: small_cnn(shape[0], width, shape[-1], classes)),
    "cnn7": (64, lambda shape, classes, width: cnn7(shape[0], shape[-1], classes, width)),
    "resnet18": (64, lambda shape, classes, width: resnet18(shape[0], classes, width)),
    "preact_resnet18": (64, lambda shape, classes, width: preact_resnet18(shape[0], classes, width)),
}


def create(name: str, in_shape: Sequence[int], classes: int, width: int | None = None) -> nn.Module:
    """Build the model `name` for inputs of `in_shape` (C, H, W).

    `width`: channels of the first layer (hidden units of "mlp", which has two hidden layers); None takes the
    usual one. Errors: ValueError for an unknown name, or an input that is not a square image where the net
    needs one.
    """
    if name not in MODELS:
        raise ValueError(f"create: name must be one of {', '.join(MODELS)}, got {name!r}")
    if name != "mlp" and (len(in_shape) != 3 or in_shape[1] != in_shape[2]):
        raise ValueError(f"create: {name} needs square images, in_shape (C, H, H), got {tuple(in_shape)}")
    default, build = MODELS[name]
    return build(in_shape, classes, default if width is None else width)
