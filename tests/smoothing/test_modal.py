"""Certificates of inputs of several modalities: every attack on every tiny input; exact ratios; the subsets drawn."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from fastrobust.smoothing import ModalCertificate, Modality, ModalSmooth
from fastrobust.smoothing.modal import bounds, gaps, missing

Inputs = tuple[tuple[int, ...], ...]


def certificate(chances: Sequence[float], elements: Sequence[int], keep: Sequence[int], gathered: bool) -> Any:
    """Of exactly known probabilities."""
    first = int(np.argmax(chances))
    rest = max(p for c, p in enumerate(chances) if c != first)
    return ModalCertificate(
        torch.tensor([first]), torch.tensor([chances[first]], dtype=torch.float64),
        torch.tensor([rest], dtype=torch.float64),
        tuple(elements), tuple(keep), (gathered,) * len(elements), 0, 0, True,
    )  # fmt: skip


def chances(x: Inputs, keep: Sequence[int], classes: int, says: Callable[[Any], int], places: bool) -> list[Fraction]:
    """The probability of each class, by all subsets; with `places` f sees where the kept elements are."""
    parts = [
        [tuple((i, x_m[i]) if places else x_m[i] for i in s) for s in itertools.combinations(range(len(x_m)), k)]
        for x_m, k in zip(x, keep, strict=True)
    ]
    counts = Counter(says(seen) for seen in itertools.product(*parts))
    return [Fraction(counts[c], math.prod(map(len, parts))) for c in range(classes)]


def winner(p: list[Fraction]) -> int | None:
    """The class of a smoothed classifier, None for a draw."""
    best = max(p)
    return p.index(best) if p.count(best) == 1 else None


def irregular(classes: int, seed: int, lean: int) -> Callable[[Any], int]:
    """A base classifier without any regularity that says class 0 more often the more it leans."""
    known = dict[Any, int]()
    generator = np.random.default_rng(seed)

    def says(seen: Any) -> int:
        if seen not in known:
            known[seen] = max(0, int(generator.integers(-lean, classes)))
        return known[seen]

    return says


def modified(x: tuple[int, ...], r: int) -> Iterator[tuple[int, ...]]:
    for y in itertools.product((0, 1), repeat=len(x)):
        if sum(a != b for a, b in zip(x, y, strict=True)) <= r:
            yield y


def deleted(x: tuple[int, ...], r: int) -> Iterator[tuple[int, ...]]:
    for kept in range(len(x) - r, len(x) + 1):
        yield from itertools.combinations(x, kept)


def added(x: tuple[int, ...], r: int) -> Iterator[tuple[int, ...]]:
    for more in range(r + 1):
        for y in itertools.product((0, 1), repeat=len(x) + more):
            if x in deleted(y, more):
                yield y


WAYS = {"modify": modified, "add": added, "delete": deleted}


@pytest.mark.parametrize(
    ("attack", "keep"),
    [
        (("modify", "modify"), (1, 1)), (("modify", "modify"), (2, 1)), (("add", "add"), (2, 1)),
        (("delete", "delete"), (1, 1)), (("add", "delete"), (2, 1)), (("modify", "add"), (1, 2)),
    ],
)  # fmt: skip
def test_no_attack_changes_what_is_certified(attack: tuple[str, str], keep: tuple[int, int]) -> None:
    """All attacks on random inputs of 5 and 3 elements, with exact probabilities."""
    generator = np.random.default_rng(0)
    certified = 0
    places = set(attack) == {"modify"}
    for seed in range(12):
        x: Inputs = tuple(tuple(int(v) for v in generator.integers(0, 2, n)) for n in (5, 3))
        says = irregular(3, seed, (40, 12, 3)[seed % 3])
        p = chances(x, keep, 3, says, places)
        if winner(p) is None:
            continue
        found = certificate([float(v) for v in p], (5, 3), keep, not places)
        most = tuple(min(2, n - k) if a == "delete" else 2 for n, k, a in zip((5, 3), keep, attack, strict=True))
        region = found.region(most, attack)[0]
        for r in itertools.product(*(range(m + 1) for m in most)):
            assert found.holds(r, attack)[0] == region[r]
            if region[r]:
                certified += r != (0, 0)
                for y in itertools.product(*(WAYS[a](x_m, r_m) for a, x_m, r_m in zip(attack, x, r, strict=True))):
                    assert winner(chances(y, keep, 3, says, places)) == winner(p)
    assert certified >= 5


def exact_gap(n: Sequence[int], k: Sequence[int], r: Sequence[int], attack: Sequence[str]) -> Fraction:
    change = {"modify": 0, "add": 1, "delete": -1}
    after = [a + b * change[kind] for a, b, kind in zip(n, r, attack, strict=True)]
    both = [a - b * (kind != "add") for a, b, kind in zip(n, r, attack, strict=True)]
    total, then, shared = (math.prod(math.comb(a, b) for a, b in zip(m, k, strict=True)) for m in (n, after, both))
    return 1 + Fraction(then, total) - 2 * Fraction(shared, total)


@pytest.mark.parametrize(
    ("attack", "touched"), [("modify", lambda s: 0 in s), ("add", lambda s: 5 in s), ("delete", lambda s: 0 in s)]
)
def test_the_condition_is_tight(attack: str, touched: Callable[[Any], bool]) -> None:
    """For every number of votes there is a classifier that an attack defeats just where the condition does not hold."""
    before = list(itertools.combinations(range(5), 2))
    free = [s for s in before if not touched(s)]
    for b in range(5):
        against = set(free[:b])
        a = len(before) - b
        if attack == "modify":  # every subset with element 0 says class 1 now
            then = [(s in against) or touched(s) for s in before]
        elif attack == "add":
            then = [(s in against) or touched(s) for s in itertools.combinations(range(6), 2)]
        else:
            then = [s in against for s in free]
        survives = then.count(False) > then.count(True)
        found = certificate([a / 10, b / 10], (5,), (2,), True)
        assert bool(found.holds((1,), attack)[0]) == survives, b


@pytest.mark.parametrize(
    ("n", "k", "most", "attack"),
    [
        ((5, 3), (2, 1), (3, 2), ("modify", "modify")), ((9, 4), (3, 2), (4, 2), ("add", "delete")),
        ((40,), (7,), (33,), ("delete",)), ((1000, 300), (20, 7), (6, 5), ("modify", "add")),
        ((100_000,), (1500,), (40,), ("modify",)), ((4,), (4,), (3,), ("add",)),
        ((30, 20), (5, 5), (5, 5), ("add", "add")),
    ],
)  # fmt: skip
def test_ratios_against_whole_numbers(n: Any, k: Any, most: Any, attack: Any) -> None:
    found = gaps(n, k, most, attack)
    assert found.shape == tuple(m + 1 for m in most)
    for r in itertools.product(*(range(m + 1) for m in most)):
        smaller = itertools.product(*(range(m + 1) for m in r))
        exact = max(exact_gap(n, k, s, attack) for s in smaller)  # at most so many
        assert Fraction(float(found[r])) > exact
        assert float(found[r]) < float(exact) * (1 + 1e-10) + 1e-11
    for axis in range(len(n)):
        assert (np.diff(found, axis=axis) >= 0).all()


def test_many_elements() -> None:
    """Products of a hundred thousand factors, within their allowance; what log-gamma would lose is ten times that."""
    n, k, r = 465_750, 3, 200_000
    exact = Fraction(math.comb(n - r, k), math.comb(n, k))
    assert abs(Fraction(missing(n, k, r)[-1]) / exact - 1) < (r + 1) * 2.0**-51
    assert gaps((n,), (3000,), (r,), ("modify",))[-1] == pytest.approx(2)  # next to nothing is left: underflow
    assert gaps((10,), (4,), (8,), ("delete",))[7:].tolist() == [math.inf, math.inf]
    assert gaps((10,), (4,), (10,), ("modify",))[7:] == pytest.approx(2)


@pytest.mark.parametrize("p", [(0.7, 0.3), (0.6, 0.25, 0.15), (0.4, 0.35, 0.25), (0.5, 0.1, 0.1, 0.1, 0.1, 0.1)])
@pytest.mark.parametrize("alpha", [0.2, 0.05])
def test_bounds_fail_as_seldom_as_promised(p: tuple[float, ...], alpha: float) -> None:
    """By all outcomes of few votes: alpha is split in two, whatever the number of classes."""
    n = 24 if len(p) < 4 else 10
    first, rivals = p[0], max(p[1:])
    wrong = total = 0.0
    for votes in itertools.product(range(n + 1), repeat=len(p) - 1):
        if sum(votes) > n:
            continue
        votes = (*votes, n - sum(votes))
        lower, upper = bounds(np.array([votes[0]]), np.array([max(votes[1:])]), n, alpha, (10**6,), (1,))
        chance = stats.multinomial.pmf(votes, n, p)
        total += chance
        wrong += chance * float(lower[0] > first or upper[0] < rivals)
    assert total == pytest.approx(1)
    assert 0 < wrong <= alpha


def test_probabilities_of_few_subsets_are_whole_numbers_of_them() -> None:
    lower, upper = bounds(np.array([960]), np.array([20]), 1000, 0.01, (5, 3), (2, 1))
    plain, above = bounds(np.array([960]), np.array([20]), 1000, 0.01, (500, 300), (2, 1))
    assert plain[0] < lower[0] == 29 / 30
    assert above[0] > upper[0] == 1 / 30
    exact, _ = bounds(np.array([1000]), np.array([0]), 1000, 0.01, (1,), (1,))
    assert exact[0] == 1


def test_equal_words_are_allowed_for() -> None:
    few, many = (bounds(np.array([900]), np.array([50]), 1000, 0.01, (n,), (3,)) for n in (1000, 2**30))
    chance = 2.0**60 / 2 / 2**64  # of two equal words among so many elements, at most
    assert many[0] == pytest.approx(few[0] - chance)
    assert many[1] == pytest.approx(few[1] + chance)


class Kept(nn.Module):
    """Says whether enough of what it sees is 1: of the kept elements of two modalities."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        score = a.flatten(1).double().sum(1) + b.flatten(1).double().sum(1)
        return torch.stack([score - 2.5, 2.5 - score], 1)


