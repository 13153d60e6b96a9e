"""ONNX files: each operation gives what the onnx package's reference gives, and no file gets to run code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastrobust as fr
from fastrobust.cli.errors import UserError
from fastrobust.cli.main import main
from fastrobust.cli.saved_model import open_model

onnx: Any = pytest.importorskip("onnx", reason="an optional package: pip install 'fastrobust[onnx]'")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

RNG = np.random.default_rng(0)


def model(
    nodes: Sequence[Any], weights: dict[str, np.ndarray] | None = None, shape: Sequence[int | str] = ("n", 2, 6, 5),
    opset: int = 17, out: Sequence[int | str] | None = None, result: str = "y",
) -> Any:  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, out)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(kind: str, *inputs: str, out: str = "y", **attributes: Any) -> Any:
    return helper.make_node(kind, ["x", *inputs], [out], **attributes)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


ONE = np.float32
CASES: dict[str, tuple[Any, dict[str, np.ndarray], int]] = {
    "conv": (node("Conv", "w", "b", pads=[1, 0, 1, 0], strides=[2, 1]), {"w": floats(3, 2, 3, 2), "b": floats(3)}, 17),
    "conv uneven": (node("Conv", "w", pads=[0, 1, 2, 0]), {"w": floats(3, 2, 3, 2)}, 17),
    "conv groups": (node("Conv", "w", group=2, dilations=[2, 1]), {"w": floats(4, 1, 2, 2)}, 17),
    "conv same upper": (node("Conv", "w", auto_pad="SAME_UPPER", strides=[2, 2]), {"w": floats(3, 2, 3, 3)}, 17),
    "conv same lower": (node("Conv", "w", auto_pad="SAME_LOWER", strides=[2, 1]), {"w": floats(3, 2, 2, 2)}, 17),
    "max pool": (node("MaxPool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1]), {}, 17),
    "max pool ceil": (node("MaxPool", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1), {}, 17),
    "average pool": (node("AveragePool", kernel_shape=[3, 2], pads=[1, 0, 0, 1]), {}, 17),
    "average pool with pad": (
        node("AveragePool", kernel_shape=[3, 2], pads=[1, 0, 0, 1], count_include_pad=1), {}, 17,
    ),
    "global average": (node("GlobalAveragePool"), {}, 17),
    "global max": (node("GlobalMaxPool"), {}, 17),
    "batch norm": (
        node("BatchNormalization", "s", "b", "m", "v", epsilon=0.1),
        {"s": floats(2), "b": floats(2), "m": floats(2), "v": np.ones(2, ONE)}, 17,
    ),
    "layer norm": (node("LayerNormalization", "s", "b"), {"s": floats(5), "b": floats(5)}, 17),
    "matmul": (node("MatMul", "w"), {"w": floats(5, 3)}, 17),
    "flatten 2": (node("Flatten", axis=2), {}, 17),
    "flatten -1": (node("Flatten", axis=-1), {}, 17),
    "reshape": (node("Reshape", "s"), {"s": ints(0, -1, 3)}, 17),
    "transpose": (node("Transpose", perm=[0, 3, 1, 2]), {}, 17),
    "unsqueeze old": (node("Unsqueeze", axes=[1, 3]), {}, 11),
    "unsqueeze": (node("Unsqueeze", "a"), {"a": ints(-1, 1)}, 17),
    "slice": (
        node("Slice", "s", "e", "a", "t"),
        {"s": ints(1, -3), "e": ints(9, -1), "a": ints(2, 3), "t": ints(2, 1)}, 17,
    ),
    "slice old": (node("Slice", starts=[1], ends=[3], axes=[2]), {}, 9),
    "gather": (node("Gather", "i", axis=2), {"i": ints(0, -1, 2)}, 17),
    "pad": (node("Pad", "p", "v"), {"p": ints(0, 0, 1, 2, 0, 1, 0, 1), "v": np.float32(3.0).reshape(())}, 17),
    "pad reflect": (node("Pad", "p", mode="reflect"), {"p": ints(0, 0, 1, 2, 0, 0, 0, 1)}, 17),
    "pad old": (node("Pad", pads=[0, 0, 1, 2, 0, 1, 0, 1], value=2.0), {}, 9),
    "clip": (node("Clip", "a", "b"), {"a": np.array(-0.5, ONE), "b": np.array(0.7, ONE)}, 17),
    "clip below": (node("Clip", "a"), {"a": np.array(0.2, ONE)}, 17),
    "clip old": (node("Clip", min=-0.5, max=0.5), {}, 9),
    "softmax": (node("Softmax", axis=1), {}, 17),
    "log softmax": (node("LogSoftmax"), {}, 17),
    "mean": (node("ReduceMean", axes=[2, 3], keepdims=0), {}, 17),
    "mean 18": (node("ReduceMean", "a"), {"a": ints(-1)}, 18),
    "sum": (node("ReduceSum", "a", keepdims=0), {"a": ints(2)}, 17),
    "max of all": (node("ReduceMax"), {}, 17),
    "norm": (node("ReduceL2", axes=[1]), {}, 17),
    "leaky relu": (node("LeakyRelu", alpha=0.3), {}, 17),
    "prelu": (node("PRelu", "s"), {"s": floats(2, 1, 1)}, 17),
    "selu": (node("Selu"), {}, 17),
    "hard sigmoid": (node("HardSigmoid", alpha=0.3), {}, 17),
    "gelu": (node("Gelu", approximate="tanh"), {}, 20),
    "erf": (node("Erf"), {}, 17),
    "max": (node("Max", "w"), {"w": floats(5)}, 17),
    "sub": (node("Sub", "w"), {"w": floats(6, 1)}, 17),
    "pow": (node("Pow", "w"), {"w": np.array(2.0, ONE)}, 17),
    "expand": (node("Expand", "s"), {"s": ints(3, 1, 1, 1, 5)}, 17),
    "concat": (helper.make_node("Concat", ["x", "w", "x"], ["y"], axis=1), {"w": floats(3, 1, 6, 5)}, 17),
    "cast": (node("Cast", to=TensorProto.DOUBLE), {}, 17),
    "dropout": (node("Dropout"), {}, 17),
}  # fmt: skip


def write(proto: Any, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_what_the_reference_gives(name: str, tmp_path: Path) -> None:
    operation, weights, opset = CASES[name]
    proto = model([operation], weights, opset=opset)
    x = floats(3, 2, 6, 5)
    want = ReferenceEvaluator(proto).run(None, {"x": x})[0]
    have = open_model(write(proto, tmp_path / "m.onnx")).network(torch.from_numpy(x))
    np.testing.assert_allclose(have.numpy(), want, rtol=1e-5, atol=1e-5)


def test_the_gemm_of_linear_layers(tmp_path: Path) -> None:
    proto = model(
        [node("Gemm", "w", "b", transB=1, alpha=0.5, beta=2.0)], {"w": floats(3, 4), "b": floats(3)}, ("n", 4)
    )
    x = floats(2, 4)
    have = open_model(write(proto, tmp_path / "m.onnx")).network(torch.from_numpy(x))
    np.testing.assert_allclose(have, ReferenceEvaluator(proto).run(None, {"x": x})[0], rtol=1e-5, atol=1e-5)


def test_the_softmax_of_older_sets_is_over_all_axes_from_one_on(tmp_path: Path) -> None:
    file = write(model([node("Softmax", axis=2)], opset=11), tmp_path / "m.onnx")  # the reference has the newer meaning
    x = torch.rand(3, 2, 6, 5)
    want = torch.softmax(x.reshape(3, 2, 30), -1).reshape(x.shape)
    torch.testing.assert_close(open_model(file).network(x), want)


def classifier(batch: int | str = "n", names: str = "{}") -> Any:
    """A small net with hostile names, sizes taken from the input, and a split."""
    f = names.format
    nodes = [
        helper.make_node("Conv", ["x", f("w")], [f("c")], name=f("conv")),
        helper.make_node("Relu", [f("c")], [f("r")], name=f("relu")),
        helper.make_node("Shape", [f("r")], [f("s")]),
        helper.make_node("Gather", [f("s"), "zero"], [f("n")]),
        helper.make_node("Concat", [f("n"), "minus"], [f("to")], axis=0),
        helper.make_node("Reshape", [f("r"), f("to")], [f("f")]),
        helper.make_node("Gemm", [f("f"), f("v")], [f("g")]),
        helper.make_node("Constant", [], [f("k")], value_floats=[0.5] * 10),
        helper.make_node("Split", [f("g"), "parts"], [f("a"), f("b")], axis=1),
        helper.make_node("Concat", [f("b"), f("a")], [f("ba")], axis=1),
        helper.make_node("Add", [f("ba"), f("k")], [f("y")]),
    ]
    weights = {
        f("w"): floats(3, 1, 3, 3),
        f("v"): floats(108, 10),
        "zero": ints(0),
        "minus": ints(-1),
        "parts": ints(4, 6),
    }
    return model(nodes, weights, (batch, 1, 8, 8), out=(batch, 10), result=f("y"))


def test_a_whole_network_answers_as_the_reference_and_has_gradients(tmp_path: Path) -> None:
    proto = classifier()
    saved = open_model(write(proto, tmp_path / "net.onnx"))
    assert (saved.kind, saved.in_shape, saved.classes, saved.batch) == ("ONNX", (1, 8, 8), 10, None)
    x = torch.rand(4, 1, 8, 8)
    want = ReferenceEvaluator(proto).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(saved.network(x), want, rtol=1e-4, atol=1e-4)
    y = saved.network(x).argmax(1)
    found = fr.attacks.PGD(saved.network, eps=0.5, alpha=0.1, steps=10).run(x, y)
    assert found.bad_gradients.sum() == 0
    assert found.success.any()


def test_a_fixed_batch_is_kept_to(tmp_path: Path) -> None:
    proto = classifier(batch=2)
    saved = open_model(write(proto, tmp_path / "net.onnx"))
    assert saved.batch == 2
    x = torch.rand(3, 1, 8, 8)
    rows = [ReferenceEvaluator(proto).run(None, {"x": x[[i, i]].numpy()})[0][0] for i in range(3)]
    np.testing.assert_allclose(saved.network(x), np.stack(rows), rtol=1e-4, atol=1e-4)


def test_a_plain_net_is_captured(tmp_path: Path) -> None:
    nodes = [node("Flatten", out="f"), helper.make_node("Gemm", ["f", "w"], ["g"]),
             helper.make_node("Clip", ["g", "low", "high"], ["y"])]  # fmt: skip
    weights = {"w": floats(64, 10), "low": np.array(-1.0, ONE), "high": np.array(6.0, ONE)}
    network = open_model(write(model(nodes, weights, ("n", 1, 8, 8)), tmp_path / "net.onnx")).network
    assert fr.network.capture(network, torch.rand(2, 1, 8, 8)).shape == (1, 8, 8)


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["attack", str(path), "--data", "digits", "--eps", "0.1"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.strip().splitlines()) == 1
    return err


def test_hostile_names_do_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    proto = classifier(names=f"{{}}'); open({str(marker)!r}, 'w'); ('\n")
    network, x = open_model(write(proto, tmp_path / "net.onnx")).network, torch.rand(3, 1, 8, 8)
    np.testing.assert_allclose(
        network(x), ReferenceEvaluator(proto).run(None, {"x": x.numpy()})[0], rtol=1e-4, atol=1e-4
    )
    fr.attacks.PGD(network, eps=0.1, steps=2, compile=True)(x, torch.zeros(3, dtype=torch.int64))
    assert not marker.exists()


def external(location: str, **where: int) -> Any:
    proto = model([node("Flatten", out="f"), helper.make_node("Gemm", ["f", "w"], ["y"])], None, ("n", 1, 8, 8))
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 10], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **where}.items():
        weight.external_data.add(key=key, value=str(value))
    proto.graph.initializer.append(weight)
    return proto


def test_weights_beside_the_model_are_read(tmp_path: Path) -> None:
    values = floats(64, 10)
    (tmp_path / "w.bin").write_bytes(b"head" + values.tobytes() + b"tail")
    file = write(external("w.bin", offset=4, length=values.nbytes), tmp_path / "net.onnx")
    x = torch.rand(2, 1, 8, 8)
    np.testing.assert_allclose(open_model(file).network(x), x.flatten(1).numpy() @ values, rtol=1e-5, atol=1e-5)


def test_weights_elsewhere_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "sub").mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(2560))
    (folder / "sub" / "w.bin").write_bytes(bytes(2560))
    (folder / "link").symlink_to(secret)
    for location in ("../secret", str(secret), "link", "sub/w.bin", "sub/../../secret", "..", "", "nowhere"):
        assert "own folder" in refused(write(external(location), folder / "net.onnx"), capsys)
    (folder / "short.bin").write_bytes(bytes(100))
    assert "after the end" in refused(write(external("short.bin", offset=0, length=2560), folder / "net.onnx"), capsys)


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (model([helper.make_node("Run", ["x"], ["y"], domain="evil")]), "outside the standard"),
        (model([helper.make_node("Loop", ["x"], ["y"])]), "'Loop', which is not among"),
        (model([helper.make_node("RandomNormalLike", ["x"], ["y"])]), "RandomNormalLike"),
        (model([helper.make_node("Relu", ["z"], ["y"])]), "which nothing before it makes"),
        (model([node("Relu")], opset=5), "operator set is 5"),
        (model([node("Relu")], shape=("n",)), "must be (batch, ...)"),
        (
            model([helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])]),
            "more than the first result of 'MaxPool'",
        ),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_what_is_not_run_is_refused(proto: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refused(write(proto, tmp_path / "net.onnx"), capsys)


def test_training_mode_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"s": floats(1), "b": floats(1), "m": floats(1), "v": np.ones(1, ONE)}
    nodes = [node("BatchNormalization", "s", "b", "m", "v", out="h", training_mode=1),
             helper.make_node("Flatten", ["h"], ["y"])]  # fmt: skip
    file = write(model(nodes, weights, ("n", 1, 8, 8), out=("n", 64)), tmp_path / "net.onnx")
    assert "training mode" in refused(file, capsys)


def test_damaged_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = classifier().SerializeToString()
    for content in (data[:-500], b"\x08\x07", b"hello", b"\x08" + bytes(100)):
        (tmp_path / "net.onnx").write_bytes(content)
        refused(tmp_path / "net.onnx", capsys)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(classifier(), tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"fastrobust\[onnx\]"):
        open_model(tmp_path / "net.onnx")
