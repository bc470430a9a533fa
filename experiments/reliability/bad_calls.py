r"""Every public function and class called with one wrong argument at a time: is the answer clear?

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \
        python experiments/reliability/bad_calls.py --only "Int|encode"

`right_calls` has a right call of each public name. One argument after the other is replaced by a
value of another kind, or by one of the right kind that cannot be right: a negative count, NaN, a
path that is not there. The answer is one of the classes of `outcomes.py`; "wrong" is no error. A
value that the annotation of the argument admits is left out, if it can be right. `MAY` lists the
arguments whose annotation is narrower or wider than what the documentation says.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import math
import operator
import pathlib
import re
import tempfile
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from outcomes import BAD, Outcome, once, outcome
from right_calls import right_calls

import jaxmem as jm

SECONDS = 60  # for one call, on a machine that does other work too
NAMESPACES = (
    "solvers",
    "layouts",
    "interop",
    "models",
    "optimizers",
    "adapters",
    "train",
    "data",
    "calibration",
    "evaluation",
    "training",
    "pages",
    "serving",
)

# What functions return is only read, or has no constructor that users call.
NOT_CALLED = {
    "Allocations", "Breakdown", "Card", "Codec", "CompileError", "Donations", "Encoded",
    "Evaluation", "Fitted", "Measured", "Memory", "Moments", "Native", "Once", "Placement",
    "Planned", "Report", "ReuseStats", "RungBytes", "Speeds", "Use",
    "PrefixHit", "PrefixMoves", "PrefixStats",
    "adapters.Merged", "adapters.RankState",
    "evaluation.ConfidenceCalibration", "evaluation.Flips", "evaluation.GroupGaps",
    "evaluation.Membership", "evaluation.TaskScores", "data.Packing", "models.Model",
    "pages.PagePool", "pages.PageStore", "pages.Usage", "serving.Answer", "serving.Piece",
    "serving.Refusal",
    "train.Anchor", "train.ScaledState", "training.ScalarWriter", "training.Trained",
}  # fmt: skip


class Nameless:
    """A value of no kind that any function takes."""

    def __repr__(self) -> str:
        return "Nameless()"


WRONG = {
    "none": None,
    "int": 3,
    "negative": -1,
    "nan": math.nan,
    "text": "no such name",
    "list": [Nameless()],
    "dict": {"no/such/path": Nameless()},
    "object": Nameless(),
    "function": lambda: None,
    "array": np.ones((2, 3), np.float32),
}

# Arguments that also take values of these kinds; "*" is every function. A str stands for a regex.
MAY = {
    ("*", "params|tree|x|enc|first|second|state|updates|target|found|pairs"): {"dict", "list",
                                                                               "array"},
    ("*", "seed|step|begin|axis|to"): {"negative"},
    ("*", "x|target|found|student|teacher|labels|alpha|temperature|ids"): {"array"},
    ("is_encoded", ".*"): set(WRONG),
    ("evaluation.Task", "prompt|delimiter|until"): {"text"},
    ("(train\\.)?(squared|relative)", ".*"): {"int", "negative", "nan", "array"},
    ("Basis|Shared|QERA|Recipe|adapters.merge", "codec|factors|encoding"): {"none"},
    ("Prune|least_worth|together", "score"): {"function"},
    ("Recipe|layouts.expert", "model|pattern"): {"text"},
    ("(one_f_one_b|pipelined|from_host|remat|lift|split|uses|stats|fisher|gradients|static)",
     "fn|loss|keep|policy"): {"function"},
    ("train.accumulate", "loss"): {"function"},
    ("save|interop.*|Reuse", "path"): {"text"},
    ("interop.to_peft", "base"): {"text"},
    ("card", "out"): {"text"},
    ("calibration.choose_texts", "texts"): {"array", "list"},  # what a user's function takes
    ("data.*", "path|files|folder"): {"text", "none"},
    ("data.(lzw_)?.*", "symbols|codes|lengths|mask|rows"): {"array"},
    ("data.write", "ids"): {"list"},
    ("evaluation.write_task|training.JsonLines|training.TensorBoard", "path|folder"): {"text"},
    ("training.distill|training.run", "texts|held_out"): {"none"},
    ("training.run", "out"): {"text"},
    ("train.squared_gradients", "batch"): {"array"},  # what a user's loss takes
    ("data.read", "chat|encode|separator"): {"function", "none", "text"},
    ("data.Documents", "mask"): {"none", "array"},
    ("models.(documents|packed_batches)", "files|folder|separator"): {"text", "none"},
    ("Prefixes", "of"): set(WRONG) - {"list", "dict", "object"},  # any tree may be hashed
    ("Prefixes", "path|salt"): {"text"},
    ("save", "tree"): {"int", "negative", "nan", "none", "text", "function"},
    ("decode|nbytes", "tree"): {"none"},  # a tree without leaves
    ("constrain", "x"): {"int", "negative", "nan"},
    # counted from the end
    ("allocations|donations|measured|memory", "donate_argnums"): {"negative"},
    ("evaluate|interop.*", "params"): {"none"},
    ("train.polynomial", "step"): {"array"},
    ("fit", "calibrate"): {"none"},
    # their first update sees the params, and refuses uses of another tree
    ("evolve|gradual|movement|rewind|rigl|straight_through|optimizers.*", "uses"): {"dict"},
    ("optimizers.*", "head|dense"): {"text"},  # regexes
    ("load", "shardings"): {"none", "function"},
    ("models.from_flax", "options"): {"dict"},  # `Sequential` takes any keyword argument
    ("models.chat", "max_new_tokens"): {"int"},  # one of its `options`, which have no annotation
    ("pages.*", "src|dst|row|tokens|count"): {"int", "negative"},  # `ok` says that it cannot be
    ("models.generate", "prompt"): {"text"},
    ("serving.GenerationRequest", "id|prompt|stop"): {"text"},
    ("serving.read_requests", "path"): {"text"},
    ("serving.read_requests", "defaults"): {"none"},
    ("models.chat(_prompt)?", "messages"): {"text"},
    ("models.chat(_prompt)?", "variables"): {"none", "dict"},
    ("models.BeamSearch", "length_penalty"): {"negative"},  # in favour of shorter texts
    ("distillation|divergence|train.kl_divergence", ".*"): {"int", "negative", "nan"},
}  # fmt: skip


def may_take(name: str, argument: str, kind: str) -> bool:
    return any(
        kind in kinds and (fn == "*" or re.fullmatch(fn, name)) and re.fullmatch(arg, argument)
        for (fn, arg), kinds in MAY.items()
    )


def admits(annotation: Any, value: Any) -> bool:  # noqa: PLR0911  one for each kind
    """Whether a value is of an annotated kind. `Any` admits nothing: `MAY` says what is right."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return value is None
    if origin in (types.UnionType, typing.Union):
        return any(admits(part, value) for part in parts)
    if origin is typing.Literal:
        return any(value is part for part in parts)
    if annotation is bool:
        return isinstance(value, bool)
    if annotation in (int, float):  # a number that may be right is never negative or NaN
        right = isinstance(value, int) or (annotation is float and isinstance(value, float))
        return right and not isinstance(value, bool) and value >= 0
    kind = origin or annotation
    if kind is Callable:
        return callable(value)
    if isinstance(value, str | list | dict) or not inspect.isclass(kind):
        return False  # the wrong texts, lists and dicts have names and members that are not there
    return kind in (Mapping, Collection, Iterable, Sequence) and isinstance(value, kind)


