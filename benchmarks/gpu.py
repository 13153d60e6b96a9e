"""Build, test and measure on a machine with a GPU: ``python benchmarks/gpu.py`` (that is what ``make gpu`` runs).

Uses the Python, torch and nvcc at hand: no build isolation, no network. In order: builds the kernels, runs the tests of
ops, networks and attacks with the CUDA device, runs every op under compute-sanitizer where it exists, measures, and
writes results/<GPU>.json beside this file. Exit code 2 where there is no GPU, 1 where something failed.

    --rehearse   on any machine: no build, no tests; measures tiny sizes on the CPU, prints the JSON and writes nothing
    --skip-build, --skip-tests, --skip-sanitizer
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
EPS, ALPHA = 8 / 255, 2 / 255
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck")


def why_not() -> str:
    """Why nothing can be measured here; empty if it can."""
    try:
        import torch
    except ImportError:
        return f"{sys.executable} has no torch; install the build of torch for your GPU first"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    if not nvcc():
        return "nvcc was not found; set CUDA_HOME, or put it on PATH"
    return ""


def cuda_tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on PATH or in its usual place."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    places = [Path(home) / "bin", Path(home) / "compute-sanitizer"]
    return shutil.which(name) or next((str(p / name) for p in places if (p / name).exists()), None)


def nvcc() -> str | None:
    return cuda_tool("nvcc")


def csrc_hash() -> str:
    """SHA-256 over names and contents of csrc/: which kernels the numbers belong to."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def step(title: str, command: list[str], **environment: str) -> None:
    print(f"== {title}", flush=True)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths, **environment})
    if run.returncode:
        raise SystemExit(f"{title}: failed with exit code {run.returncode}")


def check_every_op(device: Any) -> None:
    """Each op's samples through its kernel on `device`, against the reference."""
    from fastrobust import _backend
    from fastrobust._registry import OPS
    from fastrobust._selfcheck import disagreement

    module = _backend.module_for(device)
    if module is None:
        raise SystemExit(f"no kernels for {device}: {_backend.missing.get(device.type)}")
    for name, spec in OPS.items():
        for args in spec.samples(device):
            if not disagreement(spec, module, args) <= 1:
                raise SystemExit(f"{name} disagrees with its reference on {device}")


# --- measuring ----------------------------------------------------------------------------------------------------


