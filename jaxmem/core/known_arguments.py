"""once: fn(known, x) = rest(first(known), x), where `first` has what needs no x (Jones, 1993)."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from .arguments import ARGNUMS, takes
from .known_scan import divided
from .known_steps import is_literal, without_cheap_results
from .traced_function import inlined


@dataclasses.dataclass(frozen=True, eq=False)
class Once:
    """A function in two parts, by `once`.

    - first: takes the known arguments, and returns what `rest` needs of them: (arrays that were
      computed, arrays of the arguments as they are).
    - rest: takes that and the other arguments, and returns the result.
    - nbytes: bytes of the arrays that are computed once and kept.
    - kept: their shapes.
    - saved: how many operations `rest` is spared; one in a loop counts once.
    """

    first: Callable
    rest: Callable
    nbytes: int
    kept: tuple[jax.ShapeDtypeStruct, ...]
    saved: int


@takes(known=ARGNUMS)
def once(fn: Callable, *args: Any, known: int | Sequence[int] = (0,)) -> Once:
    """`fn(*args)` in two parts: what depends on the `known` arguments alone is computed once.

    This is partial evaluation of the jaxpr (Jones, Gomard and Sestoft, 1993). Scans are split, too:
    keys and values of a source for each layer of a decoder are computed once, although they are
    made inside its loop over layers. Nothing is kept that is quickly made of no more bytes, such as
    a broadcast or a cast to more bits; other arrays of weights, such as their casts to fewer bits,
    are kept: `nbytes` says what that takes. Loops of `while`, branches of `cond` and what
    `jax.checkpoint` wraps are not looked into.

    Both parts are functions of arrays for these shapes: jit them, differentiate them.

    Args:
        fn: a function of arrays and trees of them.
        args: its arguments, concrete or abstract; the shapes count.
        known: positions of the arguments that stay the same.

    Raises:
        ValueError: there is no argument at a position of `known`; or, when a part is called, an
            array has another shape or dtype than it had here.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> answer = lambda source, query: jax.nn.softmax(query @ jnp.tanh(source @ source.T))
        >>> source, query = jnp.ones((8, 64)), jnp.ones((4, 8))
        >>> parts = jm.once(answer, source, query, known=0)
        >>> kept = parts.first(source)
        >>> parts.nbytes, bool((jax.jit(parts.rest)(kept, query) == answer(source, query)).all())
        (256, True)
    """
    known = {known} if isinstance(known, int) else set(known)
    if not known <= set(range(len(args))):
        raise ValueError(f"once: known is {tuple(known)}, but there are {len(args)} arguments")
    leaves, tree = jax.tree.flatten(args)
    flat = lambda *leaves: fn(*tree.unflatten(leaves))
    traced, shape = jax.make_jaxpr(flat, return_shape=True)(*leaves)
    closed = inlined(traced)
    jaxpr = closed.jaxpr
    counts = [jax.tree.structure(argument).num_leaves for argument in args]
    flags = [i in known for i, count in enumerate(counts) for _ in range(count)]
    given = [v for v, flag in zip(jaxpr.invars, flags) if flag]
    others = [v for v, flag in zip(jaxpr.invars, flags) if not flag]
    consts = dict(zip(jaxpr.constvars, closed.consts))

    early, late = divided(jaxpr.eqns, {*given, *consts})
    wanted = {v for step in late for v in step.reads} | _variables(jaxpr.outvars)
    early, repeated, kept = without_cheap_results(early, wanted)
    late = [*repeated, *late]
    read = {v for step in late for v in step.reads} | _variables(jaxpr.outvars)
    handed_on = [v for v in given if v in read]

    def first(*known_args):
        values = consts | _bound(given, known_args, "first")
        for step in early:
            step.run(values)
        return [values[v] for v in kept], [values[v] for v in handed_on]

    def rest(of_known, *other_args):
        computed, same = of_known
        values = consts | _bound(others, other_args, "rest")
        values |= dict(zip((*kept, *handed_on), (*computed, *same), strict=True))
        for step in late:
            step.run(values)
        outs = [v.val if is_literal(v) else values[v] for v in jaxpr.outvars]
        return jax.tree.structure(shape).unflatten(outs)

    shapes = tuple(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in kept)
    nbytes = sum(-(-math.prod(x.shape) * jax.dtypes.itemsize_bits(x.dtype) // 8) for x in shapes)
    return Once(first, rest, nbytes, shapes, sum(step.count for step in early))


def _bound(variables: list, args: tuple, name: str) -> dict:
    """{variable: the array} of arguments that have the shapes of the variables."""
    leaves = jax.tree.leaves(args)
    if len(leaves) != len(variables):
        raise ValueError(
            f"{name}: the arguments have {len(leaves)} arrays, expected {len(variables)}"
        )
    for x, v in zip(leaves, variables):
        given = jax.typeof(x)
        if (given.shape, given.dtype) != (v.aval.shape, v.aval.dtype):
            raise ValueError(
                f"{name}: an array is {given.str_short()}, expected {v.aval.str_short()}"
            )
    return dict(zip(variables, leaves))


def _variables(values: Iterable[Any]) -> set:
    return {v for v in values if not is_literal(v)}
