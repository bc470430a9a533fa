"""tiled: layers that compute some tokens of a row at a time, without a change of the model."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ..core.arguments import takes
from ..core.token_runs import TokenRun
from ..core.traced_function import Traced


@takes()
def tiled(fn: Callable, tokens: int) -> Callable:
    """`fn` whose layers compute at most `tokens` tokens of each row at a time.

    The hidden numbers of an MLP, several times as wide as its input, then exist for one tile only,
    also in the backward pass, which computes each tile again; so do scores of attention where plain
    operations compute them. What mixes tokens, such as keys and values, is computed for all of
    them. The results are those of `fn` to rounding: gradients of weights are added up tile by tile
    in their own dtype. Put `remat` round it for what layers keep: `remat(tiled(fn, 512), policy)`.

    Layers are found as `remat` finds them. The axis of tokens is the one before the last of what a
    layer hands on: (rows, tokens, width). A tile has the largest number of tokens that divides
    those of a row. Where a layer has fewer, nothing changes. Bekman et al., 2025 (ALST).

    Raises:
        ValueError: `tokens` is below 1; or when `fn` is called: no layers are found, or none that
            multiplies each token by weights.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> mlp = lambda x, w: (x + jnp.tanh(x @ w) @ w.T, None)
        >>> run = lambda w, x: jax.lax.scan(mlp, x, w)[0].sum()
        >>> w, x = jnp.ones((2, 16, 256)), jnp.ones((4, 128, 16))
        >>> temp = lambda fn: jm.memory(jax.grad(fn), w, x).temp
        >>> temp(jm.remat(tiled(run, 16), jm.Remat("full"))) < temp(jm.remat(run, jm.Remat("full")))
        True
    """
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}, expected at least 1")

    @functools.wraps(fn)
    def with_tiles(*args, **kwargs):
        traced, found = Traced.of(fn, *args, **kwargs), []
        in_tiles = functools.partial(_in_tiles, tokens=tokens, found=found)
        if traced.scans_weights or (traced.has_scan and not traced.layers):
            out = traced.run_around_scans(in_tiles)
        else:
            out = traced.run_segments(traced.layers, in_tiles)
        if not any(found):
            raise ValueError(
                f"{getattr(fn, '__name__', fn)} has no layers that multiply each token alone by "
                "weights: expected a scan over layers, or layers that repeat the same operations"
            )
        return out

    return with_tiles


def _in_tiles(layer: Callable, tokens: int, found: list[bool]) -> Callable:
    """A layer in tiles; whether it has products of a token alone is added to `found`."""

    def with_tiles(*args: Any) -> Any:
        traced = Traced.of(layer, *args)
        closed = traced.inlined
        roots = _handed_on(closed.jaxpr)
        run = TokenRun.find(closed.jaxpr, roots)
        found.append(any(eqn.primitive.name == "dot_general" for eqn in run.equations))
        steps = {v.aval.shape[axis] for v, axis in run.roots.items()}
        if not found[-1] or len(steps) > 1 or max(steps) <= tokens:
            return layer(*args)
        (step,) = steps
        tile = next(n for n in range(tokens, 0, -1) if step % n == 0)
        return traced.structure.unflatten(run(closed.consts, traced.leaves, tile))

    return with_tiles


def _handed_on(jaxpr: Any) -> dict:
    """The largest floats that a layer returns, each with its axis of tokens."""
    is_float = lambda v: not hasattr(v, "val") and jnp.issubdtype(v.aval.dtype, jnp.floating)
    floats = [v for v in jaxpr.outvars if is_float(v) and v.aval.ndim > 1]
    most = max((v.aval.size for v in floats), default=0)
    return {v: v.aval.ndim - 2 for v in floats if v.aval.size == most}
