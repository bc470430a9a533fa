"""What `fit --among` does: one budget over techniques of every kind, for each smaller structure."""

import dataclasses
from typing import Any, Literal, get_args

import jax.numpy as jnp

import jaxmem as jm

from ..evaluation import evaluate
from ..models import Model
from ..structured.shrinking import Structure
from . import calibrating, options
from .output import Output
from .sizes import show

Technique = Literal["int", "sparsity", "n:m", "rank", "neurons", "layers"]
INTEGERS: tuple[Technique, ...] = ("int",)
STRUCTURES = get_args(Structure)
JUDGED = 4  # windows of the text that calibrates, its last ones, on which structures are compared
TOKENS = 256  # that the layers to go are found by


def check(among: tuple[Technique, ...], calibrate: str | None) -> None:
    """Refuses, before any work, structure without a text.

    Raises:
        ValueError: that, or nothing to choose among.
    """
    if not set(among) - set(STRUCTURES):
        raise ValueError("--among wants a form for the weights that stay: int, sparsity, n:m, rank")
    if set(among) & set(STRUCTURES) and not calibrate:
        raise ValueError("neurons and layers go by what a text needs of them: give --calibrate")


def without_text(output: Output, model: Model, nbytes: int, among: tuple) -> tuple[jm.Plan, Any]:
    """The plan that one budget makes of all techniques, and the tensors encoded by it."""
    uses = jm.uses(model.apply, model.tensors, *options.inputs(model))
    with output.step(f"planning {show(nbytes)}"):
        candidates = jm.techniques(model.tensors, among, uses=uses)
        plan = jm.budget(model.tensors, nbytes=nbytes, candidates=candidates, uses=uses)
    with output.step("encoding"):
        return plan, jm.encode(model.tensors, plan, uses=uses)


def with_text(
    output: Output, model: Model, nbytes: int, among: tuple, text: str
) -> tuple[Model, jm.Plan, list[dict]]:
    """(the model, whole or smaller, its plan, what each structure came to).

    Each structure is budgeted and encoded, and the least KL to the whole model on the text is best.
    Holds a Gram matrix for each weight.

    Raises:
        ValueError: no structure fits into so many bytes.
    """
    forms = [kind for kind in among if kind not in STRUCTURES]
    kinds = [kind for kind in among if kind in STRUCTURES]
    with output.step("calibrating: what weights are fed"):
        stats = calibrating.moments(model, text, "gram")
    ids = options.tokens(model, text)
    found, least = [], None
    for small in _structures(model, kinds, stats, ids):
        seen = stats if small is model else calibrating.moments(small, text, "gram")
        name = small.source.removeprefix(model.source).lstrip(", ") or "whole"
        try:
            plan, uses, given = _planned(output, small, nbytes, forms, seen, name)
        except ValueError as error:
            if "the smallest reachable size is" not in str(error):
                raise
            least = least or error
            continue
        found.append((name, small, plan, uses, given))
    if not found:
        raise least
    rows = [{"structure": name} for name, *_ in found]
    for row, (name, small, *how) in zip(rows, found) if len(found) > 1 else ():
        with output.step(f"encoding and comparing, {name}"):
            row["kl"] = _distance(model, small, *how, ids)
        output.say(f"{name}: KL {row['kl']:.4f}")
    best = min(range(len(rows)), key=lambda i: rows[i].get("kl", 0.0))
    return *found[best][1:3], rows


def _structures(model, kinds, stats, ids):
    yield model
    if kinds:
        rows = jnp.asarray(ids[: min(TOKENS, options.window(model))])[None]
        yield from jm.fewer(model, kinds, stats=stats, ids=rows)


def _planned(output, model, nbytes, forms, stats, name):
    uses = jm.uses(model.apply, model.tensors, *options.inputs(model))
    stats = {p: m for p, m in stats.items() if not calibrating.looked_up(p, uses)}
    with output.step(f"planning {show(nbytes)}, {name}"):
        candidates = jm.techniques(model.tensors, forms, uses=uses, stats=stats)
        how = {"nbytes": nbytes, "uses": uses, "stats": stats}
        plan = jm.budget(model.tensors, candidates=candidates, **how)
    return jm.Plan({path: _turned(codec) for path, codec in plan.items()}), uses, stats


def _turned(codec):
    """With codes and scales settled in turns, as a fit of integers alone has them."""
    if isinstance(codec, jm.QERA):
        return dataclasses.replace(codec, codec=_turned(codec.codec))
    if isinstance(codec, jm.GPTQ):
        return dataclasses.replace(codec, turns=calibrating.TURNS)
    return codec


def _distance(whole, small, plan, uses, stats, ids) -> float:
    """KL to the whole model of the smaller one, encoded by a plan."""
    encoded = jm.encode(small.tensors, plan, uses=uses, stats=stats)
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