def answer(argument: str, value: Any, call: Callable[[], Any]) -> Outcome:
    """The outcome of one wrong call."""
    words = [argument.strip("*"), repr(value), str(value), type(value).__name__]
    if isinstance(value, dict):
        words += [*map(repr, value), *value]
    if isinstance(value, list):
        words += map(repr, value)

    def attempt() -> str:
        call()
        return "wrong"

    return outcome(attempt, words, SECONDS)


def call(fn: Callable, arguments: dict[str, Any]) -> Any:
    """Calls `fn`, and runs what is lazy in its result: a generator up to its first item."""
    named = {key: value for key, value in arguments.items() if key != "*args"}
    if "*args" in arguments:  # then what comes before is positional
        parameters = inspect.signature(fn).parameters.values()
        before = [
            x.name for x in itertools.takewhile(lambda x: x.kind != x.VAR_POSITIONAL, parameters)
        ]
        positional = [named.pop(key) for key in before]
        out = fn(*positional, *arguments["*args"], **named)
    else:
        out = fn(**named)
    return next(out) if inspect.isgenerator(out) else out


@dataclasses.dataclass(frozen=True)
class Answer:
    name: str
    argument: str
    value: str  # the kind of wrong value, a key of `WRONG`
    result: str
    text: str


def annotations(fn: Callable) -> dict[str, Any]:
    """The annotations of the arguments, as objects where they can be evaluated."""
    target = fn.__init__ if inspect.isclass(fn) else inspect.unwrap(fn)
    try:
        return typing.get_type_hints(target)
    except NameError:  # a name that only type checkers import
        return dict(target.__annotations__)


