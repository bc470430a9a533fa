"""How fast a fitted model writes: predicted by its products, and measured against the dense one."""

import re
import statistics
from typing import Annotated

import numpy as np
from tyro.constructors import PrimitiveConstructorSpec

from ..compression.fit_result import Fitted
from ..models import Model, generate

PROMPT, TOKENS, ROUNDS = 4, 17, 5


def parse_times(text: str) -> float:
    """The number that `text` names as times a speed: 2x, 1.5x, or a number alone.

    Raises:
        ValueError: `text` is no such number.

    Example:
        >>> parse_times("2x"), parse_times("1.5")
        (2.0, 1.5)
    """
    if not re.fullmatch(r"(\d+(\.\d*)?|\.\d+)x?", text.strip()):
        raise ValueError(f"{text!r} is no speed, expected times the dense weights' speed: 2x")
    return float(text.strip().removesuffix("x"))


Times = Annotated[
    float | None,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="TIMES",
        instance_from_str=lambda args: parse_times(args[0]),
        is_instance=lambda value: value is None or isinstance(value, float),
        str_from_instance=lambda value: ["None" if value is None else f"{value}x"],
    ),
]


def speed_line(fitted: Fitted, target: str, measured: float | None) -> str:
    """One line that says how fast the result is, and whether the dense weights are faster."""
    line = f"products of a token on a {target}: predicted {fitted.speed:.2f} x the dense speed"
    if measured is not None:
        line += f"; writing a token: measured {measured:.2f} x"
    decisive = fitted.speed if measured is None else measured
    return f"{line}: slower than dense" if decisive < 1 else line


def measured_speed(dense: Model, small: Model) -> float | None:
    """Tokens a second of `small` over those of `dense`, which write in turns here.

    None if the models write no text.
    """
    if not hasattr(dense.config, "cache") or dense.tokenizer is None:
        return None
    ids = np.zeros((1, PROMPT), np.int32)
    run = lambda model: generate(model, ids, max_new_tokens=TOKENS).seconds_per_token
    times = [(run(dense), run(small)) for _ in range(ROUNDS + 1)][1:]  # the first round compiles
    ratios = [a / b for a, b in times if a and b]
    return statistics.median(ratios) if ratios else None