PAIR = (Modality(3), Modality(2, (2, 3)))


def test_votes_are_those_of_uniform_subsets() -> None:
    a = torch.tensor([[1, 1, 0, 1, 1, 0.0], [1, 0, 0, 0, 1, 0]])
    b = torch.tensor([[[[1, 0, 1.0], [1, 1, 0]]], [[[1, 1, 0.0], [0, 0, 0]]]])
    n = 20_000
    votes = ModalSmooth(Kept(), 2, PAIR).votes((a, b), n, 7)
    for row in range(2):
        inputs = tuple(tuple(int(v) for v in t[row].flatten()) for t in (a, b))
        p = chances(inputs, (3, 2), 2, lambda seen: int(sum(map(sum, seen)) < 2.5), False)
        assert abs(int(votes[row, 0]) - n * float(p[0])) < 4.5 * math.sqrt(n * float(p[0] * p[1]))
        assert int(votes[row].sum()) == n


def test_subsets_are_uniform_and_a_function_of_their_number() -> None:
    smooth = ModalSmooth(Kept(), 2, PAIR)
    x = (torch.arange(1.0, 6).repeat(3, 1), torch.arange(1.0, 5).view(1, 1, 2, 2).repeat(3, 1, 1, 1))
    index, slots = torch.tensor([5, 2**32 - 1, 0]), torch.arange(6000)
    a, b = smooth.copies(x, slots % 3, slots, index, 2**63)
    assert a.shape == (6000, 5)
    assert b.shape == (6000, 1, 2, 2)
    for part, size, seen in ((a, 3, 10), (b, 2, 6)):
        assert ((part != 0).flatten(1).sum(1) == size).all()
        _, counts = torch.unique(part.flatten(1), dim=0, return_counts=True)
        assert len(counts) == seen
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    pairs = (a[:, 0] != 0).double() - 0.6, (b.flatten(1)[:, 0] != 0).double() - 0.5
    assert abs(float((pairs[0] * pairs[1]).mean())) < 4.5 * 0.25 / math.sqrt(6000)
    again = smooth.copies([t[:1] for t in x], torch.zeros(2).long(), torch.tensor([5, 2]), index[2:], 2**63)
    assert torch.equal(again[0], a[[5, 2]])
    assert torch.equal(again[1], b[[5, 2]])
    parts = [smooth.votes(x, 40, 3, index, first) for first in (0, 40)]
    assert torch.equal(sum(parts), smooth.votes(x, 80, 3, index))
    assert torch.equal(smooth.votes([t[1:2] for t in x], 80, 3, index[1:2]), smooth.votes(x, 80, 3, index)[1:2])