def probe(name: str, arguments: dict[str, Any]) -> list[Answer]:
    """The answers of one public function to every wrong argument."""
    fn = operator.attrgetter(name)(jm)
    call(fn, arguments)  # the right call works
    hints, answers = annotations(fn), []
    for argument in arguments:
        for kind, value in WRONG.items():
            if argument == "*args":
                continue
            if admits(hints.get(argument), value) or may_take(name, argument, kind):
                continue
            if argument in hints and value is None and hints[argument] is None:
                continue
            wrong = arguments | {argument: value}
            result, text = answer(argument, value, functools.partial(call, fn, wrong))
            answers.append(Answer(name, argument, kind, result, text))
    return answers


def in_a_folder(name: str, arguments: dict[str, Any]) -> list[Answer]:
    """`probe` in an empty folder, since some calls write to the wrong path that they get."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return probe(name, arguments)


def public_names() -> set[str]:
    """Every public name of the package that can be called; those of `jm.` have no space."""
    ours = lambda value: str(getattr(value, "__module__", "")).startswith("jaxmem")
    every = {name: getattr(jm, name) for name in dir(jm) if not name.startswith("_")}
    top = {name: value for name, value in every.items() if ours(value) and callable(value)}
    names = set(top)
    for space in NAMESPACES:
        for name, value in vars(getattr(jm, space)).items():
            known = any(value is other for other in top.values())
            if not name.startswith("_") and ours(value) and callable(value) and not known:
                names.add(f"{space}.{name}")
    return names - NOT_CALLED


def run(
    only: str = ".*",
    *,
    log: pathlib.Path | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Counts of the answers to wrong calls of the public names that a regex matches.

    Names whose answers stand in the file `log` are not called again.
    """
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        calls = right_calls(pathlib.Path(folder))
        if missing := public_names() - set(calls):
            raise ValueError(f"right_calls has no call of {', '.join(sorted(missing))}")
        for name in filter(re.compile(only).fullmatch, sorted(calls)):
            called = lambda name=name: [*map(dataclasses.astuple, in_a_folder(name, calls[name]))]
            for row in itertools.starmap(Answer, once(log, name, called)):
                answers.append(row)
                if row.result in BAD:
                    text = f"{row.name}({row.argument}={row.value})  {row.text:.150}"
                    tell(f"{row.result:8} {text}")
    counts = collections.Counter(row.result for row in answers)
    bad = [dataclasses.astuple(row) for row in answers if row.result in BAD]
    return {"counts": counts, "bad": bad}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=".*", help="a regex of public names")
    print(json.dumps(run(parser.parse_args().only)["counts"]))
