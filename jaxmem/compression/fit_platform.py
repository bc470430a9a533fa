"""A CPU, TPU or GPU as a target of `fit`: the integers that it multiplies without decoding them."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..codecs import Int
from ..core.byte_counts import nbytes as count_bytes
from ..core.byte_counts import shape_of
from ..core.leaf import is_dense_float
from ..core.paths import is_whole, paths
from ..core.usage import summed_axes
from .candidates import CANDIDATES, TWO_BITS, is_matrix
from .leaf_shapes import abstract_leaf
from .product_forms import Platform, has_fast_product

# (integers with scales by group, integers with one scale a row)
USUAL = CANDIDATES, tuple(Int(bits, symmetric=False) for bits in range(3, 9))
WITH_TWO_BITS = (*TWO_BITS, *USUAL[0]), (Int(2, symmetric=False), *USUAL[1])


def fast_integers(
    params: Any,
    nbytes: int,
    platform: Platform,
    uses: Mapping | None,
    *,
    many_rows: bool = False,
) -> dict[str, tuple]:
    """{regex: codecs} for `budget`: the integers of 3 to 8 bits that a platform multiplies fast.

    They have scales by group where the platform multiplies such groups fast, and one scale a row
    elsewhere. Kernels of convolutions, which are decoded, have no candidate. As in `fit` without a
    target, 2 bits are candidates only where 3 take more than `nbytes`.

    Args:
        params: the dense params, lazy or abstract too.
        nbytes: the most bytes that the encoded params may take.
        platform: what multiplies them.
        uses: how the model uses each weight.
        many_rows: whether every product has many rows, as those of an encoder, which never reads
            one token alone. A CPU would decode groups for them, so each row has one scale.

    Raises:
        ValueError: the platform multiplies no weight of `params` fast.

    Example:
        >>> import jax.numpy as jnp
        >>> found = fast_integers({"w": jnp.ones((256, 8))}, 10**4, "gpu", None)
        >>> [(codec.bits, codec.group) for codec in found["w"]][:2]
        [(3, None), (4, None)]
    """
    leaves = dict(zip(paths(params), jax.tree.leaves(params, is_leaf=is_whole)))
    first = int(many_rows and platform == "cpu")
    for integers in (USUAL[first:], WITH_TWO_BITS[first:]):
        found, least = {}, 0
        for path, leaf in leaves.items():
            sizes = _sizes(path, leaves, platform, uses, integers)
            least += min(sizes.values(), default=count_bytes(shape_of(leaf)))
            found |= {re.escape(path): tuple(sizes)} if sizes else {}
        if least <= nbytes:
            break
    if not found:
        what = f"target {platform!r} multiplies no weight in few bits"
        raise ValueError(f"{what}: kernels of convolutions are decoded there; leave it out")
    return found


def _sizes(path, leaves, platform, uses, integers) -> dict[Int, int]:
    """{codec: bytes of the weight} of the codecs that the platform multiplies fast."""
    leaf = leaves[path]
    if not is_dense_float(leaf) or not is_matrix(leaf, path, uses):
        return {}
    if any(use.op == "conv_general_dilated" for use in (uses or {}).get(path, ())):
        return {}
    shape, axes = shape_of(leaf), tuple(summed_axes(path, uses, leaves))
    for codecs in integers:
        found = {c: abstract_leaf(c, axes, shape.shape, jnp.dtype(shape.dtype)) for c in codecs}
        fast = {c: count_bytes(x) for c, x in found.items() if has_fast_product(x, platform)}
        if fast:
            return fast
    return {}