def test_what_is_gathered_has_no_places() -> None:
    frames = torch.arange(24.0).view(1, 6, 4)
    seen = Modality(3, form="gather").subsets(frames, torch.tensor([[5, 0, 2]]))
    assert torch.equal(seen, frames[:, [0, 2, 5]])
    pixels = torch.arange(12.0).view(1, 2, 2, 3)
    seen = Modality(2, (2, 3), "gather").subsets(pixels, torch.tensor([[4, 1]]))
    assert seen.tolist() == [[[1, 7], [4, 10]]]
    blank = Modality(2, (2, 3), fill=-1.0).subsets(pixels, torch.tensor([[4, 1]]))
    assert blank.tolist() == [[[[-1, 1, -1], [-1, 4, -1]], [[-1, 7, -1], [-1, 10, -1]]]]
    words = Modality(1).subsets(torch.tensor([[7, 8, 9]]), torch.tensor([[2]]))
    assert words.tolist() == [[0, 0, 9]]
    assert words.dtype == torch.int64


def test_certificates_of_a_network() -> None:
    """Bounds around the exact probabilities, and a region that grows with the votes."""
    a, b = torch.ones(2, 8), torch.ones(2, 1, 2, 3)
    a[1, :5] = 0
    smooth = ModalSmooth(Kept(), 2, PAIR, seed=1)
    found = smooth.certify((a, b), 50, 4000)
    assert found.prediction.tolist() == [0, 0]
    assert found.samples == 4050
    assert not found.fresh
    assert (found.elements, found.keep) == ((8, 6), (3, 2))
    p = 1 - math.comb(5, 3) / math.comb(8, 3)  # of at least one 1 among a's
    assert found.lower[1] <= p
    assert found.upper[1] >= 1 - p
    assert found.lower[1] > p - 0.04
    region = found.region((3, 3))
    assert region.shape == (2, 4, 4)
    assert region[:, 0, 0].all()
    assert (region[1] <= region[0]).all()
    assert region[0, 1, 0]
    assert not region[0, 3, 3]
    assert torch.equal(found.holds((1, 0)), region[:, 1, 0])
    again = ModalSmooth(Kept(), 2, PAIR, seed=1).certify((a[1:], b[1:]), 50, 4000, index=torch.tensor([1]))
    assert again.lower[0] == found.lower[1]
    fresh = [ModalSmooth(Kept(), 2, PAIR).certify((a, b), 5, 20) for _ in range(2)]
    assert fresh[0].fresh
    assert fresh[0].seed != fresh[1].seed
    assert smooth.certify((a[:0], b[:0]), 5, 20).region((1, 1)).shape == (0, 2, 2)


