"""Fitting any function with data: each weight by its Gram matrix, in one pass over the batches."""

from collections.abc import Callable, Iterable
from typing import Any

from ..calibration.batches import tuples
from ..calibration.statistics import stats
from ..core.arguments import BATCHES, Kind
from ..core.usage import uses
from ..solvers import Search
from .budgeting import budget
from .candidates import techniques
from .encoding import encode
from .fit_calibrated import solve_by_gptq
from .fit_integers import plan_integers
from .fit_structures import INTEGERS, Technique
from .plan import Plan
from .progress import Progress, stage


def fit_in_one_pass(
    apply: Callable,
    params: Any,
    nbytes: int,
    batches: list[tuple],
    among: tuple[Technique, ...],
    progress: Progress | None = None,
) -> tuple[Plan, Any, dict]:
    """(the plan that fits `nbytes`, the params encoded by it on the batches, a record).

    Args:
        apply: `apply(params, *batch)`.
        params: dense params.
        nbytes: the most bytes that the encoded params may take.
        batches: tuples of arrays; of the first the uses are taken, of all the moments.
        among: forms of the weights that stay, as in `FitOptions`.
        progress: as in `fit`.
    """
    ways = uses(apply, params, *batches[0])
    with stage(progress, "calibrating: moments of the weights' inputs"):
        moments = stats(apply, params, batches, moments="gram")
    with stage(progress, f"planning {nbytes:,} bytes"):
        if among == INTEGERS:
            integers = plan_integers(params, nbytes, uses=ways, stats=moments)
            multiplied = {path: codec for path, codec in integers.items() if path in moments}
            searched = {path: Search(codec) for path, codec in integers.items()}
            plan = Plan(searched, integers.axes) | solve_by_gptq(Plan(multiplied), ways)
        else:
            candidates = techniques(params, among, uses=ways, stats=moments)
            tables = {"candidates": candidates, "uses": ways, "stats": moments}
            plan = budget(params, nbytes=nbytes, **tables)
    with stage(progress, "encoding"):
        encoded = encode(params, plan, uses=ways, stats=moments)
    return plan, encoded, {"batches": len(batches), "tuning_steps": 0}


CALIBRATION = Kind(
    "token ids (tokens,), or an iterable of tuples", lambda x: x is None or BATCHES.accepts(x)
)


def are_batches(calibrate: Any) -> bool:
    """Whether `calibrate` is a list of tuples, and not a list or an array of token ids."""
    return isinstance(calibrate, list | tuple) and isinstance((*calibrate, None)[0], tuple | list)


def calibration_batches(calibrate: Iterable[tuple], windows: int | None) -> list[tuple]:
    """The batches that `fit` was given for a function that is not of a text.

    Raises:
        TypeError: they are one array.
        ValueError: `windows` is given, which are of a text.
    """
    if getattr(calibrate, "ndim", None) is not None:
        raise TypeError("a bare function takes calibrate=[(array, ...), ...], got one array")
    if windows is not None:
        raise ValueError(f"windows is {windows}: a bare function reads every batch it is given")
    return list(tuples(calibrate, "fit"))
