"""The tensors of a linear layer in compressed-tensors, from codes of the parameters they hold.

A weight map says where each number of a parameter lies in its tensor. Codes are such numbers, and
the number of each code's scale is another: so tensors are filled that hold several parameters, such
as q, k and v in one, or one expert each of a stack.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..architectures.weights.inverse_maps import filled, shape_of_tensors
from ..architectures.weights.weight_map import WeightMap
from ..codecs.dynamic_quantization import DynamicArray
from ..codecs.integer import IntArray
from ..core.leaf import is_encoded
from ..formats.compressed_tensors import packed as words
from . import layer_codes


@dataclasses.dataclass(frozen=True)
class CodeForm:
    """How the codes of a tensor are written; without a `group` each row has one scale."""

    bits: int  # 4 or 8
    group: int | None
    symmetric: bool
    rounds_inputs: bool  # to int8, token by token
    packed: bool  # in int32 words, else as int8


@dataclasses.dataclass(frozen=True)
class CodedTensors:
    """The tensors, all of one form, that a group of parameters makes in a run of layers."""

    shape: tuple[int, int]  # (n, k) of each
    form: CodeForm
    weight_maps: tuple[WeightMap, ...]
    leaves: tuple[Any, ...]
    places: np.ndarray  # (n, groups): the number of each scale among those of the parameters
    scale_dtype: np.dtype

    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """{the end of a name: (shape, dtype)} of the tensors that stand for one weight."""
        (n, k), groups, form = self.shape, self.places.shape[1], self.form
        words_of = lambda length: -(-length * form.bits // 32)
        i4, i8 = np.dtype("int32"), np.dtype("int8")
        is_packed = form.packed
        codes = {"_packed": ((n, words_of(k)), i4)} if is_packed else {"": ((n, k), i8)}
        tensors = codes | {"_scale": ((n, groups), self.scale_dtype)}
        if is_packed:
            tensors["_shape"] = ((2,), np.dtype("int64"))
        if not form.symmetric:
            zeros = ((words_of(n), groups), i4) if is_packed else ((n, groups), i8)
            tensors["_zero_point"] = zeros
        return tensors

    def arrays(self) -> Iterator[np.ndarray]:
        """The arrays of `shapes`, one weight after the other; one layer is in memory at a time."""
        parts = self.weight_maps[0].parts
        for layers in zip(*map(layer_codes.layers, self.leaves, self.weight_maps)):
            for part in range(parts) if parts else (None,):
                leaves = [layer_codes.unwrap(layer_codes.layer(x, part)) for x in layers]
                yield from self._arrays(leaves)

    def _arrays(self, leaves: list[IntArray]) -> Iterator[np.ndarray]:
        """The arrays of one weight; `leaves` have its parameters."""
        middle, form = 2 ** (self.form.bits - 1), self.form
        stored = lambda signed: (signed + middle).astype(np.uint8) if form.packed else signed
        layouts = [x.fn for x in self.weight_maps]
        codes = filled(self.shape, layouts, [x.fold.unfold(_signed_codes(x)) for x in leaves])
        yield words(stored(codes), form.bits) if form.packed else codes.astype(np.int8)
        yield np.concatenate([np.asarray(x.scale).reshape(-1) for x in leaves])[self.places]
        if form.packed:
            yield np.array(self.shape, np.int64)
        if not form.symmetric:
            zeros = np.concatenate([_signed_zeros(x).reshape(-1) for x in leaves])[self.places]
            packed = lambda zeros: words(np.ascontiguousarray(stored(zeros).T), form.bits).T
            yield packed(zeros) if form.packed else zeros.astype(np.int8)


def coded_tensors(
    weight_maps: Sequence[WeightMap], leaves: Sequence[Any], packed: bool
) -> CodedTensors | None:
    """The tensors of parameters in layers that are encoded alike; None if they have no exact form.

    They have one if all are `Int` with 16-bit scales, and each scale is that of a row of the tensor
    or of columns that divide it.
    """
    firsts = [_first_layer(x, weight_map) for x, weight_map in zip(leaves, weight_maps)]
    if not all(map(is_encoded, firsts)):
        return None
    inners = [jax.eval_shape(layer_codes.unwrap, x) for x in firsts]
    if not all(isinstance(x, IntArray) and x.scale.dtype != jnp.float32 for x in inners):
        return None
    rounds = {_rounds_inputs(x) for x in firsts}
    forms = {(x.zero is None, np.dtype(x.scale.dtype)) for x in inners}
    shape, layouts = shape_of_tensors(weight_maps), [x.fn for x in weight_maps]
    if len(rounds) > 1 or len(forms) > 1 or len(shape) != 2:
        return None
    places = filled(shape, layouts, _scale_numbers(inners))
    columns = next((c for c in (shape[1], inners[0].group) if _constant(places, c)), None)
    if columns is None:
        return None
    ((symmetric, scale_dtype),) = forms
    bits = 4 if max(x.bits for x in inners) <= 4 and packed else 8
    group = None if columns == shape[1] else columns
    form = CodeForm(bits, group, symmetric, rounds.pop(), packed)
    places = np.ascontiguousarray(places[:, ::columns])
    return CodedTensors(shape, form, tuple(weight_maps), tuple(leaves), places, scale_dtype)


def _first_layer(leaf: Any, weight_map: WeightMap) -> Any:
    """What one tensor is made of in the first layer; None if the leaf is not encoded by layers."""
    axes = weight_map.stacked + bool(weight_map.parts)
    if not is_encoded(leaf) or len(leaf.stack) < axes:
        return None
    for _ in range(axes):
        leaf = jax.eval_shape(lambda x: layer_codes.layer(x, 0), leaf)  # also of shapes
    return leaf


def _rounds_inputs(leaf: Any) -> bool:
    return isinstance(leaf, DynamicArray) and leaf.limits is None and leaf.to == "int8"


def _scale_numbers(leaves: list[IntArray]) -> list[np.ndarray]:
    """For each number of each parameter, the number of its scale among those of all."""
    arrays, first = [], 0
    for leaf in leaves:
        numbers = np.arange(first, first + leaf.scale.size, dtype=np.int32)
        numbers = np.swapaxes(numbers.reshape(leaf.scale.shape), -1, -2)  # (*stack, n, groups)
        k, groups = leaf.fold.k, leaf.scale.shape[-2]
        repeats = k if groups == 1 else leaf.group
        arrays.append(leaf.fold.unfold(np.repeat(numbers, repeats, -1)[..., :k]))
        first += leaf.scale.size
    return arrays


def _constant(places: np.ndarray, columns: int) -> bool:
    """Whether each run of so many columns has one scale in each row."""
    n, k = places.shape
    if k % columns:
        return False
    runs = places.reshape(n, k // columns, columns)
    return bool((runs == runs[..., :1]).all())


def _signed_codes(leaf: IntArray) -> np.ndarray:
    """code − 2^(bits−1) (*stack, n, k), int16."""
    return _of_stack(leaf, layer_codes.matrix) - np.int16(2 ** (leaf.bits - 1))


def _signed_zeros(leaf: IntArray) -> np.ndarray:
    """The zero points − 2^(bits−1) (*stack, groups, n), int16."""
    return _of_stack(leaf, layer_codes.zero_points) - np.int16(2 ** (leaf.bits - 1))


def _of_stack(leaf: IntArray, fn: Callable[[IntArray], np.ndarray]) -> np.ndarray:
    """`fn` of each unstacked leaf, stacked again."""
    if not leaf.stack:
        return fn(leaf)
    return np.stack([_of_stack(leaf.layer(i), fn) for i in range(leaf.stack[0])])
