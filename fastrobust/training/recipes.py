"""Named training runs whose outcome is known."""

from __future__ import annotations

from .config import TrainConfig

MNIST5K_STANDARD = TrainConfig(objective="standard", epochs=8, lr=0.1, schedule="cyclic", eps=0.2)
MNIST5K_ROBUST = TrainConfig(objective="pgd", epochs=8, lr=0.1, schedule="cyclic", eps=0.2)
