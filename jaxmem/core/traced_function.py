"""Traced: a function's jaxpr with its arguments, to be looked through and run in another way."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import lax

from .loop_carries import scan_arity
from .repeated_layers import Segment, count_products, equations, repeated_layers, run_segments
from .replay import INLINED, JaxprReplay


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """A function traced on its arguments; each `run_` method gives its result.

    Arrays in host memory are traced as if they were on the device.

    Example:
        >>> import jax.numpy as jnp
        >>> traced = Traced.of(lambda x: {"sum": x.sum()}, jnp.ones(4))
        >>> traced.run_around_scans(lambda body: body), traced.layers
        ({'sum': Array(4., dtype=float32)}, [])
    """

    closed: Any  # the jaxpr and its constants
    leaves: list  # the arguments' arrays
    structure: Any  # of the result

    @classmethod
    def of(cls, fn: Callable, *args: Any, **kwargs: Any) -> "Traced":
        """`fn`, traced on its arguments, which are arrays or any pytree of them."""
        leaves, tree = jax.tree.flatten((args, kwargs))

        def flat(*leaves):
            args, kwargs = tree.unflatten(leaves)
            return fn(*args, **kwargs)

        closed, out = jax.make_jaxpr(flat, return_shape=True)(*map(_on_device, leaves))
        return cls(closed, leaves, jax.tree.structure(out))

    @property
    def names(self) -> set[str]:
        """The names that `checkpoint_name` gave to tensors."""
        inner = equations(self.closed.jaxpr.eqns)
        return {eqn.params["name"] for eqn in inner if eqn.primitive.name == "name"}

    @property
    def has_scan(self) -> bool:
        """Whether there is a scan that `run_around_scans` wraps, which is in nothing but `jit`s."""
        return any(eqn.primitive.name == "scan" for eqn in self.inlined.jaxpr.eqns)

    @property
    def scans_weights(self) -> bool:
        """Whether an outermost scan takes slices of floats that no product has changed before."""
        jaxpr = self.closed.jaxpr
        return _scans_weights(jaxpr, [False] * len(jaxpr.invars))[0]

    @functools.cached_property
    def layers(self) -> list[Segment]:
        """The layers of a Python loop, in the jaxpr without calls; see `repeated_layers`."""
        return repeated_layers(self.inlined.jaxpr)

    @functools.cached_property
    def inlined(self) -> Any:
        """The closed jaxpr with the operations of each `jit` in its place."""
        return inlined(self.closed)

    def run_around_scans(self, wrap: Callable, scan: Callable = lax.scan) -> Any:
        """The result with the body of each outermost scan wrapped, as in `around_scans`."""
        replay = JaxprReplay("allow", wrap, scan)
        return self.structure.unflatten(
            replay.run(self.closed.jaxpr, self.closed.consts, *self.leaves)
        )

    def run_segments(self, segments: list[Segment], wrap: Callable) -> Any:
        """The result with each segment, of `layers` or of groups of them, wrapped."""
        jaxpr, consts = self.inlined.jaxpr, self.inlined.consts
        return self.structure.unflatten(run_segments(jaxpr, consts, self.leaves, segments, wrap))


def inlined(closed: Any) -> Any:
    """A closed jaxpr with the operations of each `jit` in its place.

    Example:
        >>> inner = jax.jit(lambda x: x + 1)
        >>> [eqn.primitive.name for eqn in inlined(jax.make_jaxpr(inner)(1.0)).jaxpr.eqns]
        ['add']
    """
    run = lambda *args: _WithoutCalls("allow").run(closed.jaxpr, closed.consts, *args)
    return jax.make_jaxpr(run)(*closed.in_avals)


class _WithoutCalls(JaxprReplay):
    """Runs jaxprs with the operations of each `jit` in its place."""

    def step(self, eqn: Any, inputs: list) -> list:
        if eqn.primitive.name in INLINED:
            inner = eqn.params["jaxpr"]
            return self.run(inner.jaxpr, inner.consts, *inputs)
        return super().step(eqn, inputs)


def _on_device(x: Any) -> Any:
    """`x`, or for an array in host memory its shape and dtype on the device."""
    space = getattr(jax.typeof(x), "memory_space", None)
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if space == jax.memory.Space.Host else x


def _scans_weights(jaxpr: Any, is_computed: list[bool]) -> tuple[bool, list[bool]]:
    """(whether an outermost scan slices weights, for each output whether it is computed).

    A value is computed if a product or a scan comes before it; `is_computed` says this of inputs.
    """
    computed = {v for v, flag in zip(jaxpr.invars, is_computed) if flag}
    is_in = lambda v: not isinstance(v, jex.Literal) and v in computed
    for eqn in jaxpr.eqns:
        flags = [is_in(v) for v in eqn.invars]
        outputs = [any(flags) or count_products(eqn) > 0] * len(eqn.outvars)
        if eqn.primitive.name in INLINED:
            found, outputs = _scans_weights(eqn.params["jaxpr"].jaxpr, flags)
            if found:
                return True, []
        elif eqn.primitive.name == "scan":
            first = sum(scan_arity(eqn.params))
            floats = [jnp.issubdtype(v.aval.dtype, jnp.floating) for v in eqn.invars[first:]]
            if any(is_float and not flag for is_float, flag in zip(floats, flags[first:])):
                return True, []
            outputs = [True] * len(eqn.outvars)
        computed |= {v for v, flag in zip(eqn.outvars, outputs) if flag}
    return False, [is_in(v) for v in jaxpr.outvars]
