"""The weights of a quantized checkpoint as encoded leaves, with the file's codes and scales."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..architectures.weights.weight_map import WeightMap
from ..codecs.cast import CastArray
from ..core.fold import Fold
from ..core.lazy import Lazy
from ..core.leaf import is_encoded
from ..core.segmented import Segmented, join_layers
from ..formats import gguf_blocks, gguf_lattices
from ..formats.gguf import Gguf
from ..formats.quantized_matrix import QuantizedMatrix
from .checkpoint_tensors import bare_name

_ROWS = dict.fromkeys(gguf_blocks.TYPES, gguf_blocks.rows)  # {type: what reads its blocks}
_ROWS |= dict.fromkeys(gguf_lattices.TYPES, gguf_lattices.rows)
_SIXTEEN_BITS = {"F16": "float16", "BF16": "bfloat16"}


def keep_codes(
    tree: dict,
    weight_maps: dict[str, WeightMap],
    coded: dict[str, Any],
    leaf: Callable[[list[Any], WeightMap, Any], Any],
) -> None:
    """Replaces each lazy leaf of `tree` whose tensors are quantized by an encoded leaf.

    `coded` has the codes of tensors by name, and `leaf` makes an encoded leaf from the codes of a
    parameter's tensors; None where there is no such form.
    """
    coded = {bare_name(name): codes for name, codes in coded.items()}
    for where, weight_map in weight_maps.items():
        *parents, last = where.split("/")
        node = functools.reduce(dict.__getitem__, parents, tree)
        codes = [coded.get(bare_name(name)) for name in weight_map.names]
        encoded = leaf(codes, weight_map, node[last])
        node[last] = node[last] if encoded is None else encoded


def from_gguf(file: Gguf, names: list[str], weight_map: WeightMap, dense: Lazy) -> Any:
    """The encoded leaf of one parameter, whose layers are the tensors `names` of the file, or None.

    A tensor is a matrix, or the stack of the matrices of experts. None for any other, and if no
    layer has a type with an encoded form whose layout differs only in the choice and order of rows.
    Layers of different types give a `Segmented` leaf; layers without an encoded form are read from
    `dense`.
    """
    if weight_map.parts:  # several tensors a layer, which are decoded
        return None
    rank, is_of_experts = len(file.tensors[names[0]].shape), "_exps." in names[0]
    if rank != 2 and not (rank == 3 and is_of_experts):
        return None
    return _leaf(
        [_of_gguf(file, name, weight_map, dense.dtype) for name in names], weight_map, dense
    )


def from_matrices(found: list[QuantizedMatrix | None], weight_map: WeightMap, dense: Lazy) -> Any:
    """The encoded leaf of one parameter of a quantized checkpoint of safetensors, or None.

    None if no layer has codes whose layout differs only in the choice and order of rows. Layers of
    different forms give a `Segmented` leaf; layers without codes are read from `dense`.
    """
    count, dtype = weight_map.parts or 1, dense.dtype
    layers = (found[i : i + count] for i in range(0, len(found), count))
    return _leaf([_of_matrices(layer, weight_map, dtype) for layer in layers], weight_map, dense)


def _of_gguf(file: Gguf, name: str, weight_map: WeightMap, dtype: Any) -> Any:
    """A tensor of a GGUF file as an encoded leaf, or None."""
    tensor, kind = file.tensors[name], file.kind(name)
    if kind in _SIXTEEN_BITS:
        return CastArray(
            jnp.asarray(weight_map.fn(tensor.load()).astype(_SIXTEEN_BITS[kind])), jnp.dtype(dtype)
        )
    *experts, n, k = tensor.shape
    place = placed(weight_map.fn, n, k) if kind in _ROWS else None
    if place is None:
        return None
    order, fold = place
    leaves = []
    for blocks in file.blocks(name).reshape(-1, n, file.row_bytes(name)):
        rows = _ROWS[kind](kind, blocks[order])
        if not rows.is_finite():
            raise ValueError(f"{file.path}: {name} has scales that are NaN or infinite")
        leaves.append(rows.leaf(fold, dtype))
    return join_layers(leaves) if experts else leaves[0]


def _of_matrices(layer: list[QuantizedMatrix | None], weight_map: WeightMap, dtype: Any) -> Any:
    """The leaf of the matrices of one layer; None if one has no codes, or they are not alike."""
    leaves = []
    for matrix in layer:
        place = None if matrix is None else _placed_matrix(matrix, weight_map.fn)
        if place is None:
            return None
        leaves.append(matrix.leaf(*place, dtype))
    joined = join_layers(leaves) if weight_map.parts else leaves[0]
    return None if isinstance(joined, Segmented) else joined


def _placed_matrix(matrix: QuantizedMatrix, fn: Callable) -> tuple[np.ndarray, Fold] | None:
    """`placed` for the tensor that a dense checkpoint has in the place of `matrix`."""
    n, k = matrix.shape
    return placed((lambda w: fn(w.T)) if matrix.turned else fn, n, k)


def _leaf(layers: list[Any], weight_map: WeightMap, dense: Lazy) -> Any:
    """One leaf of a parameter's layers; a None is read from `dense`. None if all are None."""
    if not any(map(is_encoded, layers)):
        return None
    if not weight_map.stacked:
        return layers[0]
    read = lambda i: jnp.asarray(np.asarray(dense.read(i), dense.dtype))
    return join_layers(read(i) if x is None else x for i, x in enumerate(layers))


def placed(fn: Callable, n: int, k: int) -> tuple[np.ndarray, Fold] | None:
    """(the rows taken, the fold) by which `fn` rearranges a matrix (n, k), or None.

    These rows of the matrix, in their order, are the fold's matrix of `fn`'s result. None if `fn`
    does more than take rows and transpose. `fn` is applied to matrices of row and column numbers.

    Example:
        >>> import numpy as np
        >>> placed(lambda w: w[::-1].T, 3, 2)
        (array([2, 1, 0], dtype=int32), Fold(kept=(3,), summed=(2,), order=(-1, -2)))
        >>> placed(lambda w: w + 1, 3, 2)
    """
    rows, columns = np.arange(n, dtype=np.int32), np.arange(k, dtype=np.int32)
    by_row = fn(np.broadcast_to(rows[:, None], (n, k)))
    by_column = fn(np.broadcast_to(columns[None], (n, k)))
    if by_row.ndim != 2:
        return None
    for turned in (False, True):
        first, second = (by_row.T, by_column.T) if turned else (by_row, by_column)
        if first.shape[1] != k or not 0 < len(first) <= n:
            continue
        order = np.asarray(first[:, 0])
        are_rows = order.min() >= 0 and order.max() < n and len(np.unique(order)) == len(order)
        moved = are_rows and np.array_equal(first[:, -1], order)
        if moved and np.array_equal(second[0], columns):
            return order, Fold((len(order),), (k,), (-1, -2) if turned else (-2, -1))
    return None
