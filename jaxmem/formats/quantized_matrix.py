"""QuantizedMatrix: a weight (n, k) of a quantized checkpoint, which is read when it is used."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..codecs.cast import CastArray
from ..codecs.dynamic_quantization import DynamicArray
from ..codecs.float_offset import AffineArray
from ..codecs.integer import IntArray
from ..codecs.packing import pack
from ..codecs.permuted import PermutedArray
from ..core.fold import Fold
from ..core.lazy import Lazy


@dataclasses.dataclass(frozen=True)
class QuantizedMatrix(abc.ABC):
    """A quantized weight of n outputs and k inputs. `name` is its module's, for messages.

    The tensor that a dense checkpoint has in its place is (n, k), or (k, n) if it is `turned`. With
    `experts` it is a stack of so many.
    """

    name: str
    shape: tuple[int, int]  # (n, k)
    turned: bool = dataclasses.field(default=False, kw_only=True)
    experts: int | None = dataclasses.field(default=None, kw_only=True)

    @abc.abstractmethod
    def leaf(self, rows: np.ndarray, fold: Fold, dtype: Any) -> Any:
        """The encoded leaf of these rows, as the parameter whose axes `fold` maps to them."""

    def tensor(self) -> Lazy:
        """The decoded tensor in f32, as a dense checkpoint has it."""
        (n, k), stack = self.shape, () if self.experts is None else (self.experts,)
        order = (-1, -2) if self.turned else (-2, -1)
        decode = lambda: self.leaf(np.arange(n), Fold((n,), (k,), order), "float32").decode()
        shape = (*stack, k, n) if self.turned else (*stack, n, k)
        return Lazy(shape, np.dtype("f4"), lambda _=None: np.asarray(decode()))


@dataclasses.dataclass(frozen=True)
class IntegerMatrix(QuantizedMatrix):
    """scale · (code − zero), or scale · code + low where there is a `low`.

    Column i of the codes stands for input order[i] where there is an `order`: the groups of
    activation order (Frantar et al., 2022).
    """

    bits: int
    group: int  # columns that share a scale
    codes: Callable[[], np.ndarray]  # (n, k) uint8
    scale: Callable[[], np.ndarray]  # (n, groups)
    zeros: Callable[[], np.ndarray] | None = None  # (n, groups) uint8; None: 2^(bits−1)
    low: Callable[[], np.ndarray] | None = None  # (n, groups)
    order: np.ndarray | None = None  # (k,)
    dynamic: bool = False  # whether its inputs are rounded to int8, token by token

    def leaf(self, rows, fold, dtype):
        codes = pack(jnp.asarray(self.codes()[rows]), self.bits, -2)
        per_group = lambda read: np.ascontiguousarray(read()[rows].T)
        metadata = (self.bits, min(self.group, self.shape[1]), fold, jnp.dtype(dtype))
        scale = jnp.asarray(per_group(self.scale))
        if self.low is not None:
            return AffineArray(codes, scale, *metadata, jnp.asarray(per_group(self.low)))
        zeros = None if self.zeros is None else per_group(self.zeros)
        if zeros is not None:
            same = (zeros == 2 ** (self.bits - 1)).all()
            zeros = None if same else pack(jnp.asarray(zeros), self.bits, -1)
        leaf = IntArray(codes, scale, zeros, *metadata)
        if self.order is not None:
            kind = np.uint16 if self.shape[1] <= 1 << 16 else np.uint32
            leaf = PermutedArray(leaf, jnp.asarray(self.order.astype(kind)))
        return DynamicArray(leaf, None, "int8") if self.dynamic else leaf


@dataclasses.dataclass(frozen=True)
class HalfMatrix(QuantizedMatrix):
    """Numbers of 16 bits, which stay so."""

    stored: Lazy

    def leaf(self, rows, fold, dtype):
        return CastArray(fold.unfold(jnp.asarray(self.stored.load()[rows])), jnp.dtype(dtype))


def halves(tensors: dict[str, Lazy]) -> dict[str, HalfMatrix]:
    """The matrices of 16 bits among the tensors of a checkpoint, by their names."""
    return {
        name: HalfMatrix(name, tuple(tensor.shape), tensor)
        for name, tensor in tensors.items()
        if len(tensor.shape) == 2 and np.dtype(tensor.dtype).name in ("float16", "bfloat16")
    }


def unpacked(words: np.ndarray, bits: int, length: int) -> np.ndarray:
    """Unpacks words of 32 bits (n, ⌈length · bits / 32⌉) to uint8 codes (n, length).

    A row's codes are one run of bits from the lowest bit of its first word on, so that a code of 3
    bits may be in two words.

    Example:
        >>> import numpy as np
        >>> unpacked(np.array([[0x76543210]], np.int32), 4, 7)
        array([[0, 1, 2, 3, 4, 5, 6]], dtype=uint8)
        >>> unpacked(np.array([[0o76543210]], np.int32), 3, 5)
        array([[0, 1, 2, 3, 4]], dtype=uint8)
    """
    data = np.ascontiguousarray(words).view(np.uint8)
    if bits == 4:
        data = np.stack([data & 15, data >> 4], -1).reshape(len(data), -1)
    elif bits != 8:
        run = np.unpackbits(data, axis=-1, count=length * bits, bitorder="little")
        place = np.uint8(1) << np.arange(bits, dtype=np.uint8)
        data = (run.reshape(len(data), length, bits) * place).sum(-1, dtype=np.uint8)
    return data[:, :length]


def group_order(g_idx: np.ndarray, group: int, name: str) -> np.ndarray | None:
    """The inputs (k,) in the order of their groups, which `g_idx` (k,) says; None if they are so.

    Raises:
        ValueError: a group has another size than `group`; the message begins with `name`.

    Example:
        >>> import numpy as np
        >>> group_order(np.array([1, 0, 0, 1]), 2, "up_proj.g_idx")
        array([1, 2, 0, 3])
    """
    order, places = np.argsort(g_idx, kind="stable"), np.arange(len(g_idx))
    if not np.array_equal(g_idx[order], places // group):
        raise ValueError(f"{name} has groups of other sizes than {group} inputs")
    return None if np.array_equal(order, places) else order


def check_tensor(tensors: dict[str, Lazy], name: str, shape: tuple[int, ...], *dtypes: str) -> Lazy:
    """The tensor of this name, which has this shape and one of these dtypes.

    Raises:
        ValueError: it is missing, or has another shape or dtype.
    """
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    tensor = tensors[name]
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    if np.dtype(tensor.dtype).name not in dtypes:
        raise ValueError(f"{name} is of {tensor.dtype}, expected {' or '.join(dtypes)}")
    return tensor


FLOATS = ("float16", "bfloat16", "float32")
WORDS = ("int32", "uint32")
