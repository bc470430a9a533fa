"""What `fit --calibrate` does: weighted ranges, GPTQ block by block, then scales tuned by KL."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm

from ..commands import options
from ..commands.output import Output
from ..evaluation.perplexity_kl import evaluate
from ..models import Model

WINDOWS = 16  # that say what weights are fed, for a budget
SENSED = 4  # rows that say what an error costs
JUDGED = 4  # windows of the text, its last ones, that plans are compared on
ROWS, LENGTH, TOGETHER = 128, 512, 4  # rows and tokens that GPTQ sees, rows at a time
COMPARED = 16  # rows that plans are encoded on, to be compared
TURNS = 4  # of codes and scales, after GPTQ
LEARNING_RATE, BITS = 1e-3, 4.3125  # of tuning, where a weight takes so many bits
MOST = 2**1.5  # times as much, with fewer bits


def moments(model: Model, text: str, moments: str = "diag", windows: int = WINDOWS) -> dict:
    """E[x²], or E[x xᵀ], of what each weight is fed, over the first windows of a text.

    Raises:
        ValueError: the text is shorter than one window.
    """
    ids, length = options.tokens(model, text), options.window(model)
    count = min(len(ids) // length, windows)
    rows = ids[: count * length].reshape(count, 1, length)
    return jm.stats(model.apply, model.params, [(row,) for row in rows], moments=moments)


def costs(model: Model, text: str) -> dict:
    """What `fisher` finds that an error of each weight costs, on the first rows of a text."""
    ids, length = options.tokens(model, text), min(LENGTH, options.window(model))
    count = min(len(ids) // length, SENSED)
    rows = jnp.asarray(ids[: count * length].reshape(count, 1, length))
    return jm.fisher(model.apply, model.params, [(row,) for row in rows])


def solvers(plan: jm.Plan, uses: dict, turns: int = TURNS) -> jm.Plan:
    """The plan with each range searched, and GPTQ where a weight is only multiplied."""
    solve = lambda path, codec: codec if looked_up(path, uses) else jm.GPTQ(codec, turns=turns)
    return jm.Plan({path: solve(path, jm.Search(codec)) for path, codec in plan.items()})


def least(
    output: Output, model: Model, plans: dict[str, jm.Plan], uses: dict, text: str
) -> tuple[str, dict[str, float]]:
    """(the name of the plan with the least KL to the dense model, all KLs; none of one plan).

    Each is encoded on some rows of the text by GPTQ, block by block, and read on its last windows.
    """
    ids, length = options.tokens(model, text), min(LENGTH, options.window(model))
    rows = ids[: len(ids) // length * length].reshape(-1, 1, length)[:COMPARED]
    found = {}
    if len({str(plan) for plan in plans.values()}) == 1:
        return next(iter(plans)), found
    for name, plan in plans.items():
        with output.counting(f"comparing plans, {name}") as progress:
            solved = solvers(plan, uses, turns=0)
            tree = jm.encode_by_block(model, solved, [(row,) for row in rows], progress=progress)
            found[name] = distance(model, model, tree, ids)
        output.say(f"{name}: KL {found[name]:.4f}")
    return min(found, key=found.get), found


def distance(whole: Model, small: Model, encoded: Any, ids: np.ndarray) -> float:
    """KL to the whole model of the encoded one, on the last windows of a text."""
    length = options.window(whole)
    count = min(JUDGED, len(ids) // length)
    judged = evaluate(
        small.apply,
        jm.decode(encoded),
        ids[len(ids) - count * length :],
        reference=(whole.apply, whole.params),
        window=length,
    )
    return judged.kl.mean


def looked_up(path: str, uses: dict) -> bool:
    return any(use.op == "gather" for use in uses.get(path, ()))


def encode(
    output: Output,
    model: Model,
    plan: jm.Plan,
    text: str,
    steps: int,
    dense: Model | None = None,
) -> tuple[Any, dict]:
    """(the tensors encoded by a plan of solvers and tuned for some steps, what was done).

    `dense` is the model whose answers the scales learn, where `model` is a part of it.
    """
    ids = options.tokens(model, text)
    length = min(LENGTH, options.window(model))
    rows = ids[: len(ids) // length * length].reshape(-1, length)
    seen = rows[:ROWS]
    batches = [(seen[i : i + TOGETHER],) for i in range(0, len(seen), TOGETHER)]
    whole = [batch for batch in batches if len(batch[0]) == len(batches[0][0])]
    with output.counting("solving block by block") as progress:
        encoded = jm.encode_by_block(model, plan, whole, progress=progress)
    if steps:
        order = np.random.default_rng(0).permutation(len(rows))
        picked = [(jnp.asarray(rows[order[i % len(rows)]][None]),) for i in range(steps)]
        with output.counting("tuning scales") as progress:
            how = {"learning_rate": rate(encoded), "progress": lambda i, _: progress(i, steps)}
            dense = dense or model
            how |= {} if dense is model else {"dense": dense.apply}
            encoded = jm.tune(model.apply, dense.params, encoded, picked, **how)
    tokens = sum(batch[0].size for batch in whole)
    return encoded, {"tokens": tokens, "tuning_steps": steps, "tuning_tokens": steps * length}


def rate(encoded: Any) -> float:
    """Of tuning: half for each bit more that a weight takes, as the error that is left to mend."""
    leaves = jax.tree.leaves(encoded, is_leaf=jm.is_encoded)
    held = [leaf for leaf in leaves if jm.is_encoded(leaf)]
    bits = 8 * jm.nbytes(held) / sum(math.prod(leaf.shape) for leaf in held)
    return LEARNING_RATE * min(2 ** (BITS - bits), MOST)


def told(done: dict) -> str:
    """One line of it."""
    solved = f"ranges weighted by E[x²], then GPTQ and {TURNS} turns of codes and scales by block"
    if "structures" in done:
        solved = "every weight by its technique's solver, block by block"
    if done.get("plans_kl"):
        others = (f"{name}: KL {kl:.4f}" for name, kl in done["plans_kl"].items())
        solved = f"bits chosen {done['plan']} ({', '.join(others)}), {solved}"
    tuned = f", then {done['tuning_steps']} steps of scale tuning" if done["tuning_steps"] else ""
    return f"{solved} on {done['tokens']:,} tokens{tuned}"
