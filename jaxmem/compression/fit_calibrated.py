"""Fitting with data: weighted ranges, GPTQ block by block, then scales tuned by KL divergence."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..calibration.fisher import fisher
from ..calibration.statistics import Moments, stats
from ..codecs.scaled import Scaled
from ..core.byte_counts import nbytes
from ..core.leaf import is_encoded
from ..core.usage import uses
from ..evaluation.task import Task
from ..io.scalar_writers import ScalarWriter
from ..models.example_inputs import example_inputs, window
from ..models.model import Model
from ..solvers import GPTQ, Search
from ..train.scale_tuning import tune
from .blockwise import encode_by_block
from .fit_activations import round_inputs
from .fit_integers import plan_integers
from .fit_judge import judged, least_harmed
from .plan import Plan
from .progress import Progress, stage
from .token_seconds import SecondsLimit

MOMENT_WINDOWS = 16  # windows of the text that the moments of the weights' inputs are taken from
FISHER_ROWS = 4  # rows of ROW_TOKENS that the cost of an error is measured on
COMPARE_ROWS = 16  # rows of ROW_TOKENS that each plan is encoded on, to compare plans
GPTQ_ROWS, ROW_TOKENS, BATCH_ROWS = 128, 512, 4
TURNS = 4  # times that codes and scales are fitted in turn, after GPTQ
LEARNING_RATE, REFERENCE_BITS = 1e-3, 4.3125  # of scale tuning, at this many bits a weight
LARGEST_FACTOR = 2**1.5  # of the learning rate, at fewer bits

Moment = Mapping[str, Moments]


def input_moments(
    model: Model, ids: np.ndarray, moments: str = "diag", windows: int = MOMENT_WINDOWS
) -> Moment:
    """E[x²] ("diag") or E[x xᵀ] ("gram") of each weight's input, over the first windows of a text.

    `ids` (tokens,) has at least one window.
    """
    length = window(model)
    count = min(len(ids) // length, windows)
    rows = ids[: count * length].reshape(count, 1, length)
    return stats(model.apply, model.params, [(row,) for row in rows], moments=moments)


def error_costs(model: Model, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The nats that an error of each weight costs by `fisher`, on the first rows of a text."""
    rows = text_rows(model, ids)[:FISHER_ROWS, None]
    return fisher(model.apply, model.params, [(row,) for row in jnp.asarray(rows)])


def solve_by_gptq(plan: Plan, ways: Mapping, turns: int = TURNS) -> Plan:
    """The plan with each range searched, and GPTQ for each weight that is only multiplied."""
    by_gptq = lambda path, codec: isinstance(codec, Search) and not looked_up(path, ways)
    solver = lambda path, codec: GPTQ(codec, turns=turns) if by_gptq(path, codec) else codec
    return Plan(
        {path: solver(path, codec) for path, codec in search_ranges(plan).items()}, plan.axes
    )


def search_ranges(plan: Plan) -> Plan:
    """The plan with the range of each codec that has one searched."""
    search = lambda codec: Search(codec) if isinstance(codec, Scaled) else codec
    return Plan({path: search(codec) for path, codec in plan.items()}, plan.axes)


def looked_up(path: str, ways: Mapping) -> bool:
    """Whether the weight is a table whose rows are looked up."""
    return any(use.op == "gather" for use in ways.get(path, ()))


def fit_by_integers(
    model: Model,
    nbytes: int,
    ids: np.ndarray,
    steps: int,
    progress: Progress | None = None,
    candidates: Mapping[str, tuple] | None = None,
    judge: Task | None = None,
    writer: ScalarWriter | None = None,
    seconds: SecondsLimit | None = None,
    activations: str | None = None,
) -> tuple[Plan, Any, dict]:
    """(the plan of integers that fits `nbytes`, the tensors encoded by it on a text, a record).

    Two plans are made: one weighs an error by its Fisher information, one by the weight's role.
    The one with less KL to the dense model is used, or the one with the higher score in `judge`.
    `steps` of scale tuning follow, whose losses `writer` takes. With `candidates`, {regex:
    codecs}, the plans are made of these, and with `seconds` they keep both limits. `activations`
    are those of the options.
    """
    with stage(progress, "calibrating: moments of the weights' inputs"):
        moments = input_moments(model, ids)
    with stage(progress, "calibrating: what an error costs"):
        costs = error_costs(model, ids)
    ways = uses(model.apply, model.tensors, *example_inputs(model))
    plans = {}
    with stage(progress, f"planning {nbytes:,} bytes"):
        for name, sensitivity in {"by Fisher information": costs, "by role": None}.items():
            options = {"uses": ways, "stats": moments, "sensitivity": sensitivity}
            options |= {"candidates": candidates, "seconds": seconds}
            plans[name] = plan_integers(model.tensors, nbytes, **options)
    name, compared = _least_harmful(model, plans, ways, ids, progress, judge)
    plan = round_inputs(solve_by_gptq(plans[name], ways), ways, activations)
    encoded, record = encode_and_tune(model, plan, ids, steps, progress, writer=writer)
    record |= {"plan": name, "plans_kl": {name: row["kl"] for name, row in compared.items()}}
    if judge is not None:
        scores = {name: row["score"] for name, row in compared.items()}
        record |= {"judge": judge.name, "plans_score": scores}
    return plan, encoded, record


