"""form: what decides the time of a product with an encoded weight, and which devices are fast."""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from ..codecs.codebook import CodebookArray
from ..codecs.dynamic_quantization import DynamicArray
from ..codecs.float_formats import FloatArray
from ..codecs.integer import IntArray
from ..codecs.low_rank import LowRankArray
from ..codecs.nm import NMArray
from ..codecs.scaled import ScaledArray
from ..codecs.sum import SumArray
from ..core.leaf import is_encoded
from ..kernels import pallas_packed_matmul

Platform = Literal["cpu", "tpu", "gpu"]
PLATFORMS: tuple[Platform, ...] = get_args(Platform)
ONE_GROUP = 2**13  # a row with one scale counts as a group so long, to find the closest form


class ProductForm(NamedTuple):
    """How a weight is stored, but for its shape.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> w = jax.ShapeDtypeStruct((128, 8), jnp.float32)
        >>> form(jax.eval_shape(jm.Int(4, group=64, symmetric=False).encode, w))
        ProductForm(kind='int', bits=4, group=64, zero_points=True)
    """

    kind: str  # "int", a name of levels or of a float format such as "nf4", a dtype if it is dense
    bits: int  # of a code, or of a dense number
    group: int | None = None  # weights that share a scale; None: a row has one, or none
    zero_points: bool = False

    def __str__(self) -> str:
        name = f"int{self.bits}" if self.kind == "int" else self.kind
        group = f" g{self.group}" if self.group else ""
        return f"{name}{group}{', zero points' * self.zero_points}"


def form(leaf: Any) -> ProductForm | None:
    """The form of a dense array or an encoded leaf, abstract or not; None of those without a name.

    Example:
        >>> import jax.numpy as jnp
        >>> print(form(jnp.ones((8, 8), jnp.bfloat16)))
        bfloat16
    """
    if not is_encoded(leaf):
        dtype = jnp.dtype(leaf.dtype)
        return ProductForm(dtype.name, 8 * dtype.itemsize)
    if isinstance(leaf, DynamicArray):  # its product with one row is that of the weight inside
        return form(leaf.inner)
    if not isinstance(leaf, IntArray | CodebookArray | FloatArray):
        return None
    group = leaf.group if leaf.scale.shape[-2] > 1 else None
    if isinstance(leaf, IntArray):
        return ProductForm("int", leaf.bits, group, leaf.zero is not None)
    return ProductForm(
        leaf.levels if isinstance(leaf, CodebookArray) else leaf.format, leaf.bits, group
    )


def closest(wanted: ProductForm, forms: Any) -> ProductForm | None:
    """Of the forms with as many bits of the same kind, the one with groups of the closest length.

    Example:
        >>> rows, groups = ProductForm("int", 4), ProductForm("int", 4, 64, True)
        >>> closest(ProductForm("int", 4, 32), [rows, groups]) == groups
        True
        >>> closest(ProductForm("nf4", 4), [rows, groups]) is None
        True
    """
    length = lambda f: math.log2(f.group or ONE_GROUP)
    alike = [f for f in forms if (f.kind, f.bits) == (wanted.kind, wanted.bits)]
    distance = lambda f: (abs(length(f) - length(wanted)), f.zero_points != wanted.zero_points)
    return min(alike, key=distance, default=None)


def has_fast_product(leaf: Any, platform: Platform) -> bool:
    """Whether a platform multiplies one row by a leaf without writing decoded weights to memory.

    A CPU does if the compiled library (`jm.native`) has a product of the form, a TPU if a kernel
    reads the form or one scale a row multiplies its sum; a GPU, for which there is no kernel, only
    in the last case. The leaf may be abstract. A dense array is fast anywhere.
    """
    if isinstance(leaf, SumArray | LowRankArray):
        parts = leaf.parts if isinstance(leaf, SumArray) else (leaf.u, leaf.v)
        return all(has_fast_product(part, platform) for part in parts)
    if isinstance(leaf, NMArray):
        on_cpu = platform == "cpu" and leaf.has_kept_integers()
        return on_cpu or (platform == "tpu" and _has_kernel(leaf))
    if not isinstance(leaf, IntArray | ScaledArray):
        return not is_encoded(leaf)
    if platform == "cpu":
        return leaf.reads_in_stack
    groups = leaf.scale.shape[-2]
    by_rows = groups == 1 and getattr(leaf, "low", None) is None
    reads = pallas_packed_matmul.supports(leaf.fold.k, leaf.group, groups)
    return by_rows or (platform == "tpu" and reads)


def _has_kernel(leaf: NMArray) -> bool:
    """Whether a kernel of a TPU reads each matrix of a leaf, which may be abstract."""
    stack, found = len(leaf.batch_shape), []
    cut = lambda a: jax.ShapeDtypeStruct(a.shape[stack:], a.dtype)
    jax.eval_shape(lambda one: found.append(one.on_chip() is not None), jax.tree.map(cut, leaf))
    return found[0]
