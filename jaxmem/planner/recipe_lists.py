"""recipe_lists: the recipes that `plan` tries, made of the choices in search_space.py."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..codecs import Int
from ..parallel.axes import ROWS
from ..train.remat_policy import Remat
from .recipe import Recipe
from .search_space import (
    CODED_STATES,
    HELD,
    OPTIMIZERS,
    REMATS,
    chunks,
    micro_batches,
    prompts,
    tiles,
)


def recipe_lists(
    first: Recipe,
    encodings: Sequence[Any],
    states: Sequence[str],
    meshes: Sequence[Mapping[str, int] | None],
    cache_bits: Sequence[int] = (16, 8, 4),
    weights: Sequence[str] = ("bfloat16",),
    is_tiled: bool = True,
) -> Iterator[list[Recipe]]:
    """Recipes in lists: within one, remat, micro-batches and chunks trade seconds for bytes.

    `is_tiled` is False for mixtures, whose tokens go to experts through operations that mix them.
    """
    change = functools.partial(dataclasses.replace, first)
    if first.task == "serve":
        for codec, bits, mesh in itertools.product(encodings, cache_bits, meshes):
            knobs = dict(encoding=codec, cache_bits=bits, mesh=mesh)
            yield [change(**knobs, prompt=n) for n in prompts(first.seq, bits)]
        return
    policies = [cost.policy for cost in REMATS.values()]
    for codec in encodings if first.task == "lora" else (None,):
        layouts = [(mesh, shared) for mesh in meshes for shared in _shared(mesh)]
        for state, offload, (mesh, shared) in itertools.product(states, (False, True), layouts):
            # An adapter's state is small, and so is a chip's share of one, or one of few bits.
            if offload and (first.task == "lora" or mesh or state in CODED_STATES):
                continue
            if first.adapter == "adalora" and state in CODED_STATES:
                continue
            knobs = dict(encoding=codec, state=state, offload=offload, shared=shared, mesh=mesh)
            rows = first.batch // math.prod((mesh or {}).get(axis, 1) for axis in ROWS)
            fine = list(itertools.product(policies, micro_batches(rows), chunks(first.seq)))
            for form in weights:
                if form == "bfloat16" or not (offload or mesh or first.task == "lora"):
                    knobs["weights"] = form
                    yield [change(**knobs, remat=r, micro=n, chunk=c) for r, n, c in fine]
    if first.task == "train" and not any(meshes):
        policies = [Remat("full", held=held) for held in HELD if held != "host"]  # refused on a TPU
        tokens = tiles(first.seq) if is_tiled else [None]
        forms = [(None, form) for form in weights] + [(Int(8), "bfloat16")]
        for optimizer, (codec, form), state in itertools.product(OPTIMIZERS, forms, states):
            knobs = dict(release=True, optimizer=optimizer, encoding=codec, state=state)
            knobs |= dict(chunk=chunks(first.seq)[-1], mesh=None, weights=form)
            fine = itertools.product(policies, micro_batches(first.batch), tokens)
            yield [change(**knobs, remat=r, micro=n, tile=t) for r, n, t in fine]


def last_resorts(recipe: Recipe) -> tuple[int, ...]:
    """What of a recipe is tried only if nothing else fits, the worst first.

    Another optimizer than Adam, weights to train in int8, and an optimizer's state in 4 or 8 bits,
    whose update takes a compiler minutes.
    """
    is_encoded = recipe.task == "train" and recipe.encoding is not None
    coded = CODED_STATES.index(recipe.state) + 1 if recipe.state in CODED_STATES else 0
    return recipe.optimizer != "adamw", is_encoded, coded


def _shared(mesh: Mapping[str, int] | None) -> tuple[bool, ...]:
    """The values of `Recipe.shared` that differ on a mesh: both if there is an axis `fsdp`."""
    return (True, False) if mesh and "fsdp" in mesh else (True,)
