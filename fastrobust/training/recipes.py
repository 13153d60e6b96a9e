"""Named training runs whose outcome is known."""

from __future__ import annotations

from .config import TrainConfig

# small_cnn of width 16 on MNIST-5k. The one-cycle learning rate converges in 8 epochs; eps grows over the first two, so
# that the net learns digits before it defends them; 5 attack steps of eps / 2 train as well as 10 of eps / 4 here.
MNIST5K_STANDARD = TrainConfig(objective="standard", epochs=8, lr=0.1, schedule="cyclic", eps=0.2)
MNIST5K_ROBUST = TrainConfig(epochs=8, lr=0.1, schedule="cyclic", eps=0.2, eps_warmup=2, steps=5)
