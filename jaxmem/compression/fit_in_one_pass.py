"""Fitting any function with data: each weight by its Gram matrix, in one pass over the batches."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from ..calibration.batches import tuples
from ..calibration.fisher import fisher
from ..calibration.statistics import stats
from ..core.arguments import BATCHES, Kind
from ..core.leaf import decode
from ..core.usage import uses
from ..solvers import Search
from ..train.output_losses import divergence
from ..train.scale_tuning import tune
from .budgeting import budget
from .candidates import techniques
from .encoding import encode
from .fit_activations import round_inputs
from .fit_calibrated import solve_by_gptq, tuning_rate
from .fit_integers import plan_integers
from .fit_options import FitOptions
from .fit_platform import fast_integers
from .fit_structures import INTEGERS
from .plan import Plan
from .progress import Progress, stage
from .token_seconds import seconds_limit

FISHER_BATCHES = 4  # batches that the cost of an error is measured on


def fit_in_one_pass(
    apply: Callable,
    params: Any,
    nbytes: int,
    batches: list[tuple],
    options: FitOptions,
    progress: Progress | None = None,
) -> tuple[Plan, Any, dict]:
    """(the plan that fits `nbytes`, the params encoded by it on the batches, a record).

    If `options.logits`, two plans are made and encoded: one weighs an error by its Fisher
    information, one by the weight's role. The one with less KL to the dense params on the last
    batch is used, and its scales are tuned.

    Args:
        apply: `apply(params, *batch)`.
        params: dense params.
        nbytes: the most bytes that the encoded params may take.
        batches: tuples of arrays; of the first the uses are taken, of all the moments.
        options: as of `fit`.
        progress: as in `fit`.
    """
    ways = uses(apply, params, *batches[0])
    with stage(progress, "calibrating: moments of the weights' inputs"):
        moments = stats(apply, params, batches, moments="gram")
    costs: dict[str, Mapping | None] = {"by role": None}
    if options.logits:
        with stage(progress, "calibrating: what an error costs"):
            costs["by Fisher information"] = fisher(apply, params, batches[:FISHER_BATCHES])
    with stage(progress, f"planning {nbytes:,} bytes"):
        tables, fast = {"uses": ways, "stats": moments}, None
        if options.target is not None:
            fast = fast_integers(params, nbytes, options.target, ways)
        limit = {"seconds": seconds_limit(params, options, ways)}
        plans = {
            name: _planned(params, nbytes, options.among, fast, sensitivity=cost, **tables, **limit)
            for name, cost in costs.items()
        }
        inputs = ways, options.activations
        plans = {name: round_inputs(plan, *inputs) for name, plan in plans.items()}
    with stage(progress, "encoding"):
        encoded = {name: encode(params, plan, **tables) for name, plan in plans.items()}
    record = {"batches": len(batches), "tuning_steps": 0}
    if not options.logits:
        return plans["by role"], encoded["by role"], record
    kl = jax.jit(lambda a, b, *batch: divergence(apply(a, *batch), apply(b, *batch)))
    divergences = {name: float(kl(params, decode(x), *batches[-1])) for name, x in encoded.items()}
    name = min(divergences, key=divergences.get)
    tuned = _tuned(apply, params, encoded[name], batches, options.tune_steps, progress)
    record |= {"tuning_steps": options.tune_steps, "plan": name, "plans_kl": divergences}
    return plans[name], tuned, record


def _planned(
    params: Any, nbytes: int, among: tuple, integers: Mapping | None, **tables: Any
) -> Plan:
    """The plan that `budget` makes of `tables`: `uses`, `stats`, `sensitivity` and `seconds`."""
    ways, moments = tables["uses"], tables["stats"]
    if among != INTEGERS:
        candidates = techniques(params, among, uses=ways, stats=moments)
        return budget(params, nbytes=nbytes, candidates=candidates, **tables)
    integers = plan_integers(params, nbytes, integers, **tables)
    multiplied = {path: codec for path, codec in integers.items() if path in moments}
    searched = {path: Search(codec) for path, codec in integers.items()}
    return Plan(searched, integers.axes) | solve_by_gptq(Plan(multiplied), ways)


def _tuned(
    apply: Callable,
    params: Any,
    encoded: Any,
    batches: list[tuple],
    steps: int,
    progress: Progress | None,
) -> Any:
    """The encoded params after `steps` of scale tuning, each on one of the batches in turn."""
    if not steps:
        return encoded
    with stage(progress, "tuning scales") as count:
        in_turn = [batches[i % len(batches)] for i in range(steps)]
        told = lambda step, loss: count(step, steps)
        rate = tuning_rate(encoded)
        return tune(apply, params, encoded, in_turn, learning_rate=rate, progress=told)


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
