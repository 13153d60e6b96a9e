"""No file gets to run code: whatever does not come from torch.export.save is refused in one line."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from saved.archives import Edit, Net, edited, graph_edit, pickled

import fastrobust as fr
from fastrobust.cli.main import main
from fastrobust.cli.saved_model import open_model


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


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
