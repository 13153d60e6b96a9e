"""The entry point: parses the command line, and turns a user's mistake into one line and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import fastrobust

from . import attack, certify, demo, train
from .arguments import Parser
from .errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fastrobust ARGS`` and return the exit code.

    0: done; 1: it ran and the outcome is bad (a floor missed, a broken installation, a diverged training);
    2: the command, a file or an optional package is wrong; 130: interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["doctor"]:
            from .doctor import main as doctor  # imports every op: only when asked

            return int(doctor(arguments[1:]))
        args = parser().parse_args(arguments)
        return int(args.run(args))
    except SystemExit as exit:  # argparse: --help, --version and errors
        return int(exit.code or 0)
    except UserError as error:
        print(f"fastrobust {arguments[0]}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues a training where it stopped", file=sys.stderr)
        return 130


def parser() -> Parser:
    """The parser of all commands."""
    root = Parser(prog="fastrobust", description="Attack, harden and judge neural networks.")
    root.add_argument("--version", action="version", version=f"fastrobust {fastrobust.__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (demo, train, attack, certify):
        module.add_parser(commands)
    commands.add_parser("doctor", help="say what is installed, which kernels run, and check every op")
    return root
