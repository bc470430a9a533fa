"""held: the body of a scan over layers, whose kept values wait encoded for the backward pass."""

from collections.abc import Callable
from typing import Any

import jax

from ..core.linear_parts import ForwardAndBackward, forward_and_backward
from ..core.replay import JaxprReplay
from ..core.traced_function import Traced
from .residual_codec import Held, keep, restored


def hold(body: Callable, held: Held, checkpoint: Callable = lambda fn: fn) -> Callable:
    """`body(state, arrays)` of a scan; what its gradient keeps waits as `held` says.

    The gradient comes from a custom rule: the forward pass encodes the residuals of `jax.vjp`, the
    backward pass decodes those of one layer. Arguments other than `state` (weights of the layer,
    and what the body closes over) are at hand in the backward pass, as they are: they and what is
    computed from them alone are never encoded and never kept. `checkpoint` decides which values are
    residuals. A value that is read by an operation that makes small errors large, such as exp, or
    that decides by it, such as a comparison, is kept exactly.

    The rule has no forward mode: `jax.jvp` and Hessians of it are refused by JAX.

    Example:
        >>> import jax.numpy as jnp
        >>> body = lambda x, w: (jnp.sin(x @ w), None)
        >>> run = lambda body: lambda x, ws: jax.lax.scan(body, x, ws)[0].sum()
        >>> x, ws = jnp.ones((4, 32)), jnp.sin(jnp.arange(3072.0)).reshape(3, 32, 32) / 8
        >>> exact, near = (jax.grad(run(b))(x, ws) for b in (body, hold(body, "int8")))
        >>> bool(0 < abs(exact - near).max() < 0.02)
        True
    """

    def with_held(state: Any, arrays: Any) -> Any:
        traced = Traced.of(body, state, arrays)
        values = [*traced.closed.consts, *traced.leaves]
        n_consts, n_state = len(traced.closed.consts), len(jax.tree.leaves(state))
        is_fixed = [not n_consts <= i < n_consts + n_state for i in range(len(values))]
        jaxpr = traced.closed.jaxpr
        run = lambda *values: JaxprReplay("allow").run(jaxpr, values[:n_consts], *values[n_consts:])
        programs = forward_and_backward(run, values, is_fixed, checkpoint)
        return traced.structure.unflatten(_with_rule(run, programs, held, is_fixed)(*values))

    return with_held


def _with_rule(
    run: Callable, programs: ForwardAndBackward, held: Held, is_fixed: list[bool]
) -> Callable:
    """`run(*values) -> list of arrays` with the rule of `hold`."""

    @jax.custom_vjp
    def call(*values):
        return run(*values)

    def forward(*values):
        outs, residuals = programs.forward(*values)
        kept = [
            None if r.is_fixed else keep(x, held, i, r.exact)
            for i, (x, r) in enumerate(zip(residuals, programs.residuals))
        ]
        return outs, (kept, [x if fixed else None for x, fixed in zip(values, is_fixed)])

    def backward(saved, cotangents):
        kept, at_hand = saved
        fixed = programs.recomputed(*at_hand)
        pairs = zip(programs.residuals, kept, fixed)
        residuals = [again if r.is_fixed else restored(x) for r, x, again in pairs]
        floats = [g for g in cotangents if g.dtype != jax.dtypes.float0]
        slopes = iter(programs.backward(residuals, floats))
        return tuple(next(slopes) if f else None for f in programs.is_float)

    call.defvjp(forward, backward)
    return call