class Clock:
    """Times work on a device. On a GPU: between two events, so that Python's own time stays hidden behind the queue."""

    def __init__(self, device: Any, repeats: int) -> None:
        import torch

        self.cuda, self.repeats, self.torch = device.type == "cuda", repeats, torch

    def wait(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()

    def seconds(self, run: Callable[[], Any]) -> float:
        """Median seconds of one run on the device."""
        for _ in range(3):
            run()
        self.wait()
        return statistics.median(self._once(run) for _ in range(self.repeats))

    def _once(self, run: Callable[[], Any]) -> float:
        if not self.cuda:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def host_seconds(self, run: Callable[[], Any], calls: int = 200) -> float:
        """Median seconds the host spends on one call that does next to nothing on the device."""
        run()
        times = []
        for _ in range(self.repeats):
            self.wait()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            times.append((time.perf_counter() - start) / calls)
        self.wait()
        return statistics.median(times)


def eager_linf(x_adv: Any, x: Any, grad: Any) -> Any:
    """The update of torchattacks 3.5.1's PGD."""
    x_adv = x_adv + ALPHA * grad.sign()
    return (x + (x_adv - x).clamp(-EPS, EPS)).clamp(0, 1)


def eager_l2(x_adv: Any, x: Any, grad: Any, eps: float, alpha: float) -> Any:
    """The update of torchattacks 3.5.1's PGDL2."""
    shape = (-1, *[1] * (x.dim() - 1))
    x_adv = x_adv + alpha * grad / (grad.flatten(1).norm(dim=1) + 1e-10).view(shape)
    delta = x_adv - x
    return (x + delta * (eps / delta.flatten(1).norm(dim=1)).clamp(max=1.0).view(shape)).clamp(0, 1)


def eager_loss(logits: Any, y: Any) -> Any:
    """Cross-entropy, prediction and the gradient, as an attack asks autograd for them."""
    import torch

    z = logits.detach().requires_grad_()
    loss = torch.nn.functional.cross_entropy(z, y, reduction="none")
    return loss, z.argmax(1) == y, torch.autograd.grad(loss.sum(), z)[0]


def measure(device: Any, rehearse: bool) -> dict[str, dict[str, float]]:
    """Each entry: seconds, and where memory is the limit GB/s and the share of the measured copy bandwidth."""
    import torch

    from benchmarks.gpu_attacks import attacks
    from fastrobust import ops

    clock = Clock(device, 3 if rehearse else 50)
    torch.manual_seed(0)
    shape, rows, classes = ((4, 3, 8, 8), 8, 10) if rehearse else ((512, 3, 224, 224), 512, 1000)
    x = torch.rand(shape, device=device)
    x_adv, grad = ops.random_start(x, EPS, seed=0), torch.randn(shape, device=device)
    size = x.numel() * x.element_size()
    found: dict[str, dict[str, float]] = {}

    seconds = clock.seconds(partial(torch.empty_like(x).copy_, x))
    bandwidth = 2 * size / seconds / 1e9
    found["copy"] = {"seconds": seconds, "GB/s": bandwidth}

    def record(name: str, run: Callable[[], Any], moved: float = 0.0) -> None:
        seconds = clock.seconds(run)
        found[name] = {"seconds": seconds}
        if moved:
            found[name] |= {"GB/s": moved / seconds / 1e9, "share of copy": moved / seconds / 1e9 / bandwidth}

    fused = torch.compile(eager_linf, fullgraph=True, dynamic=False)
    flags = torch.zeros(shape[0], dtype=torch.int32, device=device)
    half = grad.bfloat16()
    linf = f"pgd_step Linf {'x'.join(map(str, shape))}"
    record(f"{linf}, in place", lambda: ops.pgd_step_(x_adv, x, grad, ALPHA, EPS), 4 * size)
    record(f"{linf}, in place, flags", lambda: ops.pgd_step_(x_adv, x, grad, ALPHA, EPS, flags=flags), 4 * size)
    record(f"{linf}, in place, bfloat16 gradient", lambda: ops.pgd_step_(x_adv, x, half, ALPHA, EPS), 3.5 * size)
    record(f"{linf}, new tensor", lambda: ops.pgd_step(x_adv, x, grad, ALPHA, EPS), 4 * size)
    record(f"{linf}, eager chain", lambda: eager_linf(x_adv, x, grad))
    record(f"{linf}, torch.compile", lambda: fused(x_adv, x, grad), 4 * size)

    few = slice(0, max(1, shape[0] // 8))
    x, x_adv, grad = x[few], x_adv[few].clone(), grad[few]
    dim = x[0].numel()
    name = "x".join(map(str, x.shape))
    for norm, eps, projection in (("L2", 3.0, "sequential"), ("L2", 3.0, "exact"), ("L1", 0.05 * dim, "exact")):
        one = partial(ops.pgd_step_, x_adv, x, grad, eps / 4, eps, norm, projection=projection)
        record(f"pgd_step {norm} {name}, {projection}", one)
        record(f"random_start {norm} {name}", partial(ops.random_start, x, eps, norm, seed=0))
    record(f"pgd_step L2 {name}, eager chain", lambda: eager_l2(x_adv, x, grad, 3.0, 0.75))

    logits, y = torch.randn(rows, classes, device=device), torch.randint(classes, (rows,), device=device)
    record(f"logit_loss {rows}x{classes}", lambda: ops.logit_loss(logits, y))
    record(f"logit_loss {rows}x{classes}, eager", lambda: eager_loss(logits, y))

    x, x_adv, grad = (torch.rand(8, 8, device=device) for _ in range(3))
    for who, call in {
        "pgd_step_": lambda: ops.pgd_step_(x_adv, x, grad, ALPHA, EPS),
        "pgd_step": lambda: ops.pgd_step(x_adv, x, grad, ALPHA, EPS),
        "torch.add_": lambda: x_adv.add_(0.0),
    }.items():
        found[f"call of {who} on 8x8, host"] = {"seconds": clock.host_seconds(call, 5 if rehearse else 200)}
    for attack, call in attacks(device, 8 if rehearse else 128, EPS, ALPHA):
        record(attack, call)
    if clock.cuda:
        found["CUDA graph of 20 steps on 8x8"] = {"seconds": clock.seconds(captured(x_adv, x, grad).replay)}
    return found


def captured(x_adv: Any, x: Any, grad: Any, steps: int = 20) -> Any:
    """A CUDA graph of `steps` in-place steps; its replay must do what the calls do."""
    import torch

    from fastrobust import ops

    def run() -> None:
        for _ in range(steps):
            ops.pgd_step_(x_adv, x, grad, ALPHA / steps, EPS)

    start = x_adv.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    expected = x_adv.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    x_adv.copy_(start)
    graph.replay()
    if not torch.equal(x_adv, expected):
        raise SystemExit("CUDA graph: the replay differs from the calls")
    return graph


def report(device: Any, rehearse: bool) -> dict[str, Any]:
    """What the JSON holds: where, with what, and the numbers."""
    import torch

    from fastrobust import _backend
    from fastrobust.evaluation.environment import environment

    about: dict[str, Any] = {"name": "rehearsal on the CPU"}
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        about = {
            "name": p.name,
            "compute capability": f"{p.major}.{p.minor}",
            "memory GiB": round(p.total_memory / 2**30, 1),
            "processors": p.multi_processor_count,
        }
    module = _backend.module_for(device)
    versions = {"torch CUDA": torch.version.cuda}
    if device.type == "cuda" and module is not None:
        versions |= {"kernels' CUDA": module.runtime_version(), "driver's CUDA": module.driver_version()}
    return {
        "gpu": about,
        "environment": environment(),
        "versions": versions,
        "csrc sha256": csrc_hash(),
        "results": measure(device, rehearse),
    }


def file_name(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def lines(results: dict[str, dict[str, float]]) -> list[str]:
    """The results as a table to read."""
    table = []
    for name, entry in results.items():
        rate = f"{entry['GB/s']:9.1f} GB/s" if "GB/s" in entry else ""
        share = f"{entry['share of copy']:7.1%} of copy" if "share of copy" in entry else ""
        table.append(f"{name:58} {entry['seconds'] * 1e6:12.1f} us {rate} {share}".rstrip())
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("rehearse", "skip-build", "skip-tests", "skip-sanitizer", "check-ops"):
        parser.add_argument(f"--{option}", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    missing = "" if chosen.rehearse else why_not()
    if missing:
        print(f"make gpu needs a machine with an NVIDIA GPU: {missing}", file=sys.stderr)
        return 2
    if not (chosen.rehearse or chosen.skip_build or chosen.check_ops):
        step("build", [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], FASTROBUST_CUDA="1")
    import torch

    device = torch.device("cpu" if chosen.rehearse else "cuda")
    check_every_op(device)
    if chosen.check_ops:
        return 0
    if not (chosen.rehearse or chosen.skip_tests):
        step("tests", [sys.executable, "-m", "pytest", "-q", "tests/ops", "tests/attacks", "tests/network"])
    sanitizer = cuda_tool("compute-sanitizer")
    if not (chosen.rehearse or chosen.skip_sanitizer) and sanitizer:
        for tool in SANITIZER_TOOLS:
            command = [sanitizer, "--tool", tool, "--error-exitcode", "1", sys.executable, __file__, "--check-ops"]
            # torch's caching of memory would hide errors from the tool.
            step(f"compute-sanitizer {tool}", command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    elif not chosen.rehearse:
        print("== compute-sanitizer: skipped" if chosen.skip_sanitizer else "== compute-sanitizer: not found")
    print("== measurements", flush=True)
    result = report(device, chosen.rehearse)
    print("\n".join(lines(result["results"])))
    if chosen.rehearse:
        print(json.dumps(result, indent=1))
        return 0
    path = ROOT / "benchmarks" / "results" / file_name(result["gpu"]["name"])
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
