"""Networks from files: what torch.export saved answers as it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from saved.archives import Net, edited, export, pickled
from torch import Tensor, nn
from torch.export import Dim

import fastrobust as fr
from fastrobust.cli.errors import UserError
from fastrobust.cli.saved_model import open_model


def test_a_program_answers_as_the_model_and_has_its_gradients(net: Net, program: Path) -> None:
    saved = open_model(program)
    assert (saved.kind, saved.in_shape, saved.classes) == ("torch.export", (1, 8, 8), 7)
    assert (saved.dtype, saved.batch, saved.data) == (torch.float32, None, None)
    for batch in (1, 5):
        ours, theirs = (torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1)) for _ in range(2))
        logits, expected = saved.network(ours.requires_grad_()), net(theirs.requires_grad_())
        torch.testing.assert_close(logits, expected)
        logits.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert saved.network.train().eval()(ours) is not None
    assert not list(saved.network.parameters())


def test_a_program_is_captured_like_the_model_itself(net: Net, program: Path) -> None:
    network, x = open_model(program).network, torch.rand(4, 1, 8, 8)
    assert fr.network.capture(network, x).shape == (1, 8, 8)
    y = net(x).argmax(1)
    found = fr.attacks.PGD(network, eps=0.3, alpha=0.1, steps=10, compile=True).run(x, y)
    same = fr.attacks.PGD(net, eps=0.3, alpha=0.1, steps=10, compile=True).run(x, y)
    torch.testing.assert_close(found.x_adv, same.x_adv)


def test_a_small_plain_net_from_a_file_runs_in_the_engine(tmp_path: Path) -> None:
    model = fr.models.create("mlp", (1, 8, 8), 10, 16).eval()
    network = open_model(export(model, tmp_path / "mlp.pt2", 2, 1, 8, 8)).network
    assert "native engine" in fr.network.compile(network, torch.rand(2, 1, 8, 8)).explain()


@pytest.mark.parametrize("size", [1, 4])
def test_a_fixed_batch_is_kept_to(net: Net, size: int, tmp_path: Path) -> None:
    saved = open_model(export(net, tmp_path / "net.pt2", size, 1, 8, 8, static=True))
    assert saved.batch == size
    x = torch.rand(6, 1, 8, 8)
    torch.testing.assert_close(saved.network(x), net(x))
    found = fr.attacks.PGD(saved.network, eps=0.1, steps=3, compile=True).run(x, net(x).argmax(1))
    assert found.bad_gradients.sum() == 0


def test_a_wider_dtype_is_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double().eval()
    program = torch.export.export(model, (torch.zeros(2, 4).double(),), dynamic_shapes=({0: Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "net.pt2")
    assert open_model(tmp_path / "net.pt2").dtype == torch.float64


def test_a_decomposed_program_answers_as_the_model(net: Net, tmp_path: Path) -> None:
    exported = torch.export.export(net, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: Dim.DYNAMIC},))
    torch.export.save(exported.run_decompositions(), tmp_path / "core.pt2")
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(open_model(tmp_path / "core.pt2").network(x), net(x))

    def change(data: bytes) -> bytes:
        content = json.loads(data)
        content["config"]["first.1.running_mean"]["tensor_meta"]["sizes"] = [{"as_int": 1}]
        return json.dumps(content).encode()

    short = edited(tmp_path / "core.pt2", {"data/weights/model_weights_config.json": change})
    with pytest.raises(RuntimeError, match="running_mean should contain 4"):
        open_model(short).network(x)


def test_attention_and_transformers(tmp_path: Path) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.position, self.head = nn.Parameter(torch.randn(1, 6, 8)), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.layer(x + self.position)
            return self.head(h.mean(1))  # type: ignore[no-any-return]

    model = Small().eval()
    x = torch.rand(3, 6, 8)
    network = open_model(export(model, tmp_path / "t.pt2", 2, 6, 8)).network
    torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-5)


def test_weights_with_strides_and_shared_storage(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.randn(6, 4)
            self.register_buffer("left", whole[:3])
            self.register_buffer("right", whole.t()[:, 3:])

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.left.t() + x @ self.right  # type: ignore[operator]

    model = Tied().eval()
    x = torch.rand(3, 4)
    torch.testing.assert_close(open_model(export(model, tmp_path / "t.pt2", 2, 4)).network(x), model(x))


def test_a_model_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    for model in (nn.Sequential(nn.Linear(4, 3), nn.Dropout()), nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))):
        with pytest.raises(UserError, match=r"model\.eval\(\)"):
            open_model(export(model.train(), tmp_path / "net.pt2", 2, 4))


def test_an_operation_that_is_not_listed_is_named(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    with pytest.raises(UserError, match="randn_like"):
        open_model(export(Noisy(), tmp_path / "net.pt2", 2, 4))


def test_older_pickles_of_tensors_are_read(net: Net, program: Path) -> None:
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(
        open_model(edited(program, {"data/weights/model.pt": pickled(state)})).network(x), net(x)
    )


def test_two_inputs_or_results_are_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x + 1

    torch.export.save(torch.export.export(Two(), (torch.zeros(2, 3), torch.zeros(2, 3))), tmp_path / "two.pt2")
    with pytest.raises(UserError, match="one tensor, got 2"):
        open_model(tmp_path / "two.pt2")
    with pytest.raises(UserError, match="one tensor of logits, got 2"):
        open_model(export(Pair(), tmp_path / "pair.pt2", 2, 3))
