"""The commands of `jaxmem`, one dataclass each: its fields are the options, `run(output)` works."""

import functools
import importlib
import operator
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from .output import Output as Output

# The class of each command, in the module of its name.
CLASSES = {
    "demo": "Demo",
    "inspect": "Inspect",
    "fit": "Fit",
    "eval": "Eval",
    "card": "MakeCard",
    "plan": "Plan",
    "train": "Train",
    "generate": "Generate",
    "export": "Export",
}


def parsed(args: list[str], *, description: str) -> Any:
    """The command that a line asks for. If it is named first, no other is imported.

    Raises:
        SystemExit: the line is wrong (2), or asks for help (0).
    """
    flags = (tyro.conf.FlagCreatePairsOff,)
    if args and args[0] in CLASSES:
        return tyro.cli(_class(args[0]), prog=f"jaxmem {args[0]}", args=args[1:], config=flags)
    every = (Annotated[_class(name), subcommand(name)] for name in CLASSES)
    command = functools.reduce(operator.or_, every)
    return tyro.cli(command, prog="jaxmem", description=description, args=args, config=flags)


def _class(name: str) -> type:
    return getattr(importlib.import_module(f".{name}", __name__), CLASSES[name])
