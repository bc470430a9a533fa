"""Planes: w ≈ low + (⌊code / 2^(8−b)⌋ + ½) · Δ · 2^(8−b): 8-bit codes, or their upper b bits."""

import dataclasses
import functools
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import TREE, takes
from ..core.codec import PaddedEncoder
from ..core.fold import Fold
from ..core.leaf import is_encoded
from ..core.matrix_leaf import MatrixLeaf
from ..core.padded import with_last_column
from .float16_scales import divisor, float16_above
from .host_packing import cut_packed
from .packing import join_fields, pack, shard_packed, slice_packed, unpack, unpack_rows
from .scaled import check_group, packed_matmul

_WIDTHS = (2, 1, 1, 1, 1, 1, 1)  # bits of each plane, from the highest bits down
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Planes:
    """Uniform 8-bit codes stored as nested bit planes; `at_bits` drops the lowest planes.

    The range [a, b] of a group is divided into 2^8 cells of width Δ = (b − a)/2^8. The code of x is
    ⌊(x − a)/Δ⌋: its upper bits are the codes of 2^2 to 2^7 cells. A weight decodes to the middle
    of its cell. Δ and a are float16, one pair for each output channel or `group` of its weights. A
    group that is so small that zeros are nearer than multiples of float16's smallest Δ becomes
    zeros. No solver takes this codec: a weight that `GPTQ` moves out of its cell at few bits would
    stay wrong with more bits.

    Error: |w − decode| ≤ Δ · 2^(8−bits) / 2 + |a| · 2^-11. Park et al., 2024 (Any-Precision LLM);
    Nair et al., 2025 (MatQuant).

    Raises:
        ValueError: `group` is below 1.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jnp.array([[-1.0], [0.8], [1.0]])
        >>> enc = jm.Planes().encode(w)  # .8 is in [.796875, .8046875)
        >>> [float(jm.at_bits(enc, b).decode()[1, 0]) for b in (8, 4, 2)]
        [0.80078125, 0.8125, 0.75]
        >>> ends = [float(jm.at_bits(enc, b).decode()[1, 0]) - 0.5**b for b in (8, 4)]
        >>> ends, [round(0.8 - end, 6) for end in ends]  # lower ends of its cells, and their errors
        ([0.796875, 0.75], [0.003125, 0.05])
        >>> x = jnp.linspace(-1, 1, 10_001)[:, None]  # errors: Δ²/12 of middles, Δ²/3 of ends
        >>> error = jm.at_bits(jm.Planes().encode(x), 4).decode() - x
        >>> [round(float((e**2).mean() / 0.125**2), 3) for e in (error, error - 0.125 / 2)]
        [0.083, 0.333]
    """

    _: dataclasses.KW_ONLY
    group: int | None = None
    independent_rows: ClassVar[bool] = True

    def __post_init__(self):
        check_group(self)

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "PlanesArray":
        if is_encoded(w):
            return w.map(self.encode)
        return _encode(self, w, tuple(axes))

    def padded_encoder(self):
        def cut(leaf, fold):
            group = min(leaf.group, fold.k) or 1
            rows = lambda plane, width: cut_packed((plane,), width, fold.n, axis=-2)[0]
            planes = tuple(rows(*args)[..., : fold.k] for args in zip(leaf.planes, _WIDTHS))
            scales = lambda a: a[..., : -(-fold.k // group), : fold.n]
            changed = dict(planes=planes, step=scales(leaf.step), low=scales(leaf.low))
            return dataclasses.replace(leaf, group=group, fold=fold, **changed)

        return PaddedEncoder(lambda matrix, k: _encode(self, matrix, (-1,), k), cut)


@takes(tree=TREE)
def at_bits(tree: T, bits: int) -> T:
    """The tree with every leaf of `Planes` cut to its upper `bits` (2 to 8); no array is copied.

    Leaves of `Planes` inside other leaves are cut too: those of some layers, of a `Sum`, of
    `Dynamic`.

    Raises:
        ValueError: `bits` is outside 2 to 8 or more than a leaf has, or the tree has no such leaf.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> enc = {"w": jm.Planes().encode(jnp.ones((64, 64)))}
        >>> jm.nbytes(enc), jm.nbytes(jm.at_bits(enc, 3))
        (4352, 1792)
    """
    if bits not in range(2, 9):
        raise ValueError(f"at_bits takes 2 to 8 bits, got {bits}")
    is_planes = lambda x: isinstance(x, PlanesArray)
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_planes)
    planes = [x for x in leaves if is_planes(x)]
    if not planes:
        raise ValueError("at_bits found no leaf of Planes in the tree")
    fewest = min(x.bits for x in planes)
    if bits > fewest:
        raise ValueError(f"at_bits was asked for {bits} bits of a leaf that has {fewest}")
    cut = lambda x: dataclasses.replace(x, planes=x.planes[: bits - 1])
    return structure.unflatten([cut(x) if is_planes(x) else x for x in leaves])


@functools.partial(jax.jit, static_argnums=(0, 2))
def _encode(codec, w, axes, columns=None):
    """The leaf. Compiled: step by step this would hold several f32 copies of the weight.

    Of a padded matrix the first `columns`, a traced number, are the weight's.
    """
    matrix, fold = Fold.from_weight(w, axes)
    matrix = matrix if columns is None else with_last_column(matrix, columns)
    k = fold.k
    group = min(codec.group or k, k) or 1
    x = matrix.astype(jnp.float32)
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -k % group)]
    parts = jnp.pad(x, padding, mode="edge").reshape(*x.shape[:-1], -(-k // group), group)
    low = parts.min(-1).astype(jnp.float16)
    step = float16_above((parts.max(-1) - low.astype(jnp.float32)).clip(0), 256.0)
    wide = lambda a: a.astype(jnp.float32)[..., None]
    codes = jnp.clip((parts - wide(low)) / wide(divisor(step)), 0, 255).astype(jnp.uint8)
    error = parts - wide(low) - (codes.astype(jnp.float32) + 0.5) * wide(step)
    # Zeros are nearer where float16 has no step that is small enough.
    count = None if columns is None else jnp.where(columns < group, columns, x.shape[-1] + group)
    inside = lambda a: a if count is None else jnp.where(_place(a) < count, a, 0.0)
    total = lambda a: inside(jnp.square(a)).sum(-1)
    zeros_win = total(error) > total(parts)
    low, step = (jnp.where(zeros_win, 0, a) for a in (low, step))
    codes = lax.collapse(codes, codes.ndim - 2)[..., :k]
    planes, shift = [], 8
    for width in _WIDTHS:
        shift -= width
        (plane,) = pack(codes >> shift & (1 << width) - 1, width, axis=-2)
        planes.append(plane)
    return PlanesArray(tuple(planes), step.mT, low.mT, group, fold, jnp.dtype(w.dtype))


def _place(a):
    """The column of each number of groups (*stack, n, groups, group)."""
    groups, group = a.shape[-2:]
    return jnp.arange(groups * group).reshape((1,) * (a.ndim - 2) + (groups, group))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PlanesArray(MatrixLeaf):
    """Bit planes packed along n, highest first; Δ and the smallest weight of each group."""

    planes: tuple[Array, ...]  # each (*stack, n·width/8, k) uint8
    step: Array  # (*stack, groups, n) f16
    low: Array  # (*stack, groups, n) f16
    group: int = dataclasses.field(metadata=dict(static=True))
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    batch_shape = property(lambda self: self.step.shape[:-2])
    bits = property(lambda self: len(self.planes) + 1)
    _half_cell = property(lambda self: 2.0 ** (7 - self.bits))  # in units of Δ

    def _values(self, codes, step, low):
        """The middles, in f32, of the cells of 8-bit `codes`; the bits of dropped planes are 0."""
        k = codes.shape[-1]
        wide = lambda a: jnp.repeat(a.mT.astype(jnp.float32), self.group, -1)[..., :k]
        return (codes.astype(jnp.float32) + self._half_cell) * wide(step) + wide(low)

    def _shifts(self):
        """(width, left shift of the plane's bits in the 8-bit code) of each plane."""
        return [(w, 8 - sum(_WIDTHS[: i + 1])) for i, w in enumerate(_WIDTHS[: self.bits - 1])]

    def _codes(self, read):
        """The 8-bit codes; the bits of dropped planes are 0. `read` takes a plane and its width."""
        planes = zip(self.planes, self._shifts())
        return sum(
            read((plane,), width).astype(jnp.int32) << shift for plane, (width, shift) in planes
        )

    def rows(self):
        n = self.step.shape[-1]
        codes = self._codes(lambda plane, width: unpack(plane, width, n, axis=-2))
        return self._values(codes, self.step, self.low)

    def interleaved_rows(self):
        parts = join_fields(self.planes, self._shifts(), self.step.shape[-1], axis=-2)
        part = lambda a, j: a[..., j :: len(parts)]
        return [
            self._values(codes, part(self.step, j), part(self.low, j))
            for j, codes in enumerate(parts)
        ]

    def slice_rows(self, start, size):
        planes = slice_packed(self.planes, _WIDTHS, start, size)
        step, low = (lax.dynamic_slice_in_dim(a, start, size, 1) for a in (self.step, self.low))
        return dataclasses.replace(self, planes=planes, step=step, low=low)

    def shard_matrix(self, fold, side, parts):
        layout = dict(group=self.group, widths=_WIDTHS[: len(self.planes)])
        shapes = shard_packed(self.planes, (self.step, self.low), fold, side, parts, **layout)
        if shapes is NotImplemented:
            return shapes
        planes, (step, low) = shapes
        return dataclasses.replace(self, planes=planes, step=step, low=low, fold=fold)

    def take_rows(self, index):
        flat = index.reshape(-1)
        codes = self._codes(lambda plane, width: unpack_rows(plane, width, flat))
        rows = self._values(codes, self.step[:, flat], self.low[:, flat])
        return rows.reshape(*index.shape, rows.shape[-1])

    def on_chip(self) -> dict[str, Any]:
        """The arguments of a kernel for an unstacked leaf, which joins the planes on the chip."""
        half = self._half_cell
        values = lambda codes: codes.astype(jnp.float32) + half
        layout = dict(shifts=tuple(self._shifts()), group=self.group, values=values)
        return dict(fields=self.planes, scale=self.step, low=self.low, **layout)

    def matmul(self, x, precision=None):
        return packed_matmul(x, self, precision=precision)
