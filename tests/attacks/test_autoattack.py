"""AutoAttack: its parts in a row, the reference code's calls, killed runs, several processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks.closed_form import distance
from attacks.nets import cnn, images, predictions
from torch import nn

import fastrobust as fr
from fastrobust.attacks import AutoAttack

HERE = Path(__file__).resolve().parent
EPS = {"Linf": 0.012, "L2": 0.25, "L1": 2.0}


def short(model: Any, norm: str = "Linf", **keywords: Any) -> AutoAttack:
    """Few steps and queries."""
    suite = AutoAttack(model, norm, EPS[norm], seed=3, verbose=False, n_queries=40, **keywords)
    for attack in suite.attacks.values():
        if hasattr(attack, "steps"):
            attack.steps = 12
        if hasattr(attack, "targets"):
            attack.targets = 3
    return suite


def task(count: int = 30) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model, x = cnn(), images(count)
    y = predictions(model, x)
    y[:2] = (y[:2] + 1) % 10
    return model, x, y


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_no_weaker_than_any_part(norm: str) -> None:
    model, x, y = task()
    suite = short(model, norm)
    found = suite.run(x, y, bs=8)
    assert (distance(found.x_adv, x, norm) <= EPS[norm]).all()
    assert torch.equal(predictions(model, found.x_adv) == y, found.robust)
    assert torch.equal(found.fooled_by == -2, predictions(model, x) != y)
    assert list(found.accuracy) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    shares = list(found.accuracy.values())
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 28 / 30
    assert 0 < found.robust.sum() < 28
    for attack in suite.attacks.values():  # none of what an attack finds gets lost
        if isinstance(attack, fr.attacks.APGD):
            assert not (found.robust & attack.run(x, y).success).any()
    alone = suite.run_standard_evaluation_individual(x, y, bs=30)
    for name, x_adv in alone.items():
        stands = predictions(model, x_adv) == y
        assert not (found.robust & ~stands).any(), name
        assert found.accuracy[name] <= float(stands.float().mean())


def test_a_point_proven_robust_is_not_attacked_and_counts_as_robust() -> None:
    model, x, y = task()
    plain = short(model).run(x, y, bs=8)
    stands = torch.nonzero(plain.robust)[::2, 0]

    def proof(part: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        same = (part[:, None] == x[stands][None]).flatten(2).all(2).any(1)
        return same | (labels == y[0])  # it claims a clean error too: that stays one

    found = short(model, proof=proof).run(x, y, bs=8)
    proven = torch.zeros_like(found.robust).index_fill(0, stands, True) | (y == y[0])
    proven[:2] = False
    assert torch.equal(found.fooled_by == -3, proven)
    assert bool(found.robust[proven].all())
    assert torch.equal(found.x_adv[proven], x[proven])
    assert torch.equal(found.fooled_by[~proven], plain.fooled_by[~proven])
    assert sum(found.evaluations.values()) < sum(plain.evaluations.values())
    assert found.accuracy["square"] == float(found.robust.double().mean())
    with pytest.raises(ValueError, match=r"proof must return \(30,\) bool"):
        short(model, proof=lambda a, b: torch.ones(len(a))).run(x, y, bs=8)


def test_the_reference_codes_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, x, y = task(12)
    suite = short(model, log_path=tmp_path / "log.txt")
    suite.verbose = True
    x_adv, labels = suite.run_standard_evaluation(x, y, bs=5, return_labels=True)
    assert torch.equal(labels, predictions(model, x_adv))
    assert torch.equal(x_adv, suite.run_standard_evaluation(x, y, bs=12))
    assert suite.clean_accuracy(x, y) == 10 / 12
    assert "robust accuracy after square" in (tmp_path / "log.txt").read_text()
    assert "robust accuracy after square" in "".join(capsys.readouterr())
    custom = short(model, version="custom", attacks_to_run=["square", "apgd-dlr"])
    assert list(custom.run(x, y).accuracy) == ["clean", "square", "apgd-dlr"]
    assert AutoAttack(model, version="rand", verbose=False).attacks["apgd-ce"].eot == 20
    assert AutoAttack(model, version="plus", verbose=False).attacks["apgd-ce"].restarts == 5
    wide = AutoAttack(model, "L1", 12.0, verbose=False).attacks["apgd-t"]
    assert (wide.large_radii, wide.targets) == (True, 5)


def test_errors_name_the_argument() -> None:
    model, x, y = task(4)
    for keys, words in (
        ({"version": "fast"}, "version must be"),
        ({"attacks_to_run": ["square"]}, 'needs version="custom"'),
        ({"version": "custom", "attacks_to_run": ["pgd"]}, "attacks_to_run must be among"),
        ({"version": "custom"}, "attacks_to_run must be among"),
        ({"norm": "L0"}, "norm must be"),
        ({"eps": -1.0}, "eps must be"),
    ):
        with pytest.raises(ValueError, match=words):
            AutoAttack(model, verbose=False, **keys)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x must lie in the box"):
        short(model).run(x + 1, y)
    with pytest.raises(ValueError, match="y must have shape"):
        short(model).run(x, y[:2])


def test_no_points_and_one() -> None:
    model, x, y = task(3)
    assert len(short(model).run(x[:0], y[:0]).robust) == 0
    assert len(short(model).run(x[2:], y[2:]).robust) == 1


def test_two_classes() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), torch.rand(12, 1, 3, 3)
    y = predictions(model, x)
    found = short(model).run(x, y)
    assert torch.equal(predictions(model, found.x_adv) == y, found.robust)


def test_doubts() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :4] + torch.rand(len(x), 4)

    model, x, y = task(8)
    doubts = short(Noisy(), compile=False).run(x, y % 4).doubts
    assert any("random" in line for line in doubts)
    doubts = short(nn.Sequential(model, nn.Softmax(1))).run(x, y).doubts
    assert any("probabilities" in line for line in doubts)

    class Steps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return model((x * 4).round() / 4)

    masked = short(Steps().eval())
    y = predictions(Steps(), x)
    assert any("zero" in line for line in masked.run(x, y).doubts)


KILLED = """
    import os, signal, sys
    import torch
    sys.path.insert(0, sys.argv[1])
    from attacks.nets import cnn
    from attacks.test_autoattack import short, task

    class Mortal(torch.nn.Module):
        def __init__(self, net, calls):
            super().__init__()
            self.net, self.calls = net, calls

        def forward(self, x):
            self.calls -= 1
            if self.calls == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return self.net(x)

    torch.set_num_threads(1)
    model, x, y = task(16)
    model = Mortal(model, int(sys.argv[3])).eval()
    suite = short(model, compile=False, version="custom", attacks_to_run=["apgd-t", "fab-t", "square"])
    found = suite.run(x, y, bs=1, state_path=sys.argv[2])
    torch.save([found.x_adv, found.fooled_by, found.accuracy], sys.argv[4])
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(KILLED))

    def run(state: str, calls: int) -> int:
        arguments = [str(HERE.parent), str(tmp_path / state), str(calls), str(tmp_path / "out.pt")]
        return subprocess.run([sys.executable, str(script), *arguments], check=False).returncode

    assert run("whole.json", 0) == 0
    expected = torch.load(tmp_path / "out.pt", weights_only=True)
    (tmp_path / "out.pt").unlink()
    kills = 0
    for calls in (60, 150, 300, 0):
        code = run("killed.json", calls)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        if code == 0:
            break
    assert kills >= 2
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(expected[0], found[0])
    assert torch.equal(expected[1], found[1])
    assert expected[2] == found[2]


