"""Networks from files: what torch.export saved answers as it did, and no file gets to run code."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor, nn
from torch.export import Dim

import fastrobust as fr
from fastrobust.cli.errors import UserError
from fastrobust.cli.main import main
from fastrobust.cli.saved_model import open_model

Edit = Callable[[bytes], bytes]
OLD = "serialized_exported_program.json"


class Net(nn.Module):
    """Most of what exports of classifiers hold: buffers, a constant, sizes, several results, in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.last = nn.Sequential(nn.Dropout(), nn.Linear(36, 6))
        self.first[1].running_mean.uniform_()  # type: ignore[union-attr, operator]
        self.register_buffer("mean", torch.full((1, 1, 1), 0.4), persistent=False)
        self.scale = torch.tensor([2.0])

    def forward(self, x: Tensor) -> Tensor:
        h = self.first((x - self.mean) / 0.3)
        a, b = self.last(h.view(x.shape[0], -1)).split(3, dim=1)
        top = b.max(dim=1, keepdim=True).values
        return torch.cat([a * self.scale, torch.where(b > 0, b, 0.1 * b), top], dim=1)


def export(model: nn.Module, path: Path, *shape: int, static: bool = False) -> Path:
    dynamic = None if static else ({0: Dim.DYNAMIC},)
    torch.export.save(torch.export.export(model, (torch.zeros(*shape),), dynamic_shapes=dynamic), path)
    return path


def edited(path: Path, edits: Mapping[str, bytes | Edit], name: str = "edited.pt2") -> Path:
    """A copy of an archive with some members replaced, or added."""
    out = path.with_name(name)
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(out, "w") as after:
        names, waiting = before.namelist(), dict(edits)
        if OLD in names:  # of torch 2.6 and 2.7
            root = ""
            old = {"models/model.json": OLD, "data/weights/model.pt": "serialized_state_dict.pt",
                   "data/constants/model.pt": "serialized_constants.pt"}  # fmt: skip
            waiting = {old.get(short, short): edit for short, edit in waiting.items()}
        else:
            root = names[0].split("/")[0] + "/"
        for member in names:
            edit, data = waiting.pop(member.removeprefix(root), None), before.read(member)
            after.writestr(member, data if edit is None else edit if isinstance(edit, bytes) else edit(data))
        for short, edit in waiting.items():
            if not isinstance(edit, bytes):
                pytest.skip(f"this version of torch writes no {short}")
            after.writestr(f"{root}{short}", edit)
    return out


