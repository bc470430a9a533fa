"""The weights of a checkpoint that is quantized already, as the codes and scales it holds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.codecs.casting import CastArray
from jaxmem.folding import Fold
from jaxmem.lazy import Lazy
from jaxmem.models import ggml_blocks, llamacpp
from jaxmem.models.compressed import Codes
from jaxmem.models.ggml import Gguf
from jaxmem.models.recipe import Recipe

_HALVES = {"F16": "float16", "BF16": "bfloat16"}


def from_gguf(file: Gguf, names: list[str], recipe: Recipe, dtype: Any) -> Any:
    """The leaf of one parameter, whose layers are the tensors `names` of the file, or None.

    None for a vector, for f32, for a type that has no leaf, and where the parameter is not made by
    moving rows. A stack of different types decodes to within a unit in the last place.
    """
    if len(file.tensors[names[0]].shape) != 2:
        return None
    kinds = {file.kind(name) for name in names}
    made = lambda name: (
        lambda w: recipe.fn(llamacpp.undone(file, name, Lazy(w.shape, w.dtype, lambda _: w)).load())
    )
    if kinds <= set(_HALVES) and len(kinds) == 1:
        kind = jnp.dtype(_HALVES[kinds.pop()])
        layers = [made(name)(file.tensors[name].load()).astype(kind) for name in names]
        return CastArray(jnp.asarray(_together(recipe, layers)), jnp.dtype(dtype))
    places = [placed(made(name), *file.tensors[name].shape) for name in names]
    if not kinds <= set(ggml_blocks.TYPES) or None in places:
        return None
    data = (file.blocks(name)[order] for name, (order, _) in zip(names, places))
    rows = [ggml_blocks.rows(file.kind(name), part) for name, part in zip(names, data)]
    for name, row in zip(names, rows):
        if not all(np.isfinite(s.unit).all() for s in (row.scale, row.low) if s is not None):
            raise ValueError(f"{file.path}: {name} has scales that are NaN or infinite")
    fold = places[0][1]
    try:
        if recipe.stacked:
            return ggml_blocks.stacked(rows, fold, dtype)
        return rows[0].leaf(fold, dtype)
    except OverflowError:
        return None


def from_codes(found: list[Codes], recipe: Recipe, dtype: Any) -> Any:
    """The leaf of one parameter of a compressed-tensors checkpoint, or None.

    None where layers differ in form, and where the parameter is not made by moving rows.
    """
    places = [placed(recipe.fn, *codes.shape) for codes in found]
    if None in places or len({codes.form() for codes in found}) > 1:
        return None
    fold = places[0][1]
    if any((order != np.arange(len(order))).any() for order, _ in places):
        return None
    layers = [codes.leaf(fold, dtype) for codes in found]
    return jax.tree.map(lambda *a: jnp.stack(a), *layers) if recipe.stacked else layers[0]


def placed(fn: Callable, n: int, k: int) -> tuple[np.ndarray, Fold] | None:
    """How `fn` moves the rows of a matrix (n, k), and how its result lies in them.

    The order of rows that makes them the kept axis of the result in its own order, and the fold;
    None where it does something else. Found by what it does to the numbers of rows and columns.

    Example:
        >>> import numpy as np
        >>> placed(lambda w: w[::-1].T, 3, 2)
        (array([2, 1, 0], dtype=int32), Fold(kept=(3,), summed=(2,), order=(-1, -2)))
        >>> placed(lambda w: w + 1, 3, 2)
    """
    rows, columns = np.arange(n, dtype=np.int32), np.arange(k, dtype=np.int32)
    by_row = fn(np.broadcast_to(rows[:, None], (n, k)))
    by_column = fn(np.broadcast_to(columns[None], (n, k)))
    for turned in (False, True):
        if by_row.shape != ((k, n) if turned else (n, k)):
            continue
        first, second = (by_row.T, by_column.T) if turned else (by_row, by_column)
        order = np.asarray(first[:, 0])
        moved = np.array_equal(np.sort(order), rows) and np.array_equal(first[:, -1], order)
        if moved and np.array_equal(second[0], columns):
            return order, Fold((n,), (k,), (-1, -2) if turned else (-2, -1))
    return None


def _together(recipe: Recipe, layers: list[np.ndarray]) -> np.ndarray:
    return np.stack(layers) if recipe.stacked else layers[0]
