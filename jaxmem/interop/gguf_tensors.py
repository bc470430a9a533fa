"""The tensors of a GGUF file that is to be written: their names, shapes, types and bytes.

A tensor holds a layer of one parameter, or of several one after the other: llama.cpp has queries,
keys and values of some architectures in one matrix. A layer of experts is a stack of matrices.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..architectures.weights.weight_map import WeightMap
from ..core.fold import Fold
from ..models.quantized_weights import placed
from . import gguf_block_bytes, layer_codes

_MATRICES = ("kernel", "embedding", "k_up", "v_up")  # the other parameters are written as numbers


@dataclasses.dataclass(frozen=True)
class TensorPart:
    """A parameter, and how a layer of it lies in its tensor.

    `order` has the rows of the tensor that are the layer's. `fold` maps the axes of a matrix of the
    layer to rows and columns, and `around` are the axes before the matrix; for a layer of plain
    numbers `fold` is None, and `around` are the axes after the first. `kind` is the type of a
    tensor that holds nothing else.
    """

    path: str
    weight_map: WeightMap
    leaf: Any
    around: tuple[int, ...]
    order: np.ndarray
    fold: Fold | None
    kind: str

    def shape(self, rows: int) -> tuple[int, ...]:
        """The shape of a tensor whose matrices have so many rows."""
        if self.fold is None:
            return (rows, *self.around)
        return (*self.around, rows, math.prod(self.fold.summed))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor: its shape and type, and the parts and layers that it holds."""

    shape: tuple[int, ...]
    kind: str
    pieces: list[tuple[TensorPart, int | None]]


def tensors(parameters: Iterable[tuple[str, WeightMap, Any]], half: bool) -> dict[str, Tensor]:
    """The tensors of parameters, which are given by their paths, weight maps and leaves.

    Parameters in one tensor get one type: theirs if it is the same, else that of decoded numbers.
    """
    parameters, rows = list(parameters), {}
    for _, weight_map, _ in parameters:
        for name in weight_map.names:
            rows[name] = rows.get(name, 0) + weight_map.shape[-1]
    pieces: dict[str, list[tuple[TensorPart, int | None]]] = {}
    for path, weight_map, leaf in parameters:
        total = rows[weight_map.names[0]]
        part = _part(path, weight_map, leaf, None if total == weight_map.shape[-1] else total, half)
        for i, name in enumerate(weight_map.names):
            pieces.setdefault(name, []).append((part, i if weight_map.stacked else None))
    made = {}
    for name, several in pieces.items():
        kinds = {part.kind for part, _ in several}
        kind = kinds.pop() if len(kinds) == 1 else "F16" if half else "F32"
        count = sum(len(part.order) for part, _ in several)
        made[name] = Tensor(several[0][0].shape(count), kind, several)
    return made


def data(tensors: Iterable[Tensor]) -> Iterator[Iterator[np.ndarray]]:
    """For each tensor, the bytes or numbers of its matrices, one after the other.

    Raises:
        ValueError: a number is NaN, infinite or beyond the range of the type.
    """
    leaves: dict[str, Any] = {}  # of the last tensor: layers that lie together are decoded once
    for tensor in tensors:
        parts = {part.path: part for part, _ in tensor.pieces}
        if set(parts) != set(leaves):
            leaves = {
                path: layer_codes.apart(part.leaf, part.weight_map) for path, part in parts.items()
            }
        yield _matrices(tensor, leaves)


def _matrices(tensor: Tensor, leaves: dict[str, Any]) -> Iterator[np.ndarray]:
    """The bytes or numbers of each matrix of a tensor; `leaves` has those of its parts by path."""
    layers = [(part, layer_codes.layer(leaves[part.path], i)) for part, i in tensor.pieces]
    order = np.argsort(np.concatenate([part.order for part, _ in layers]))
    first = layers[0][0]
    for index in np.ndindex(first.around if first.fold else ()):
        rows = []
        for part, layer in layers:
            matrix = functools.reduce(layer_codes.layer, index, layer)
            try:
                rows.append(_rows(part, matrix, tensor.kind))
            except ValueError as error:
                raise ValueError(f"{part.path}: {error}") from error
        yield np.ascontiguousarray(np.concatenate(rows)[order])


def _part(path: str, weight_map: WeightMap, leaf: Any, total: int | None, half: bool) -> TensorPart:
    """A parameter as it is written; `total` is the rows of a tensor that it is only a part of."""
    shape = weight_map.shape[1:] if weight_map.stacked else weight_map.shape
    if not path.endswith(_MATRICES) or shape[-1] == 1:
        rows, *around = shape[:-1] if shape[-1] == 1 else shape
        base, order = np.zeros(total or rows), np.arange(total or rows, dtype=float)
        if around:
            order = order[:rows].astype(int)
        else:
            order = (weight_map.fn(order) - weight_map.fn(base)).reshape(-1).astype(int)
        return TensorPart(path, weight_map, leaf, tuple(around), order, None, "F32")
    *around, first, last = shape
    sides = ((total or last, first), (first, last))
    places = (placed(weight_map.fn, *side) for side in sides)
    order, fold = next(x for x in places if x is not None and _shape(x[1]) == (first, last))
    kind = gguf_block_bytes.kind(leaf, fold, half)
    return TensorPart(path, weight_map, leaf, tuple(around), order, fold, kind)


def _shape(fold: Fold) -> tuple[int, int]:
    """The shape of the matrix whose axes a fold maps."""
    (n,), (k,) = fold.kept, fold.summed
    return (k, n) if fold.order == (-1, -2) else (n, k)


def _rows(part: TensorPart, layer: Any, kind: str) -> np.ndarray:
    """The rows of a part's matrix, in the order of the layer, as they are stored."""
    stored = gguf_block_bytes.data(layer, kind)
    if part.fold is None:
        rows = stored.reshape(-1, *part.around)
        zeros = np.zeros(part.shape(1 + part.order.max()), stored.dtype)
        return rows - part.weight_map.fn(zeros).reshape(rows.shape)  # a reader takes 1 from a gain
    is_turned = kind[0] in "FB" and part.fold.order == (-1, -2)
    return stored.T if is_turned else stored
