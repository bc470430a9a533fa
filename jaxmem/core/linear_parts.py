"""forward_and_backward: a function as two programs, and how values between them are read."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .replay import JaxprReplay
from .traced_function import inlined

# What these do with an operand is followed to where their results are read.
_PASSING = {
    *("add", "add_any", "sub", "neg", "max", "min", "clamp", "abs", "reduce_max", "reduce_min"),
    *("select_n", "convert_element_type", "reduce_precision", "reshape", "transpose", "squeeze"),
    *("rev", "pad", "broadcast_in_dim", "expand_dims", "slice", "dynamic_slice", "concatenate"),
    *("split", "copy", "copy_p", "name", "stop_gradient", "optimization_barrier"),
    *("sharding_constraint", "layout_constraint", "reshard", "pvary"),
}
# These are linear in an operand, or their slope is bounded: a rounding error stays one.
_TOLERANT = {
    *("dot_general", "conv_general_dilated", "ragged_dot_general", "mul", "square", "logistic"),
    *("tanh", "erf", "sin", "cos", "reduce_sum", "cumsum", "gather", "scatter-add"),
    "dynamic_update_slice",
}


@dataclasses.dataclass(frozen=True)
class Residual:
    """A value that the backward program reads.

    - source: the number of the argument that it is, or None.
    - is_fixed: whether it is computed from the arguments that are at hand in the backward pass.
    - exact: whether an operation reads it that makes a small error large, such as exp, or that
      decides by it, such as a comparison.
    """

    source: int | None
    is_fixed: bool
    exact: bool


@dataclasses.dataclass(frozen=True, eq=False)
class ForwardAndBackward:
    """The programs of a function of flat arrays.

    forward(*values) -> (outputs, residuals); backward(residuals, cotangents of the float outputs)
    -> cotangents of the float values; `recomputed(*values)` gives the residuals that are fixed.
    """

    forward: Callable
    backward: Callable
    recomputed: Callable
    residuals: tuple[Residual, ...]
    is_float: tuple[bool, ...]  # of each value


def is_float(x: Any) -> bool:
    """Whether an array, or its shape, holds floating-point numbers.

    Example:
        >>> is_float(jnp.ones(2)), is_float(jnp.arange(2))
        (True, False)
    """
    return jnp.issubdtype(x.dtype, jnp.floating)


def forward_and_backward(
    fn: Callable, values: list, is_fixed: list[bool], checkpoint: Callable = lambda fn: fn
) -> ForwardAndBackward:
    """The programs of `fn(*values) -> list of arrays`, traced on the shapes of the values.

    `is_fixed` says of each value whether the backward pass has it without keeping it, as the
    weights of a layer. `checkpoint` is applied to `fn` of the values that are differentiated, as
    `jax.checkpoint` is: it decides which values are kept.

    Example:
        >>> pair = lambda x, w: [jnp.sin(x @ w)]
        >>> programs = forward_and_backward(pair, [jnp.ones((2, 4)), jnp.eye(4)], [False, True])
        >>> [(r.source, r.is_fixed, r.exact) for r in programs.residuals]
        [(0, False, False), (1, True, False), (None, False, False)]
    """
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in values]
    floats = [i for i, x in enumerate(values) if is_float(x)]
    out_shapes = jax.eval_shape(fn, *shapes)
    float_outs = [i for i, x in enumerate(out_shapes) if is_float(x)]
    structure = []

    def forward(*values):
        def of_floats(*primals):
            merged = list(values)
            for i, x in zip(floats, primals):
                merged[i] = x
            outs = fn(*merged)
            return [outs[i] for i in float_outs], outs

        _, pullback, outs = jax.vjp(
            checkpoint(of_floats), *(values[i] for i in floats), has_aux=True
        )
        leaves, tree = jax.tree.flatten(pullback)
        structure[:] = [tree]
        return outs, leaves

    first = inlined(jax.make_jaxpr(forward)(*shapes))
    n_outs = len(out_shapes)
    leaves = first.jaxpr.outvars[n_outs:]
    keys = [id(v) if _is_literal(v) else v for v in leaves]
    places = [keys.index(key) for key in keys]  # a value that is read twice is one residual
    unique = sorted(set(places))
    order = [unique.index(place) for place in places]
    kept = [leaves[place] for place in unique]

    def pull(residuals, cotangents):
        return structure[0].unflatten([residuals[i] for i in order])(list(cotangents))

    shape_of = lambda v: jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype)
    second = jax.make_jaxpr(pull)([*map(shape_of, kept)], [out_shapes[i] for i in float_outs])
    replay = JaxprReplay("allow")

    fixed = {v for v, flag in zip(first.jaxpr.invars, is_fixed) if flag} | {*first.jaxpr.constvars}
    makers = []  # operations whose operands are all fixed
    for eqn in first.jaxpr.eqns:
        if all(_is_literal(v) or v in fixed for v in eqn.invars) and not eqn.effects:
            fixed |= {*eqn.outvars}
            makers.append(eqn)
    sources = {v: i for i, v in enumerate(first.jaxpr.invars)}
    residuals = tuple(
        Residual(
            None if _is_literal(v) else sources.get(v),
            _is_literal(v) or v in fixed,
            _needs_exact(second.jaxpr, inner),
        )
        for v, inner in zip(kept, second.jaxpr.invars)
    )
    needed = _needed(
        makers, {v for v, r in zip(kept, residuals) if r.is_fixed and r.source is None}
    )

    def run_forward(*values):
        results = replay.run(first.jaxpr, first.consts, *values)
        return results[:n_outs], [results[n_outs + place] for place in unique]

    def run_backward(residuals, cotangents):
        return replay.run(second.jaxpr, second.consts, *residuals, *cotangents)

    def recomputed(*values):
        known = dict(zip((*first.jaxpr.constvars, *first.jaxpr.invars), (*first.consts, *values)))
        replay.run_equations(needed, known)
        read = lambda v: v.val if _is_literal(v) else known[v]
        return [read(v) if r.is_fixed else None for v, r in zip(kept, residuals)]

    of_values = tuple(map(is_float, values))
    return ForwardAndBackward(run_forward, run_backward, recomputed, residuals, of_values)


def _is_literal(v: Any) -> bool:
    return hasattr(v, "val")


def _needed(eqns: list, wanted: set) -> list:
    """The operations among `eqns` that the values `wanted` depend on, in order."""
    chosen = []
    for eqn in reversed(eqns):
        if wanted & {*eqn.outvars}:
            chosen.append(eqn)
            wanted = wanted | {v for v in eqn.invars if not _is_literal(v)}
    return chosen[::-1]


def _needs_exact(jaxpr: Any, variable: Any) -> bool:
    """Whether an operation that is neither passing nor tolerant reads the variable."""
    followed = {variable}
    for eqn in jaxpr.eqns:
        places = [i for i, v in enumerate(eqn.invars) if not _is_literal(v) and v in followed]
        if not places:
            continue
        name, inner = eqn.primitive.name, _inner(eqn)
        if inner is not None:
            if any(_needs_exact(inner, inner.invars[i]) for i in places):
                return True
        elif _scales(eqn, places) or (name in _PASSING and (name != "select_n" or 0 not in places)):
            followed |= {*eqn.outvars}
        elif name == "integer_pow" and eqn.params["y"] > 0:
            continue
        elif name not in _TOLERANT or (name == "gather" and places != [0]):
            return True
    return False


def _scales(eqn: Any, places: list[int]) -> bool:
    """Whether it multiplies or divides the value by a number."""
    name, operands = eqn.primitive.name, eqn.invars
    if name == "div":
        return places == [0]
    by_number = len(places) == 1 and any(_is_literal(v) for v in operands)
    return name == "mul" and by_number


def _inner(eqn: Any) -> Any:
    """The jaxpr inside an operation whose operands are that jaxpr's, one for one; or None."""
    inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
    inner = getattr(inner, "jaxpr", inner)
    return inner if len(getattr(inner, "invars", ())) == len(eqn.invars) else None
