"""``fastrobust train``: train one network; the same command continues a run that was killed."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fastrobust import data, evaluation, models
from fastrobust.evaluation import rounds_report
from fastrobust.evaluation.environment import environment
from fastrobust.evaluation.shares import percent
from fastrobust.training import CheckpointError, Round, TrainConfig, TrainResult, Verified, fit, train_verify
from fastrobust.training.config import CERTIFIED, SMOOTHED

from . import model_file
from .arguments import DATA_HELP, count, number, whole
from .errors import UserError, describe, user_input
from .model_file import Architecture

EXAMPLES = """examples:
  fastrobust train --data mnist5k --objective pgd --eps 0.2 --epochs 8 --out runs/pgd
  fastrobust train --data images:photos --model preact_resnet18 --objective trades --eps 8/255 --epochs 100 \\
      --schedule piecewise --milestones 75 90 --augment crop_flip --out runs/trades
  fastrobust train --data mnist5k --objective ibp --eps 0.1 --epochs 30 --batch-size 64 --optimizer adamw --lr 0.001 \\
      --weight-decay 0 --eps-warmup 15 --eps-growth smoothed --regularizer 0.5 --init ibp --val-bounds ibp \\
      --out runs/certified
  fastrobust train --data mnist5k --objective consistency --sigma 0.5 --norm L2 --eps 1 --epochs 20 --optimizer adamw \\
      --lr 0.002 --weight-decay 0 --val-bounds smoothing --out runs/consistency
  fastrobust train --data mnist5k --classifier runs/plain/model.pt --objective stability --sigma 0.5 \\
      --optimizer adamw --lr 0.001 --weight-decay 0 --out runs/denoised
  torchrun --nproc_per_node 2 -m fastrobust train --data digits --model mlp --out runs/two
