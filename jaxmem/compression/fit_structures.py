"""What `fit --among` does: one budget over techniques of every kind, for each smaller structure."""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

import jaxmem as jm

from ..commands import options
from ..commands.output import Output
from ..commands.sizes import show
from ..core.paths import is_whole
from ..models import Model
from ..structured_pruning.structures import Structure
from . import fit_calibrated
from .budgeting import Unreachable

Technique = Literal["int", "sparsity", "n:m", "rank", "neurons", "heads", "width", "layers"]
INTEGERS: tuple[Technique, ...] = ("int",)
STRUCTURES = get_args(Structure)
FEW = 4  # windows of the text that the weights of a smaller model are encoded by to compare it
TOKENS = 128  # that the layers to go are found by


def check(among: tuple[Technique, ...], calibrate: str | None) -> None:
    """Refuses, before any work, structure without a text.

    Raises:
        ValueError: that, or nothing to choose among.
    """
    if not set(among) - set(STRUCTURES):
        raise ValueError("--among wants a form for the weights that stay: int, sparsity, n:m, rank")
    if set(among) & set(STRUCTURES) and not calibrate:
        raise ValueError(
            f"{', '.join(STRUCTURES)} go by what a text needs of them: give --calibrate"
        )


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
    A weight that a smaller model shares with the whole one is taken to lose there what it loses
    here, and not measured again. Holds a Gram matrix for each weight.

    Raises:
        ValueError: no structure fits into so many bytes.
    """
    forms = [kind for kind in among if kind not in STRUCTURES]
    kinds = [kind for kind in among if kind in STRUCTURES]
    with output.step("calibrating: what weights are fed"):
        stats = fit_calibrated.moments(model, text, "gram")
    ids = options.tokens(model, text)
    found, least, errors = [], None, {}
    for small, layers in _structures(model, kinds, stats, ids):
        seen = stats if small is model else fit_calibrated.moments(small, text, "gram", FEW)
        name = small.source.removeprefix(model.source).lstrip(", ") or "whole"
        uses = jm.uses(small.apply, small.tensors, *options.inputs(small))
        seen = {p: m for p, m in seen.items() if not fit_calibrated.looked_up(p, uses)}
        with output.step(f"planning {show(nbytes)}, {name}"):
            candidates = jm.techniques(small.tensors, forms, uses=uses, stats=seen)
            how = {"candidates": candidates, "uses": uses, "stats": seen}
            errors = errors or jm.errors(model.tensors, **how)
            known = _shared(errors, model, small, layers)
            try:
                plan = jm.budget(small.tensors, nbytes=nbytes, known=known, **how)
            except Unreachable as error:
                least = least or error
                continue
        found.append((name, small, plan, uses, seen))
    if not found:
        raise least
    rows = [{"structure": name} for name, *_ in found]
    for row, (name, small, *how) in zip(rows, found) if len(found) > 1 else ():
        with output.step(f"encoding and comparing, {name}"):
            row["kl"] = _distance(model, small, *how, ids)
        output.say(f"{name}: KL {row['kl']:.4f}")
    _, small, plan, *_ = found[min(range(len(rows)), key=lambda i: rows[i].get("kl", 0.0))]
    return small, jm.Plan({path: _turned(codec) for path, codec in plan.items()}), rows


def _structures(model, kinds, stats, ids):
    """(model, the layers of the whole one that it has)."""
    yield model, list(range(model.config.layers))
    if kinds:
        rows = jnp.asarray(ids[: min(TOKENS, options.window(model))])[None]
        yield from jm.fewer(model, kinds, stats=stats, ids=rows)


def _shared(errors, whole, small, layers) -> dict:
    """Of the errors of the whole model those of weights that the smaller one has as they were.

    Structure that goes changes a weight's shape, or which layers there are.
    """
    shapes = lambda m: {
        path: leaf.shape
        for path, leaf in zip(jm.paths(m.tensors), jax.tree.leaves(m.tensors, is_leaf=is_whole))
    }
    before, after = shapes(whole), shapes(small)
    known = {}
    for path, each in errors.items():
        stacked = path.startswith("layers/")
        if path in after and before[path][stacked:] == after[path][stacked:]:
            known[path] = {c: e[layers] if stacked else e for c, e in each.items()}
    return known


def _turned(codec):
    """With codes and scales settled in turns, as a fit of integers alone has them."""
    if isinstance(codec, jm.QERA):
        return dataclasses.replace(codec, codec=_turned(codec.codec))
    if isinstance(codec, jm.GPTQ):
        return dataclasses.replace(codec, turns=fit_calibrated.TURNS)
    return codec


def _distance(whole, small, plan, uses, stats, ids) -> float:
    """KL to the whole model of the smaller one, encoded by a plan."""
    encoded = jm.encode(small.tensors, plan, uses=uses, stats=stats)
    return fit_calibrated.distance(whole, small, encoded, ids)