def graph_edit(change: Callable[[Any], None]) -> dict[str, Edit]:
    """Changes the description of the graph."""

    def edit(data: bytes) -> bytes:
        content = json.loads(data)
        change(content)
        return json.dumps(content).encode()

    return {"models/model.json": edit}


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def pickled(what: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(what, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def program(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(net, tmp_path_factory.mktemp("pt2") / "net.pt2", 2, 1, 8, 8)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


def refused(path: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The command's one line of error."""
    assert main(["attack", str(path), "--data", "digits", "--eps", "0.1"]) == 2
    out, err = capsys.readouterr()
    assert not marker.exists()
    assert not out
    assert len(err.strip().splitlines()) == 1
    return err


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


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.conv2d.__class__",
        "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten._reshape_alias.default",
        "torch.ops.aten.native_batch_norm.default",
        "torch.ops.profiler._record_function_enter.default",
        "torch.ops.load_library",
        "torch.ops.aten.add.out",
        "torch.serialization.os.system",
        "torch.load",
        "torch.sym_ite",
        "_operator.attrgetter",
        "_operator.add.__self__",
        "math.factorial",
        "#extension:run",
        "os.system",
    ],
)
def test_a_target_outside_the_list_is_refused(
    target: str, program: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(content: Any) -> None:
        content["graph_module"]["graph"]["nodes"][0]["target"] = target

    assert f"{target!r}, which is not among" in refused(edited(program, graph_edit(change)), marker, capsys)


def test_expressions_guards_metadata_and_examples_are_never_evaluated(net: Net, program: Path, marker: Path) -> None:
    payload = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    sympy.sympify(f"[{payload}, 1][1]")  # what torch.export.load does with expressions
    assert marker.exists()
    marker.unlink()

    def change(content: Any) -> None:
        graph = content["graph_module"]["graph"]
        for values in graph["tensor_values"].values():
            for size in values["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = f"[{payload}, 1][1]"
        for value in graph["sym_int_values"].values():
            value["as_expr"]["expr_str"] = payload
        content["guards_code"] = [payload]  # executed by ExportedProgram.module()
        content["range_constraints"] = {payload: {"min_val": 0, "max_val": 9}}
        for node in graph["nodes"]:
            node["metadata"] = {"source_fn_stack": f"x,{payload}", "nn_module_stack": payload}

    file = edited(program, {**graph_edit(change), "data/sample_inputs/model.pt": pickled(Bomb(marker))})
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(open_model(file).network(x), net(x))
    assert not marker.exists()


def test_names_are_never_code(net: Net, program: Path, marker: Path) -> None:
    hostile = f"h):\n  open({str(marker)!r}, 'w')\n#"
    file = edited(program, {"models/model.json": lambda data: _renamed(data, hostile)})
    x = torch.rand(3, 1, 8, 8)
    network = open_model(file).network
    torch.testing.assert_close(network(x), net(x))
    fr.network.compile(network, x)
    assert not marker.exists()


def _renamed(data: bytes, name: str) -> bytes:
    """Gives the input a hostile name everywhere."""
    text = data.decode()
    assert '"name": "x"' in text
    return (
        text.replace('"name": "x"', f'"name": {json.dumps(name)}').replace('"x": {', f"{json.dumps(name)}: {{").encode()
    )


def test_a_pickled_weight_is_refused(program: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(data: bytes) -> bytes:
        content = json.loads(data)
        next(iter(content["config"].values()))["use_pickle"] = True
        return json.dumps(content).encode()

    edits: dict[str, bytes | Edit] = {
        "data/weights/model_weights_config.json": change,
        "data/weights/weight_0": pickled(Bomb(marker)),
    }
    assert "pickled tensor" in refused(edited(program, edits), marker, capsys)


@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_older_pickles_are_read_as_tensors_only(
    kind: str, program: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for bomb in (Bomb(marker), {"first.0.weight": Bomb(marker)}):
        assert "damaged" in refused(edited(program, {f"data/{kind}/model.pt": pickled(bomb)}), marker, capsys)


def test_older_pickles_of_tensors_are_read(net: Net, program: Path) -> None:
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(
        open_model(edited(program, {"data/weights/model.pt": pickled(state)})).network(x), net(x)
    )


@pytest.mark.parametrize("name", ["custom_obj_0", "opaque_obj_0"])
def test_custom_objects_are_refused(name: str, program: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"config": {"c": {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}}}
    edits = {"data/constants/model_constants_config.json": json.dumps(config).encode(),
             f"data/constants/{name}": pickle.dumps(Bomb(marker))}  # fmt: skip
    assert "pickled objects" in refused(edited(program, edits), marker, capsys)


def test_a_weight_cannot_reach_outside_its_bytes(
    program: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in (("sizes", [{"as_int": 10**6}]), ("storage_offset", {"as_int": 10**6})):

        def change(data: bytes, key: str = key, value: object = value) -> bytes:
            content = json.loads(data)
            content["config"]["first.0.bias"]["tensor_meta"][key] = value
            return json.dumps(content).encode()

        file = edited(program, {"data/weights/model_weights_config.json": change})
        assert "out of bounds" in refused(file, marker, capsys)


def test_pickled_modules_are_refused(
    net: Net, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bomb = Bomb(marker)
    torch.save(net, tmp_path / "module.pt")
    torch.save(bomb, tmp_path / "bomb.pt")
    torch.save(bomb, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"architecture": bomb, "model": bomb}, tmp_path / "ours.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(bomb))
    for name in ("module.pt", "bomb.pt", "old.pt", "ours.pt", "plain.pkl"):
        err = refused(tmp_path / name, marker, capsys)
        assert "pickled Python objects" in err
        assert "torch.export.save" in err


def test_torchscript_is_refused_whatever_its_name(
    net: Net, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("net.pt", "net.pt2", "net.onnx"):
        torch.jit.trace(net, torch.rand(2, 1, 8, 8)).save(str(tmp_path / name))  # type: ignore[no-untyped-call]
        err = refused(tmp_path / name, marker, capsys)
        assert "TorchScript" in err
        assert "torch.export.save" in err


def test_other_files_are_named_for_what_they_are(
    net: Net, program: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    assert "weights only" in refused(tmp_path / "weights.pt", marker, capsys)
    (tmp_path / "cut.pt2").write_bytes(program.read_bytes()[:-2000])
    refused(tmp_path / "cut.pt2", marker, capsys)
    (tmp_path / "empty.pt2").write_bytes(b"")
    assert "not a network" in refused(tmp_path / "empty.pt2", marker, capsys)
    assert "damaged" in refused(edited(program, {"models/model.json": b"{}"}), marker, capsys)
    deep = b"[" * 100_000
    assert "damaged" in refused(edited(program, {"models/model.json": deep}), marker, capsys)
    assert "no such model file" in refused(tmp_path / "nowhere.pt2", marker, capsys)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a/readme", "hello")
    assert "no network" in refused(tmp_path / "other.zip", marker, capsys)
    with zipfile.ZipFile(program) as before, zipfile.ZipFile(tmp_path / "z.pt2", "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            after.writestr(name, before.read(name))
    assert "compressed" in refused(tmp_path / "z.pt2", marker, capsys)


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
