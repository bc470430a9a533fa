"""Functions rewritten by their jaxprs: scans wrapped, dead code dropped, inputs traced."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
from jax import lax
from jax.interpreters import partial_eval

from .traced_function import Traced


def around_scans(
    fn: Callable, wrap: Callable[[Callable], Callable], scan: Callable = lax.scan
) -> Callable:
    """`fn` with the body of each outermost scan wrapped; such a scan runs a model's layers.

    `wrap` takes the body, a function of (carry, slice) as `lax.scan` has it, and returns another,
    such as `jax.checkpoint` of it; `scan` runs it in place of `lax.scan`. Arguments are arrays or
    any pytree of them; arrays in host memory are traced as if they were on the device.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> fn = lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 3)[0]
        >>> str(jax.make_jaxpr(around_scans(fn, jax.checkpoint))(1.0)).count("policy=")
        1
    """

    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        return Traced.of(fn, *args, **kwargs).run_around_scans(wrap, scan)

    return wrapped


def without_dead_code(fn: Callable) -> Callable:
    """`fn` without what its results do not need; neither jit nor XLA sees a scan's dead carry.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> firsts = lambda xs: jax.lax.scan(lambda c, x: (c @ x, x[0]), jnp.eye(9), xs)[1]
        >>> text = str(jax.make_jaxpr(without_dead_code(firsts))(jnp.ones((4, 9, 9))))
        >>> "dot_general" in text, "scan" in text
        (False, True)
    """

    def run(*args):
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        out = jax.tree.structure(shape)
        jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * out.num_leaves)
        inputs = [x for x, is_used in zip(jax.tree.leaves(args), used) if is_used]
        return out.unflatten(jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, closed.consts))(*inputs))

    return run


def argument_dependencies(fn: Callable, *args: Any) -> list[frozenset[int]]:
    """For each array that `fn` returns, which of the flat arguments it is computed from.

    Example:
        >>> argument_dependencies(lambda x, y, z: {"a": x * y, "b": 2.0}, 1.0, 2.0, 3.0)
        [frozenset({0, 1}), frozenset()]
    """
    jaxpr = Traced.of(fn, *args).inlined.jaxpr
    sources = {v: frozenset([i]) for i, v in enumerate(jaxpr.invars)}
    read = lambda v: frozenset() if isinstance(v, jex.Literal) else sources.get(v, frozenset())
    for eqn in jaxpr.eqns:
        union = frozenset().union(*map(read, eqn.invars))
        sources |= dict.fromkeys(eqn.outvars, union)
    return [read(v) for v in jaxpr.outvars]
