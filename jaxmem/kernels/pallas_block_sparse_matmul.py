"""y = Σ_j x[:, block p_j] · v_jᵀ on a TPU, for each strip of outputs: only kept blocks are read.

XLA gathers the inputs of every strip from HBM. Where x has more rows than a block has outputs, it
so moves more bytes than the weight has. This kernel keeps x on the chip, divided into blocks of
inputs, and each strip reads its blocks there; the kept values are read from HBM once.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from .pallas_cost_estimate import cost

LANES = 128  # columns of a register
X_ELEMENTS = 2**20  # the most elements of x on the chip at a time
STRIP_ELEMENTS = 2**20  # the most kept values of a strip, which are on the chip at a time


def supports(height: int, inputs: int, kept: int, k: int) -> bool:
    """Whether the kernel can read strips of `height` outputs that keep `kept` blocks.

    A block has `height` outputs and `inputs` of the weight's k inputs.

    Example:
        >>> supports(128, 512, 4, 4096), supports(32, 32, 4, 4096)
        (True, False)
    """
    whole = height % LANES == 0 and inputs % LANES == 0
    return whole and height * kept * inputs <= STRIP_ELEMENTS and k <= X_ELEMENTS // LANES


def block_sparse_product(
    x: Array, values: Array, places: Array, inputs: int, n: int, precision=None, *, interpret=False
) -> Array:
    """x (m, k) times the weight whose kept blocks are given: (m, n) f32.

    Args:
        x: (m, k).
        values: the kept blocks of each strip side by side, (strips · height, kept · inputs).
        places: which block of inputs each kept block is, (strips, kept) integers.
        inputs: the inputs of a block.
        n: the outputs; the last strip may be longer than what is left of them.
        precision: precision of the products, as `lax.dot_general` takes it.
        interpret: whether Pallas interprets the kernel, which runs on a CPU too.
    """
    from jax.experimental import pallas as pl  # a tenth of a second, so not with jaxmem
    from jax.experimental.pallas import tpu as pltpu

    m, k = x.shape
    strips, kept = places.shape
    height, blocks = len(values) // strips, -(-k // inputs)
    # x by blocks of inputs: (blocks, m, inputs)
    x = jnp.pad(x, ((0, 0), (0, blocks * inputs - k)))
    x = x.reshape(m, blocks, inputs).swapaxes(0, 1)
    rows = min(m, X_ELEMENTS // (blocks * inputs) // LANES * LANES)  # rows of x on the chip

    def body(places_ref, x_ref, values_ref, y_ref):
        strip, total = pl.program_id(1), jnp.zeros(y_ref.shape, jnp.float32)
        for j in range(kept):
            x_block = x_ref[places_ref[strip, j]]  # (rows, inputs)
            w = values_ref[:, j * inputs : (j + 1) * inputs].astype(
                x_block.dtype
            )  # (height, inputs)
            dims = (((1,), (1,)), ((), ()))
            total += lax.dot_general(
                x_block, w, dims, precision, preferred_element_type=jnp.float32
            )
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
