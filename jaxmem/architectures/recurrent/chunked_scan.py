"""y_t = Σ_(u ≤ t) exp(s_t - s_u) (c_t · b_u) step_u x_u + exp(s_t) c_t · h_0, chunk by chunk.

s_t is the sum of step * decay from the chunk's first token to t. Where a head has one decay, a
selective scan is this product of all pairs of tokens in a chunk, and a scan over the states between
the chunks (Dao & Gu, 2024, Mamba-2): a prompt takes a loop over chunks, and not over tokens.
"""

import jax.numpy as jnp
from jax import Array, lax

CHUNK_TOKENS = 64


def chunked_scan(
    x: Array, step: Array, decay: Array, b: Array, c: Array, state: Array
) -> tuple[Array, Array]:
    """(the outputs (B, T, G, H, P) in f32, the state after them), as of `selective_scan`.

    Takes CHUNK_TOKENS² f32 numbers for each head of a text, besides the outputs.

    Args:
        x: inputs (B, T, G, H, P): groups, heads of a group, channels of a head.
        step: (B, T, G, H) in f32, above 0.
        decay: (1, 1, G, H, 1) in f32, below 0: one for each head.
        b: what writes the state, (B, T, N, G).
        c: what reads it, (B, T, N, G).
        state: before the first token, (B, N, G, H, P) in f32.
    """
    tokens = x.shape[1]
    size = min(CHUNK_TOKENS, tokens)
    # A step of 0 keeps the state and writes nothing: such tokens fill the last chunk.
    pad = lambda y: jnp.pad(y, [(0, 0), (0, -tokens % size)] + [(0, 0)] * (y.ndim - 2))
    cut = lambda y: pad(y.astype(jnp.float32)).reshape(y.shape[0], -1, size, *y.shape[2:])
    chunks = tuple(cut(y).swapaxes(0, 1) for y in (x, step, b, c))
    is_past = jnp.tri(size, dtype=bool)[None, :, :, None, None]  # (1, t, u, 1, 1): u ≤ t

    def read(state: Array, chunk: tuple):
        x, step, b, c = chunk
        total = jnp.cumsum(step * decay[:, :, ..., 0], axis=1)  # s, (B, t, G, H)
        written = x * step[..., None]
        difference = jnp.where(is_past, total[:, :, None] - total[:, None], -jnp.inf)
        shares = jnp.exp(difference) * _einsum("btng,bung->btug", c, b)[..., None]
        y = _einsum("btugh,bughp->btghp", shares, written)
        y += _einsum("btng,bnghp->btghp", c, state) * jnp.exp(total)[..., None]
        end = total[:, -1:]
        left = written * jnp.exp(end - total)[..., None]
        state = state * jnp.exp(end)[..., None] + _einsum("bung,bughp->bnghp", b, left)
        return state, y

    state, y = lax.scan(read, state, chunks)
    return y.swapaxes(0, 1).reshape(x.shape[0], -1, *x.shape[2:])[:, :tokens], state


def _einsum(axes: str, *arrays: Array) -> Array:
    """The sum of products in full f32, which is as precise as a scan token by token."""
    return jnp.einsum(axes, *arrays, precision=lax.Precision.HIGHEST)