def test_state_files_of_others_are_refused(tmp_path: Path) -> None:
    model, x, y = task(4)
    path = tmp_path / "state.json"
    first = short(model).run(x, y, state_path=path)
    again = short(model).run(x, y, state_path=path)
    assert torch.equal(first.x_adv, again.x_adv)
    assert torch.equal(first.fooled_by, again.fooled_by)
    with torch.no_grad():
        model[0].weight.mul_(1.01)
    with pytest.raises(ValueError, match="written by an evaluation of other"):
        short(model).run(x, y, state_path=path)
    path.write_bytes(b"\x80\x04\x95 not json")
    with pytest.raises(ValueError, match="not a state file"):
        short(model).run(x, y, state_path=path)


SHARED = """
    import sys
    import torch
    from torch import distributed as dist
    sys.path.insert(0, sys.argv[1])
    torch.set_num_threads(1)
    from attacks.test_autoattack import short, task
    dist.init_process_group("gloo")
    model, x, y = task(21)
    found = short(model, compile=True).run(x, y, bs=3)
    if dist.get_rank() == 1:
        torch.save([found.x_adv, found.fooled_by, found.accuracy, found.evaluations], sys.argv[2])
    dist.destroy_process_group()
"""


def test_several_processes_give_one_answer(tmp_path: Path) -> None:
    script, out = tmp_path / "run.py", tmp_path / "out.pt"
    script.write_text(textwrap.dedent(SHARED))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    subprocess.run([*launcher, str(script), str(HERE.parent), str(out)], check=True, capture_output=True)
    x_adv, fooled_by, accuracy, evaluations = torch.load(out, weights_only=True)
    model, x, y = task(21)
    alone = short(model, compile=True).run(x, y)
    if fr.network.compile(model, x).engine is not None:  # bit for bit, whoever shares a batch
        assert torch.equal(alone.x_adv, x_adv)
        assert alone.evaluations == evaluations
    assert torch.equal(alone.fooled_by, fooled_by)
    assert alone.accuracy == accuracy