def test_false_bounds_are_rare() -> None:
    """2,000 certificates at an alpha of a tenth, of a probability that is known."""
    a, b = torch.tensor([[1.0, 1, 1, 0, 0, 0, 0]]).repeat(2000, 1), torch.zeros(2000, 1, 1, 2)
    found = ModalSmooth(Kept(), 2, (Modality(4), Modality(1, (2, 3))), seed=4).certify((a, b), 20, 300, alpha=0.1)
    p = math.comb(4, 1) / math.comb(7, 4)  # all three 1s are kept
    first = found.prediction == 1
    wrong = int(((found.lower > 1 - p) | (found.upper < p))[first].sum())
    assert first.all()
    assert wrong <= stats.binom.isf(1e-4, 2000, 0.1)


def test_nan_has_no_vote_and_models_are_left_alone() -> None:
    class Broken(Kept):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return super().forward(a, b) * torch.nan

    model = Broken().train()
    state = torch.random.get_rng_state()
    found = ModalSmooth(model, 2, PAIR).certify((torch.ones(2, 8), torch.ones(2, 1, 2, 3)), 10, 100)
    assert found.prediction.tolist() == [-1, -1]
    assert (found.lower == 0).all()
    assert not found.holds((0, 0)).any()
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)


class Centred(Kept):
    """Says something that depends on the whole batch."""

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = super().forward(*inputs)
        return logits * len(logits)