"""
# The fields of TrainConfig that are options: name, type (a tuple: the choices), what --help says.
SETTINGS: dict[str, tuple[tuple[str, Any, str], ...]] = {
    "objective and attack": (
        ("objective", ("standard", "pgd", "trades", *CERTIFIED, *SMOOTHED), "what training minimises"),
        ("norm", ("Linf", "L2", "L1"), "norm of the attack"),
        ("eps", number, "radius of the attack, in the units of the input (0 to 1)"),
        ("alpha", number, "step size of the attack; 2.5 eps / steps when not given, 2 eps / steps for smoothing"),
        ("steps", count, "steps of the attack"),
        ("eps_start", number, "epoch at which eps begins to grow from 0"),
        ("eps_warmup", number, "epochs over which it grows"),
        ("eps_growth", ("linear", "smoothed"), "how it grows"),
        ("eps_factor", number, "training's radius as a multiple of eps"),
        ("attack_mode", ("eval", "train"), "the network's mode while it is attacked"),
        ("beta", number, "weight of the TRADES divergence"),
    ),
    "certified training": (
        ("kappa", number, "final weight of the clean loss (ibp, crown_ibp)"),
        ("loss_fusion", bool, "bound the loss itself, with one linear function a sample (crown_ibp)"),
        ("subset", number, "radius of the boxes as a share of eps (sabr)"),
        ("mixture", number, "weight of the bound's loss (mtl_ibp)"),
        ("regularizer", number, "weight of the regularisers of Shi et al. while eps grows; they use 0.5"),
        ("init", ("model", "ibp"), "initial weights: the architecture's own, or those of Shi et al."),
        (
            "val_bounds",
            ("none", "ibp", "crown_ibp", "crown", "smoothing"),
            "what certifies the validation samples: bounds, or the smoothed network's votes",
        ),
    ),
    "training for smoothing": (
        ("sigma", number, "standard deviation of the noise, in the units of the input; 0 for none"),
        ("draws", count, "noisy copies of a sample in a step; what the objective's authors use when not given"),
        ("weight", number, "weight of the term of macer, consistency or smoothmix; 12, 10 and 5 when not given"),
        ("margin", number, "where MACER's hinge ends (gamma)"),
        ("inverse_temperature", number, "of MACER's probabilities (beta)"),
        ("entropy", number, "weight of Consistency's entropy (eta)"),
        ("inner", ("pgd", "ddn"), "attack of smooth_adv"),
        ("val_draws", count, "noisy copies of a validation sample"),
        ("val_samples", count, "most copies of a validation sample for --val-bounds smoothing"),
    ),
    "optimisation": (
        ("epochs", count, "passes over the training data"),
        ("batch_size", count, "samples per step, over all processes"),
        ("optimizer", ("sgd", "adamw"), "optimizer"),
        ("lr", number, "highest learning rate"),
        ("schedule", ("constant", "piecewise", "cosine", "cyclic"), "learning-rate schedule"),
        ("milestones", [number], "epochs where a piecewise rate falls"),
        ("gamma", number, "factor at each milestone"),
        ("momentum", number, "momentum of SGD"),
        ("nesterov", bool, "Nesterov momentum"),
        ("weight_decay", number, "weight decay"),
        ("clip_norm", number, "largest gradient norm; no clipping when not given"),
        ("ema_decay", number, "decay of the weight average per step, 0 for none"),
        ("augment", ("none", "crop_flip"), "data augmentation"),
        ("last_batch", ("keep", "drop"), "what to do with a partial last batch"),
        ("seed", whole, "seed of the initial weights and of every draw"),
    ),
    "validation and checkpoints": (
        ("val_steps", whole, "PGD steps of the validation attack, 0 for clean accuracy only"),
        ("val_every", count, "epochs between validations"),
        ("patience", count, "stop after that many validations without a better one"),
        ("checkpoint_every", whole, "steps between checkpoints within an epoch, 0 for none"),
    ),
}
DEFAULTS = TrainConfig(schedule="cyclic", checkpoint_every=100)


def add_parser(commands: Any) -> None:
    """Add the command to the parser of all commands."""
    parser = commands.add_parser(
        "train",
        help="train a network: standard, adversarial or certified",
        description="Train a network. The same command continues a run that was killed;\n"
        "a finished one is only read back.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument_group("run").add_argument
    add("--data", default="mnist5k", metavar="NAME", help=DATA_HELP)
    add("--model", default="small_cnn", choices=tuple(models.MODELS), help="architecture")
    add("--width", type=count, metavar="N", help="channels of the first layer; the usual one when not given")
    add("--classifier", type=Path, metavar="FILE",
        help="a model.pt: freeze it and train a denoiser before it, instead of a new --model")  # fmt: skip
    add("--denoiser-width", type=count, default=32, metavar="N", help="channels of the denoiser (DnCNN)")
    add("--denoiser-depth", type=count, default=8, metavar="N", help="its convolutions; the paper's has 17 of width 64")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the run lives")
    add("--fresh", action="store_true", help="start over and discard the folder's run")
    add("--device", default="cpu", help="cpu or cuda")
    add("--verify-rounds", type=count, default=1, metavar="N",
        help="train, verify and train on with weight on real failures, so many times at most")  # fmt: skip
    for title, settings in SETTINGS.items():
        group = parser.add_argument_group(title)
        for name, kind, text in settings:
            _add_setting(group, name, kind, text)
    parser.set_defaults(run=run)


def _add_setting(group: argparse._ArgumentGroup, name: str, kind: Any, text: str) -> None:
    flag, default = "--" + name.replace("_", "-"), getattr(DEFAULTS, name)
    if isinstance(kind, tuple):
        group.add_argument(flag, choices=kind, default=default, help=text)
    elif isinstance(kind, list):
        group.add_argument(flag, type=kind[0], nargs="+", default=default, metavar="X", help=text)
    elif kind is bool:
        group.add_argument(flag, action="store_true", help=text)
    else:
        shown = "8/255" if name == "eps" else default
        metavar = "X" if kind is number else "N"
        group.add_argument(flag, type=kind, default=shown, metavar=metavar, help=text)


def run(args: argparse.Namespace) -> int:
    """Train, keep the best weights as FOLDER/model.pt, and say how good they are."""
    first = int(os.environ.get("RANK", "0")) == 0
    with user_input():
        names = [name for settings in SETTINGS.values() for name, *_ in settings]
        config = replace(DEFAULTS, **{name: getattr(args, name) for name in names})
        device = torch.device(args.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch sees no CUDA device here")
        splits = data.load(args.data)
        architecture, model = network(splits.train, config, args)
        args.out.mkdir(parents=True, exist_ok=True)
    if first:
        parts = f"{len(splits.train)} training, {len(splits.val)} validation, {len(splits.test)} test"
        print(f"{args.data}: {parts} samples; {architecture.name}, objective {config.objective}; run in {args.out}")
    try:
        result = train(model, splits, config, args, device)
    except FloatingPointError as error:
        print(f"fastrobust train: {error}", file=sys.stderr)
        return 1
    if first:
        path = args.out / "model.pt"
        model_file.save(path, architecture, args.data, config, result.best)
        model.to(device)
        test = splits.test
        clean = evaluation.accuracy(model, test.images.to(device), test.labels.to(device))
        best, last = result.best, result.last
        more = "" if best.robust is None else f", {percent(best.robust)} under attack"
        more += "" if best.noisy is None else f", {percent(best.noisy)} under noise"
        more += "" if best.certified is None else f", {percent(best.certified)} certified"
        print(f"best epoch {best.epoch} of {last.epoch}: validation {percent(best.clean)} clean{more}")
        print(f"test: {percent(clean)} clean\n{path}")
        if config.sigma > 0:
            print(f"next: fastrobust certify {path} --method smoothing --sigma {config.sigma:g}")
        else:
            command = "attack" if config.objective not in CERTIFIED else "certify"
            print(f"next: fastrobust {command} {path} --eps {config.eps:g} --norm {config.norm}")
    return 0


def network(train: data.Dataset, config: TrainConfig, args: argparse.Namespace) -> tuple[Architecture, torch.nn.Module]:
    """A new network, or a new denoiser before a trained one."""
    if args.classifier is None:
        architecture = Architecture(args.model, train.in_shape, train.classes, args.width)
        return architecture, architecture.build(config.seed)
    classifier, saved, _ = model_file.load(args.classifier)
    if saved.denoiser is not None:
        raise UserError(f"--classifier: {args.classifier} holds a denoiser already")
    if (saved.in_shape, saved.classes) != (train.in_shape, train.classes):
        raise UserError(f"--classifier: {args.classifier} is for inputs {saved.in_shape} and {saved.classes} classes, "
                        f"{args.data} has {train.in_shape} and {train.classes}")  # fmt: skip
    if len(saved.in_shape) != 3:
        raise UserError(f"--classifier: the denoiser needs images (C, H, W), {args.data} has {saved.in_shape}")
    architecture = replace(saved, denoiser=(args.denoiser_width, args.denoiser_depth))
    model = architecture.build(config.seed)
    model.get_submodule("classifier").load_state_dict(classifier.state_dict())
    return architecture, model


def train(
    model: torch.nn.Module, splits: data.Splits, config: TrainConfig, args: argparse.Namespace, device: torch.device
) -> TrainResult:
    """`fit`, or rounds of it, with the errors that a user can mend as UserError."""
    bar = sys.stderr.isatty()
    try:
        if args.verify_rounds == 1:
            return fit(model, splits, config, args.out, not args.fresh, progress=bar, device=device)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("--verify-rounds: rounds run in one process, not under torchrun")
        model.to(device)
        found = train_verify(
            model, splits, config, args.out, args.verify_rounds, progress=show, bar=bar, resume=not args.fresh
        )  # fmt: skip
        report(found, config, args)
        return found.training
    except (CheckpointError, OSError) as error:
        raise UserError(_in_options(error)) from error
    except ValueError as error:
        if not str(error).startswith("fit:"):
            raise
        raise UserError(_in_options(error)) from error


def show(found: Round) -> None:
    """A line on each round."""
    print(f"round {found.number}: {percent(found.certified)} certified, {percent(found.real)} real failures, "
          f"{percent(found.unproven)} unproven on the validation sample; {found.repeated} training samples get more "
          "weight", flush=True)  # fmt: skip


def report(found: Verified, config: TrainConfig, args: argparse.Namespace) -> None:
    """Say how the rounds ended, and write it beside the weights."""
    results = {
        "schema": rounds_report.SCHEMA,
        "model": {"path": str(args.out / "model.pt"), "architecture": args.model},
        "data": args.data,
        "samples": found.samples,
        "settings": {"split": "val", **asdict(config)},
        "rounds": [asdict(r) for r in found.rounds],
        "best": found.best,
        "why": found.why,
        "advice": [asdict(a) for a in found.advice],
        "environment": environment(),
    }
    print("\n".join(rounds_report.remarks(results)))
    for missing in rounds_report.write(results, args.out):
        print(f"fastrobust train: {missing}", file=sys.stderr)


def _in_options(error: Exception) -> str:
    return describe(error).removeprefix("fit: ").replace("resume=False", "--fresh")