def _least_harmful(
    model: Model,
    plans: Mapping[str, Plan],
    ways: Mapping,
    ids: np.ndarray,
    progress: Progress | None,
    judge: Task | None,
) -> tuple[str, dict[str, dict[str, float]]]:
    """(the name of the plan that harms least, by KL or by the judge; what each was found to do).

    Each plan is encoded on some rows of the text by GPTQ, block by block, and evaluated on the
    text's last windows. Where all plans are equal none is encoded, and nothing is found.
    """
    if len({str(plan) for plan in plans.values()}) == 1:
        return next(iter(plans)), {}
    compared = {}
    batches = [(row,) for row in text_rows(model, ids)[:COMPARE_ROWS, None]]
    for name, plan in plans.items():
        with stage(progress, f"comparing plans, {name}") as count:
            solved = solve_by_gptq(plan, ways, turns=0)
            encoded = encode_by_block(model, solved, batches, progress=count)
            compared[name] = judged(model, model, encoded, ids, judge)
    return list(compared)[least_harmed(list(compared.values()))], compared


def encode_and_tune(
    model: Model,
    plan: Plan,
    ids: np.ndarray,
    steps: int,
    progress: Progress | None = None,
    dense: Model | None = None,
    writer: ScalarWriter | None = None,
) -> tuple[Any, dict]:
    """(the tensors encoded by a plan of solvers, then tuned for `steps`, a record of the work).

    Args:
        model: a dense model with one scan over its layers.
        plan: a solver for each path.
        ids: the tokens of a text, (tokens,).
        steps: steps of scale tuning, each on one row of 512 tokens.
        progress: as in `fit`.
        dense: the model whose logits the scales are tuned on, where `model` is a part of it.
        writer: takes the loss of each step of scale tuning.
    """
    rows = text_rows(model, ids)
    batches = gptq_batches(rows)
    with stage(progress, "solving block by block") as count:
        encoded = encode_by_block(model, plan, batches, progress=count)
    if steps:
        target = (dense or model).params
        apply = None if dense is None else dense.apply
        losses = {"dense": apply, "writer": writer}
        encoded = tune_scales(model, target, encoded, rows, steps, progress, **losses)
    tokens = sum(batch[0].size for batch in batches)
    record = {"tokens": tokens, "tuning_steps": steps, "tuning_tokens": steps * rows.shape[1]}
    return encoded, record


def tune_scales(
    model: Model,
    target: Any,
    encoded: Any,
    rows: np.ndarray,
    steps: int,
    progress: Progress | None = None,
    *,
    dense: Callable | None = None,
    writer: ScalarWriter | None = None,
) -> Any:
    """The encoded tensors after `steps` of scale tuning, each on one row of a text.

    Args:
        model: runs the encoded tensors.
        target: the dense params whose logits the scales are tuned on.
        encoded: the tensors to tune.
        rows: the token ids of a text, (rows, tokens), taken in a fixed random order.
        steps: how many steps, at least 1.
        progress: as in `fit`.
        dense: runs `target`; None: the model does.
        writer: takes the loss of each step, in nats.
    """
    order = np.random.default_rng(0).permutation(len(rows))
    batches = [(jnp.asarray(rows[order[i % len(rows)]][None]),) for i in range(steps)]
    with stage(progress, "tuning scales") as count:

        def tell(step: int, loss: Any) -> None:
            count(step, steps)
            if writer:
                writer.write_scalars(step, {"fit/kl": float(loss)})

        options = {"learning_rate": tuning_rate(encoded), "dense": dense, "progress": tell}
        return tune(model.apply, target, encoded, batches, **options)


def tuning_rate(encoded: Any) -> float:
    """Learning rate for scale tuning: halves with each bit more that a weight takes.

    The quantization error, which tuning makes up for, halves with each bit too.
    """
    leaves = [x for x in jax.tree.leaves(encoded, is_leaf=is_encoded) if is_encoded(x)]
    bits = 8 * nbytes(leaves) / sum(math.prod(leaf.shape) for leaf in leaves)
    return LEARNING_RATE * min(2 ** (REFERENCE_BITS - bits), LARGEST_FACTOR)


def text_rows(model: Model, ids: np.ndarray) -> np.ndarray:
    """The text in rows of up to 512 tokens, (rows, tokens); what is left over is dropped."""
    length = min(ROW_TOKENS, window(model))
    return ids[: len(ids) // length * length].reshape(-1, length)


def gptq_batches(rows: np.ndarray) -> list[tuple]:
    """The first rows of a text in batches of one size, which GPTQ takes its moments from."""
    size = min(BATCH_ROWS, len(rows))
    most = min(len(rows), GPTQ_ROWS)
    return [(rows[i : i + size],) for i in range(0, most - most % size, size)]