def smooth(**options: Any) -> ModalSmooth:
    return ModalSmooth(Kept(), 2, PAIR, **options)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda a, b: Modality(0), "keep must be an integer >= 1, got 0"),
        (lambda a, b: Modality(2, (3, 2)), "dims must be increasing dimensions >= 1, got \\(3, 2\\)"),
        (lambda a, b: Modality(2, ()), "dims must be increasing dimensions >= 1, got \\(\\)"),
        (lambda a, b: Modality(2, form="mask"), "form must be 'blank' or 'gather', got 'mask'"),
        (lambda a, b: ModalSmooth(len, 2, PAIR), "model must be a torch.nn.Module"),
        (lambda a, b: ModalSmooth(Kept(), 0, PAIR), "num_classes must be an integer >= 1, got 0"),
        (lambda a, b: ModalSmooth(Kept(), 2, (3, 2)), "modalities must be a Modality for each input"),
        (lambda a, b: smooth(seed=-1), "seed must be None or in 0 .. 2\\^64 - 1, got -1"),
        (lambda a, b: smooth().certify((a, b), alpha=0.0), "alpha must be between 0 and 1, got 0"),
        (lambda a, b: smooth().certify((a, b), n0=0), "n0 must be an integer >= 1, got 0"),
        (lambda a, b: smooth().certify((a, b), n=2.0), "n must be an integer >= 1, got 2"),
        (lambda a, b: smooth().certify((a,)), "inputs must be a list of 2 tensors, got 1"),
        (lambda a, b: smooth().certify(a), "inputs must be a list of 2 tensors, got one tensor"),
        (lambda a, b: smooth().certify((a, a)), "dims \\(2, 3\\) must be those of inputs, got shape \\(2, 8\\)"),
        (lambda a, b: smooth().certify((a[:1], b)), "inputs must have one batch size and device"),
        (lambda a, b: smooth().certify((a / 0, b)), "inputs must be finite"),
        (lambda a, b: smooth().certify((a[:, :2], b)), "keep must be at most the modality's 2 elements, got 3"),
        (lambda a, b: smooth().certify((a.half(), b)), "inputs must have dtype float32 or float64 or int64"),
        (lambda a, b: smooth().certify((a, b), index=torch.zeros(3).long()), "index must have shape \\(2,\\)"),
        (lambda a, b: smooth().certify((a, b), index=torch.tensor([0, 2**32])), "index must be in 0 .. 2\\^32 - 1"),
        (lambda a, b: smooth().certify((a, b), n=5), "n = 5 samples cannot certify anything at alpha = 0.001"),
        (lambda a, b: ModalSmooth(Centred(), 2, PAIR).certify((a, b)), "model must give a sample the same logits"),
        (lambda a, b: smooth().votes((a, b), 2, 0, first=2**32), "copies must be numbered in 0 .. 2\\^32 - 1"),
        (lambda a, b: ModalSmooth(Kept(), 3, PAIR).certify((a, b)), "num_classes must be the model's, 2, got 3"),
        (lambda a, b: smooth().certify((a, b)).holds((1,)), "most must be an integer >= 0 for each of 2 modalities"),
        (lambda a, b: smooth().certify((a, b)).holds((1, -1)), "most must be an integer >= 0"),
        (lambda a, b: smooth().certify((a, b)).holds((1, 7)), "most must be at most the modality's 6 elements, got 7"),
        (lambda a, b: smooth().certify((a, b)).holds((1, 1), "add"), "'add' needs modalities of form 'gather'"),
        (lambda a, b: smooth().certify((a, b)).holds((1, 1), "swap"), "attack must be modify, add, delete, or one"),
        (lambda a, b: smooth().certify((a, b)).holds((1, 1), ("add",)), "attack must be modify, add, delete, or one"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call: Any, says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        call(torch.ones(2, 8), torch.ones(2, 1, 2, 3))
