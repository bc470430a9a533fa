"""Int: w ≈ scale · (code − zero), codes of 2 to 8 bits, with one scale a row or group."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import check_fields
from ..core.fold import Fold
from ..core.matrix_leaf import MatrixLeaf
from .cpu_layout import CpuRows
from .float16_scales import divisor, float16_above, float16_below
from .host_packing import cut_packed
from .integer_matmul import matmul
from .packing import (
    WIDTHS,
    centred_parts,
    pack,
    shard_packed,
    shifts,
    slice_packed,
    unpack,
    unpack_parts,
    unpack_rows,
)
from .scaled import Scaled, check_group, group_limits, pack_rows, repeat_groups


@dataclasses.dataclass(frozen=True)
class Int(Scaled):
    """Round-to-nearest integers of `bits` bits (2 to 8), truly packed, with 16-bit scales.

    There is one scale for each output channel, or for each `group` weights along the summed axes
    (the last group may be short). `symmetric=False` adds a zero point of `bits` bits to each scale.

    Error: |w − decode| ≤ scale/2, or with a zero point scale · (1/2 + 2^(bits−10)).
    A weight may be at most 65,504 · (2^(bits−1) − 1) in size; with a zero point, a group may span
    65,504 · (2^bits − 1). Weights below 2^-25 become 0. Jacob et al., 2018.

    Raises:
        ValueError: `bits` is outside 2 to 8, or `group` is below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.array([[1.1], [2.2], [3.3], [4.4], [5.5]])
        >>> [round(float(x), 4) for x in Int(8).encode(w).decode()[:, 0]]  # the scale is float16
        [1.0834, 2.2101, 3.2935, 4.4202, 5.5035]
        >>> import jax, jaxmem as jm
        >>> bert = jax.ShapeDtypeStruct((20_000, 17_000), jnp.float32)  # 3.4e8 weights
        >>> jm.nbytes(bert), jm.nbytes(jax.eval_shape(Int(8).encode, bert))  # codes, scales
        (1360000000, 340034000)
    """

    bits: int
    _: dataclasses.KW_ONLY
    group: int | None = None
    symmetric: bool = True
    independent_rows: ClassVar[bool] = True
    ignores_zeros: ClassVar[bool] = True  # the range of a group includes 0

    def __post_init__(self):
        check_fields(self)
        if self.bits not in range(2, 9):
            raise ValueError(f"Int takes 2 to 8 bits, got {self.bits}")
        check_group(self)

    def range(self, low: Array, high: Array, bits: Any = None) -> tuple[Array, Array]:
        """The f16 scale and integer zero point that span [low, high], which includes 0.

        `bits`, which may be traced, are used in place of the codec's.
        """
        return _range(low, high, self.bits if bits is None else bits, self.symmetric)

    def round(self, matrix, scale, zero, fold, dtype) -> "IntArray":
        """The leaf with the nearest codes, given scale and zero (*stack, n, groups)."""
        k = matrix.shape[-1]
        group = min(self.group or k, k) or 1
        wide = lambda a: repeat_groups(a, group, k)
        codes = nearest_codes(matrix, wide(scale), wide(zero), self.bits, self.symmetric)
        zeros = None if self.symmetric else pack(zero.mT.astype(jnp.uint8), self.bits, axis=-1)
        dtype = jnp.dtype(dtype)
        return IntArray(pack_rows(codes, self.bits), scale.mT, zeros, self.bits, group, fold, dtype)

    def snap(self, values: Array, scale: Array, zero: Array, bits: Any = None) -> Array:
        """The f32 values of the nearest codes; `scale` and `zero` have the rank of `values`.

        `bits`, which may be traced, are used in place of the codec's.

        Example:
            >>> import jax.numpy as jnp
            >>> x = jnp.array([1.1, 2.2, 3.3, 4.4, 5.5])
            >>> scale, middle = x[-1:] / 127, jnp.array([128])  # `encode` rounds to f16
            >>> [round(float(y), 4) for y in Int(8).snap(x, scale, middle)]
            [1.0827, 2.2087, 3.2913, 4.4173, 5.5]
        """
        bits = self.bits if bits is None else bits
        codes = nearest_codes(values, scale, zero, bits, self.symmetric)
        return (codes - zero.astype(jnp.float32)) * scale.astype(jnp.float32)


def rounded(matrix: Array, bits: Any, group: int | None, symmetric: bool) -> Array:
    """The f32 values that a matrix (n, k) of f32 has in integers of so many bits.

    They are those of `Int(bits, group=group, symmetric=symmetric)`, but for the last bit of a
    quotient. `bits` may be traced, so one program serves all of them.

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.array([[1.1, 2.2, 3.3, 4.4, 5.5]])
        >>> [round(float(x), 4) for x in rounded(w, jnp.int32(8), None, True)[0]]
        [1.0834, 2.2101, 3.2935, 4.4202, 5.5035]
    """
    low, high = group_limits(matrix, group)
    wide = lambda a: repeat_groups(a, group, matrix.shape[-1])
    scale, zero = map(wide, _range(low, high, bits, symmetric))
    codes = nearest_codes(matrix, scale, zero, bits, symmetric)
    return (codes - zero.astype(jnp.float32)) * scale.astype(jnp.float32)


def _range(low: Array, high: Array, bits: Any, symmetric: bool) -> tuple[Array, Array]:
    """The f16 scale and integer zero point that span [low, high], which includes 0."""
    if symmetric:
        high = jnp.maximum(-low, high)
        scale = float16_above(high, _number((1 << bits - 1) - 1))
        return scale, jnp.full(high.shape, 1 << bits - 1)
    top = (1 << bits) - 1
    # Round down: then both ends of the range are exactly representable, and encoding again
    # changes nothing.
    scale = float16_below(high - low, _number(top))
    zero = jnp.round(-low / divisor(scale)).astype(jnp.int32)
    return scale, jnp.clip(zero, 0, top)


def nearest_codes(values: Array, scale: Array, zero: Array, bits: Any, symmetric: bool) -> Array:
    """The nearest codes of so many bits, which may be traced, in f32."""
    codes = jnp.round(values / divisor(scale)) + zero.astype(jnp.float32)
    return jnp.clip(codes, 1 if symmetric else 0, _number((1 << bits) - 1))


def _number(code: Any) -> Any:
    """A code to calculate with: f32 where it is traced."""
    return code if isinstance(code, int) else code.astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IntArray(MatrixLeaf):
    """Integer codes packed along n, scales (*stack, groups, n), and packed zero points.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> table = jm.Int(8).encode(jnp.array([[127.0, 5.0], [3.0, 127.0], [-127.0, 8.0]]), (-1,))
        >>> ids, look_up = jnp.array([2, 0]), jm.lift(lambda w, x: w[x])
        >>> look_up(table, ids).tolist()
        [[-127.0, 8.0], [127.0, 5.0]]
        >>> jm.lift(lambda w, x: jax.nn.one_hot(x, 3) @ w)(table, ids).tolist()
        [[-127.0, 8.0], [127.0, 5.0]]
    """

    codes: tuple[Array, ...]  # bit fields, each (*stack, n·width/8, k) uint8; int8 when 8 bits
    scale: Array  # (*stack, groups, n) f16
    zero: tuple[Array, ...] | None  # bit fields, each (*stack, groups, n·width/8)
    bits: int = dataclasses.field(metadata=dict(static=True))
    group: int = dataclasses.field(metadata=dict(static=True))
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    batch_shape = property(lambda self: self.scale.shape[:-2])
    read_as_stored = property(lambda self: self.bits == 8 and self.scale.shape[-2] == 1)
    reads_in_stack = True

    @property
    def middle_code(self) -> int | None:
        """The stored code that means 0, if it is one for all groups."""
        middle = 0 if self.bits == 8 else 2 ** (self.bits - 1)
        return middle if self.zero is None else None

    def as_int_array(self) -> "IntArray":
        return self

    def scales(self) -> Array:
        """(*stack, groups, n) in f32."""
        return self.scale.astype(jnp.float32)

    def zeros(self) -> Array | int:
        """The code that means 0, as `unpack` gives codes: int32 (*stack, groups, n), or one int."""
        if self.zero is None:
            return 0 if self.bits == 8 else 2 ** (self.bits - 1)
        return unpack(self.zero, self.bits, self.scale.shape[-1], axis=-1).astype(jnp.int32)

    def rows(self):
        codes = unpack(self.codes, self.bits, self.scale.shape[-1], axis=-2)
        return self._values(codes, self.scale, self.zeros())

    def interleaved_rows(self):
        n, zeros = self.scale.shape[-1], self.zeros()
        parts = unpack_parts(self.codes, self.bits, n, axis=-2)
        if self.zero is None:
            zeros = [zeros] * len(parts)
        else:
            zeros = unpack_parts(self.zero, self.bits, n, axis=-1)
        scales = [self.scale[..., j :: len(parts)] for j in range(len(parts))]
        return list(map(self._values, parts, scales, zeros))

    def prepare_for_cpu(self, x):
        rows = CpuRows.from_leaf(self)
        if self.zero is None:
            return rows, None
        zero = centred_parts(self.zero, self.bits, self.scale.shape[-1], axis=-1)
        zero_values = lambda j, scale: -zero[j].astype(jnp.float32) * scale
        return rows, rows.times_group_values(x, zero_values)

    def _values(self, codes, scale, zeros):
        """Rows in f32 from codes (*stack, rows, k), scales and zeros (*stack, groups, rows)."""
        if scale.shape[-2] == 1:
            wide = lambda a: a.mT
        else:
            wide = lambda a: jnp.repeat(a.mT, self.group, -1)[..., : codes.shape[-1]]
        zeros = zeros if self.zero is None else wide(zeros.astype(jnp.float32))
        return (codes.astype(jnp.float32) - zeros) * wide(scale.astype(jnp.float32))

    def slice_rows(self, start, size):
        widths = WIDTHS[self.bits]
        codes = slice_packed(self.codes, widths, start, size)
        zero = self.zero and slice_packed(self.zero, widths, start, size, axis=1)
        scale = lax.dynamic_slice_in_dim(self.scale, start, size, 1)
        return dataclasses.replace(self, codes=codes, scale=scale, zero=zero)

    def split_rows(self, parts: int) -> "IntArray":
        """The rows of an unstacked leaf as a stack (parts, n / parts, k): 8 divides n / parts."""
        cut = lambda a: a.reshape(parts, -1, a.shape[-1])
        along = lambda a: jnp.moveaxis(a.reshape(len(a), parts, -1), 1, 0)
        codes, zero = tuple(map(cut, self.codes)), self.zero and tuple(map(along, self.zero))
        fold = Fold((self.fold.n // parts,), (self.fold.k,), (-2, -1))
        changed = dict(codes=codes, scale=along(self.scale), zero=zero, fold=fold)
        return dataclasses.replace(self, **changed)

    def cut(self, fold):
        group = min(self.group, fold.k) or 1
        groups = -(-fold.k // group)
        codes = cut_packed(self.codes, self.bits, fold.n, axis=-2)
        codes = tuple(a[..., : fold.k] for a in codes)
        scale, zero = self.scale[..., :groups, : fold.n], self.zero
        if zero is not None:
            zero = cut_packed(zero, self.bits, fold.n, axis=-1)
            zero = tuple(a[..., :groups, :] for a in zero)
        changed = dict(codes=codes, scale=scale, zero=zero, group=group, fold=fold)
        return dataclasses.replace(self, **changed)

    def shard_matrix(self, fold, side, parts):
        layout = dict(group=self.group, widths=WIDTHS[self.bits])
        shapes = shard_packed(self.codes, (self.scale, self.zero), fold, side, parts, **layout)
        if shapes is NotImplemented:
            return shapes
        codes, (scale, zero) = shapes
        return dataclasses.replace(self, codes=codes, scale=scale, zero=zero, fold=fold)

    def take_rows(self, index):
        flat, zeros = index.reshape(-1), self.zeros()
        zeros = zeros if self.zero is None else zeros[:, flat]
        rows = self._values(unpack_rows(self.codes, self.bits, flat), self.scale[:, flat], zeros)
        return rows.reshape(*index.shape, rows.shape[-1])

    def on_chip(self) -> dict[str, Any]:
        """The arguments of a kernel for an unstacked leaf."""
        zero = None if self.zero is None else self.zeros().astype(jnp.int8)
        centre = self.zeros() if self.zero is None else 0
        layout = dict(shifts=tuple(shifts(self.bits)), group=self.group)
        values = lambda codes: (codes - centre).astype(jnp.float32)
        return dict(fields=self.codes, scale=self.scale, zero=zero, values=values, **layout)

    def matmul(self, x, precision=None):
        return matmul(x, self, precision=precision)

    def layer_matmul(self, x, layer, precision=None):
        return matmul(x, layer, precision=precision)
