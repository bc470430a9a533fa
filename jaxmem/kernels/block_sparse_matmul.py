"""y = Σ_j x[:, block p_j] · v_jᵀ on a TPU, for each strip of outputs: only kept blocks are read.

XLA gathers the inputs of every strip, which for more rows of x than a block has outputs is more
than the weight. Here x lies on the chip by blocks of inputs, and each strip takes those that it
reads from there; HBM sees the kept values once.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from .cost_estimate import cost

LANES = 128  # columns of a register
INPUTS = 2**20  # elements of x on the chip at a time
KEPT = 2**20  # elements of a strip on the chip at a time


def suits(height: int, inputs: int, kept: int, k: int) -> bool:
    """Whether the kernel can read strips of `height` outputs with `kept` blocks of k inputs.

    Example:
        >>> suits(128, 512, 4, 4096), suits(32, 32, 4, 4096)
        (True, False)
    """
    whole = height % LANES == 0 and inputs % LANES == 0
    return whole and height * kept * inputs <= KEPT and k <= INPUTS // LANES


def block_sparse_product(
    x: Array, values: Array, places: Array, inputs: int, n: int, precision=None, *, interpret=False
) -> Array:
    """x (m, k) times the kept blocks: (m, n) f32.

    `values` are (⌈n⌉, kept · inputs), `places` (strips, kept).
    """
    from jax.experimental import pallas as pl  # a tenth of a second, so not with jaxmem
    from jax.experimental.pallas import tpu as pltpu

    m, k = x.shape
    strips, kept = places.shape
    height, blocks = len(values) // strips, -(-k // inputs)
    x = jnp.pad(x, ((0, 0), (0, blocks * inputs - k)))
    x = x.reshape(m, blocks, inputs).swapaxes(0, 1)
    rows = min(m, INPUTS // (blocks * inputs) // LANES * LANES)

    def body(places_ref, x_ref, values_ref, y_ref):
        strip, total = pl.program_id(1), jnp.zeros(y_ref.shape, jnp.float32)
        for j in range(kept):
            read = x_ref[places_ref[strip, j]]  # (rows, inputs)
            w = values_ref[:, j * inputs : (j + 1) * inputs].astype(read.dtype)
            dims = (((1,), (1,)), ((), ()))
            total += lax.dot_general(read, w, dims, precision, preferred_element_type=jnp.float32)
        y_ref[...] = total

    out = jax.ShapeDtypeStruct((m, n), jnp.float32)
    flops = 2 * m * values.size
    return pl.pallas_call(
        body,
        out_shape=out,
        grid=(pl.cdiv(m, rows), strips),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((blocks, rows, inputs), lambda i, s: (0, i, 0)),
            pl.BlockSpec((height, kept * inputs), lambda i, s: (s, 0)),
        ],
        out_specs=pl.BlockSpec((rows, height), lambda i, s: (i, s)),
        cost_estimate=cost(x, (places, values), out, rows=rows, flops=flops),
        interpret=interpret,
    )(places.astype(jnp.int32), x, values)
