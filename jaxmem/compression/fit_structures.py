"""Fitting by techniques of every kind: one budget over all, for the model and for smaller ones."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ..core.paths import is_whole, paths
from ..core.usage import uses
from ..evaluation.task import Task
from ..io.scalar_writers import ScalarWriter
from ..models.example_inputs import example_inputs, window
from ..models.model import Model
from ..solvers import GPTQ, QERA
from ..structured_pruning.structures import Structure, fewer
from .budgeting import Unreachable, budget
from .candidates import Kind, techniques
from .encoding import encode
from .fit_calibrated import TURNS, encode_and_tune, input_moments, looked_up
from .fit_judge import judged, least_harmed
from .layer_errors import Errors, errors
from .plan import Plan
from .progress import Progress, stage

Technique = Literal[Kind, Structure]
INTEGERS: tuple[Technique, ...] = ("int",)
STRUCTURES = get_args(Structure)
GRAM_WINDOWS = 4  # windows of the text that give the moments of a smaller model
DEPTH_TOKENS = 128  # tokens by which the layers to remove are chosen


@dataclasses.dataclass(frozen=True)
class _Choice:
    """One structure of the model with the plan that fits it into the bytes."""

    name: str
    model: Model
    plan: Plan
    uses: Mapping
    stats: Mapping


def fit_by_techniques(
    model: Model,
    nbytes: int,
    among: tuple[Technique, ...],
    ids: np.ndarray,
    steps: int,
    progress: Progress | None = None,
    judge: Task | None = None,
    writer: ScalarWriter | None = None,
) -> tuple[Model, Plan, Any, dict]:
    """(the model, whole or smaller, its plan, its tensors encoded, a record of the work).

    Each structure is planned within the budget and encoded; the one with the least KL to the whole
    model on the text is used, or the one with the highest score in `judge`. Holds a Gram matrix for
    each weight.

    Args:
        model: a dense model with one scan over its layers.
        nbytes: the most bytes that the encoded params may take.
        among: forms of the weights that stay, and structures to remove.
        ids: the tokens of a text, (tokens,).
        steps: steps of scale tuning on the whole model's logits.
        progress: as in `fit`.
        judge: the task that makes the last choice; None: the KL.
        writer: takes the loss of each step of scale tuning.

    Raises:
        Unreachable: no structure fits into so many bytes.
    """
    choices = _choices(model, nbytes, among, ids, progress)
    rows = [{"structure": choice.name} for choice in choices]
    if len(choices) > 1:
        for row, choice in zip(rows, choices):
            with stage(progress, f"encoding and comparing, {choice.name}"):
                ways = {"uses": choice.uses, "stats": choice.stats}
                encoded = encode(choice.model.tensors, choice.plan, **ways)
                row.update(judged(model, choice.model, encoded, ids, judge))
    best = choices[least_harmed(rows)]
    plan = Plan({path: _with_turns(codec) for path, codec in best.plan.items()}, best.plan.axes)
    options = {"dense": model, "writer": writer}
    encoded, record = encode_and_tune(best.model, plan, ids, steps, progress, **options)
    record |= {"structures": rows} | ({} if judge is None else {"judge": judge.name})
    return best.model, plan, encoded, record


def _choices(model, nbytes, among, ids, progress) -> list[_Choice]:
    """The structures that fit, the whole model first.

    A weight that a smaller model shares with the whole one is taken to lose there what it loses in
    the whole one, and is not measured again.
    """
    forms = [kind for kind in among if kind not in STRUCTURES]
    kinds = [kind for kind in among if kind in STRUCTURES]
    with stage(progress, "calibrating: moments of the weights' inputs"):
        moments = input_moments(model, ids, "gram")
    choices, unreachable, measured = [], None, {}
    for small, layers in _structures(model, kinds, moments, ids):
        stats = moments if small is model else input_moments(small, ids, "gram", GRAM_WINDOWS)
        name = small.source.removeprefix(model.source).lstrip(", ") or "whole"
        ways = uses(small.apply, small.tensors, *example_inputs(small))
        stats = {path: m for path, m in stats.items() if not looked_up(path, ways)}
        with stage(progress, f"planning {nbytes:,} bytes, {name}"):
            candidates = techniques(small.tensors, forms, uses=ways, stats=stats)
            options = {"candidates": candidates, "uses": ways, "stats": stats}
            measured = measured or errors(model.tensors, **options)
            known = shared_errors(measured, model, small, layers)
            try:
                plan = budget(small.tensors, nbytes=nbytes, known=known, **options)
            except Unreachable as error:
                unreachable = unreachable or error
                continue
        choices.append(_Choice(name, small, plan, ways, stats))
    if not choices:
        raise unreachable
    return choices


def _structures(model, kinds, stats, ids) -> Iterator[tuple[Model, list[int]]]:
    """(a model, which layers of the whole one it has), the whole one first."""
    yield model, list(range(model.config.layers))
    if kinds:
        rows = jnp.asarray(ids[: min(DEPTH_TOKENS, window(model))])[None]
        yield from fewer(model, kinds, stats=stats, ids=rows)


def shared_errors(measured: Errors, whole: Model, small: Model, layers: list[int]) -> Errors:
    """The errors measured on the whole model, for the weights that the smaller one has unchanged.

    Removing structure changes a weight's shape, or which `layers` of the whole model there are.
    """
    shapes = lambda model: {
        path: leaf.shape
        for path, leaf in zip(
            paths(model.tensors), jax.tree.leaves(model.tensors, is_leaf=is_whole)
        )
    }
    before, after = shapes(whole), shapes(small)
    known = {}
    for path, by_codec in measured.items():
        stacked = path.startswith("layers/")
        if path in after and before[path][stacked:] == after[path][stacked:]:
            known[path] = {c: error[layers] if stacked else error for c, error in by_codec.items()}
    return known


def _with_turns(codec: Any) -> Any:
    """The solver with codes and scales fitted in turn, as `solve_by_gptq` has it."""
    if isinstance(codec, QERA):
        return dataclasses.replace(codec, codec=_with_turns(codec.codec))
    if isinstance(codec, GPTQ):
        return dataclasses.replace(codec, turns=TURNS)
    return codec
