"""few_rows_product: a product by the compiled library where it is there and is faster."""

from collections.abc import Callable
from typing import Any

from jax import Array

from ..kernels.dispatch import at_most, on_one_device, product_like
from .library import is_native, native


def few_rows_product(
    call: Callable[[Array, Any], Array],
    most_rows: dict[str, float],
    x: Array,
    leaf: Any,
    otherwise: Callable[[Array, Any], Array],
    least_rows: dict[str, int] | None = None,
) -> Array:
    """`call(x, leaf)`, which calls the library, for x (m, k) of few rows.

    `most_rows` has the most rows by instruction set (see `Native`), `least_rows` the fewest, if not
    one; sets that they lack count as "avx2". Where there is no library, for more or fewer rows, and
    in programs of several devices, the result is `otherwise(x, leaf)`, which is also what is
    differentiated.
    """
    if not at_most(x.shape[0], max(most_rows.values())) or 0 in (*x.shape, leaf.fold.n):
        return otherwise(x, leaf)

    def kernel(x, leaf):
        rows = lambda limits: limits.get(native().instruction_set, limits["avx2"])
        least = 1 if least_rows is None else rows(least_rows)
        is_faster = is_native() and least <= x.shape[0] <= rows(most_rows)
        return call(x, leaf) if is_faster else otherwise(x, leaf)

    return on_one_device(kernel, otherwise, x, leaf, platform="cpu", like=product_like(x, leaf))
