"""compiled_rows: how many rows of x the compiled library multiplies together in a short prompt."""

from typing import Any

import jax

from ..core.leaf import is_encoded
from ..cpu_kernels.library import native

# Rows of a short prompt that are multiplied together, by instruction set.
ROWS = {"avx512-vnni": 8, "avx2": 4, "baseline": 2}
LEAST_SHARE = 0.75  # of the weights that the library multiplies


def compiled_rows(params: Any) -> int:
    """Rows of x that one call of the library multiplies with most of `params`; 0 without it.

    It is 0 too for params that are not all on one CPU.

    Example:
        >>> import jax.numpy as jnp
        >>> compiled_rows({"kernel": jnp.ones((8, 8))})  # not encoded
        0
    """
    leaves = jax.tree.leaves(params, is_leaf=is_encoded)
    encoded = sum(leaf.size for leaf in leaves if getattr(leaf, "reads_in_stack", False))
    devices = {device for array in jax.tree.leaves(params) for device in array.devices()}
    on_cpu = [device.platform for device in devices] == ["cpu"]
    if not on_cpu or encoded < LEAST_SHARE * sum(leaf.size for leaf in leaves):
        return 0
    instruction_set = native().instruction_set
    return 0 if instruction_set is None else ROWS.get(instruction_set, ROWS["avx2"])
