"""TokenRun: the operations of a jaxpr that compute each token alone, run for some at a time.

The search goes back from results that have an axis of tokens. An operation belongs to the run if
each token of its result needs that token of some operands and all of others, such as weights, keys
and values. What mixes tokens, or is needed whole elsewhere, is computed once for all tokens.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import Array, lax
from jax.extend import source_info_util
from jax.interpreters import partial_eval

from .replay import INLINED, JaxprReplay
from .row_replay import ALONG_AN_AXIS, ELEMENTWISE

_SAME_SHAPE = ELEMENTWISE | {"name", "reduce_precision", "sharding_constraint", "exp2", "erf_inv"}
_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"}
_AXIS_OF = ALONG_AN_AXIS | {"concatenate": "dimension", "split": "axis"}
_CUSTOM = "custom_jvp_call"


@dataclasses.dataclass(frozen=True)
class TokenRun:
    """Operations of a jaxpr that can be run for some tokens; `find` gives it."""

    jaxpr: Any
    axis_of: dict  # the axis of tokens of each result of the run's operations
    roots: dict  # results of the jaxpr that the run computes, with their axis of tokens

    @classmethod
    def find(cls, jaxpr: Any, roots: dict) -> "TokenRun":
        """The longest run that ends in `roots`: {result of `jaxpr`: its axis of tokens}.

        Example:
            >>> fn = lambda x, w: jnp.sin(jnp.cumsum(x, 0) @ w) @ w.T
            >>> jaxpr = jax.make_jaxpr(fn)(jnp.ones((6, 4)), jnp.ones((4, 9))).jaxpr
            >>> run = TokenRun.find(jaxpr, {jaxpr.outvars[0]: 0})
            >>> [eqn.primitive.name for eqn in run.equations]
            ['dot_general', 'sin', 'dot_general']
        """
        slices: dict = {v: {axis} for v, axis in roots.items()}  # axes that the run slices it along
        whole = {v for v in jaxpr.outvars if not isinstance(v, jex.Literal) and v not in roots}
        axis_of: dict = {}
        for eqn in reversed(jaxpr.eqns):
            axes = {axis for v in eqn.outvars for axis in slices.get(v, ())}
            is_whole = any(v in whole for v in eqn.outvars)
            is_alone = len(axes) == 1 and not is_whole
            inputs = _operand_axes(eqn, *axes) if is_alone else None
            if inputs is None:
                is_used = axes or is_whole or eqn.effects
                whole |= {v for v in eqn.invars if is_used and not isinstance(v, jex.Literal)}
                continue
            axis_of |= dict.fromkeys(eqn.outvars, *axes)
            for v, axis in zip(eqn.invars, inputs):
                if isinstance(v, jex.Literal):
                    continue
                if axis is None:
                    whole.add(v)
                else:
                    slices.setdefault(v, set()).add(axis)
        roots = {v: axis for v, axis in roots.items() if v in axis_of}
        return cls(jaxpr, axis_of, roots)

    @functools.cached_property
    def equations(self) -> list:
        """The operations of the run, in order."""
        return [eqn for eqn in self.jaxpr.eqns if eqn.outvars[0] in self.axis_of]

    def __call__(self, consts: list, args: list, tokens: int) -> list:
        """The results of the jaxpr; the run computes `tokens` tokens at a time.

        The backward pass keeps what the run reads, and computes one tile at a time again.
        """
        # 1. What all tokens take part in.
        values = dict(zip((*self.jaxpr.constvars, *self.jaxpr.invars), (*consts, *args)))
        others = [eqn for eqn in self.jaxpr.eqns if eqn.outvars[0] not in self.axis_of]
        JaxprReplay("allow").run_equations(others, values)
        # 2. The run, tile by tile.
        operands = list(dict.fromkeys(pair for eqn in self.equations for pair in self._reads(eqn)))
        operands = [(v, axis) for v, axis in operands if v not in self.axis_of]
        whole = [pair for pair in operands if pair[1] is None]
        sliced = [pair for pair in operands if pair[1] is not None]
        at_hand = [values[v] for v, _ in whole]

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def of_tile(at_hand, tiles):
            known = dict(zip([*whole, *sliced], [*at_hand, *tiles]))
            for eqn in self.equations:
                axis, source = self.axis_of[eqn.outvars[0]], eqn.source_info
                reads = iter(self._reads(eqn))
                is_literal = [isinstance(v, jex.Literal) for v in eqn.invars]
                inputs = [
                    v.val if literal else known[next(reads)]
                    for v, literal in zip(eqn.invars, is_literal)
                ]
                names = source_info_util.current_name_stack() + source.name_stack
                with source_info_util.user_context(source.traceback, name_stack=names):
                    outs = _results(eqn, inputs, axis, tokens)
                known |= {(v, axis): out for v, out in zip(eqn.outvars, outs)}
            return [known[root] for root in self.roots.items()]

        step = lambda _, tiles: (None, of_tile(at_hand, tiles))
        made = lax.scan(step, None, [_cut(values[v], axis, tokens) for v, axis in sliced])[1]
        values |= {v: _joined(x, axis) for (v, axis), x in zip(self.roots.items(), made)}
        return [v.val if isinstance(v, jex.Literal) else values[v] for v in self.jaxpr.outvars]

    def _reads(self, eqn: Any) -> list:
        """(variable, its axis of tokens) of each operand of an operation that is no literal."""
        axes = _operand_axes(eqn, self.axis_of[eqn.outvars[0]])
        return [(v, a) for v, a in zip(eqn.invars, axes) if not isinstance(v, jex.Literal)]


def _cut(x: Array, axis: int, tokens: int) -> Array:
    """(tiles, ..., tokens, ...) of an array with an axis of all tokens."""
    shape = (*x.shape[:axis], -1, tokens, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _joined(tiles: Array, axis: int) -> Array:
    """The array that `_cut` cut."""
    x = jnp.moveaxis(tiles, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _operand_axes(eqn: Any, axis: int) -> list | None:
    """The axis of tokens of each operand, None where all of it is needed; `axis` is the result's.

    None in place of the list if the operation mixes tokens or is unknown.
    """
    name, out, shapes = eqn.primitive.name, eqn.outvars[0].aval, [v.aval.shape for v in eqn.invars]
    if name in _SAME_SHAPE or (name == _CUSTOM and _is_elementwise(eqn)):
        return [axis if shape[axis : axis + 1] == (out.shape[axis],) else None for shape in shapes]
    if name in _REDUCTIONS:
        return [[i for i in range(len(shapes[0])) if i not in eqn.params["axes"]][axis]]
    if name in _AXIS_OF:
        return None if eqn.params[_AXIS_OF[name]] == axis else [axis] * len(shapes)
    return _RULES[name](eqn.params, shapes, axis, out.shape) if name in _RULES else None


def _broadcast_axes(params: dict, shapes: list, axis: int, _: tuple) -> list:
    places = list(params["broadcast_dimensions"])
    i = places.index(axis) if axis in places else None
    return [None if i is None or shapes[0][i] == 1 else i]


def _transpose_axes(params: dict, shapes: list, axis: int, _: tuple) -> list:
    return [params["permutation"][axis]]


def _reshape_axes(params: dict, shapes: list, axis: int, out: tuple) -> list | None:
    sizes, before = shapes[0], math.prod(out[:axis])
    fits = lambda i: sizes[i] == out[axis] and math.prod(sizes[:i]) == before
    return [i for i in range(len(sizes)) if fits(i)][:1] or None


def _slice_axes(params: dict, shapes: list, axis: int, out: tuple) -> list | None:
    return [axis] if shapes[0][axis] == out[axis] else None


def _pad_axes(params: dict, shapes: list, axis: int, _: tuple) -> list | None:
    return [axis, None] if params["padding_config"][axis] == (0, 0, 0) else None


def _product_axes(params: dict, shapes: list, axis: int, _: tuple) -> list:
    """Of a dot_general, whose result has the axes of a batch, of x and of w in this order."""
    (x_sums, w_sums), (x_batch, w_batch) = params["dimension_numbers"]
    if axis < len(x_batch):
        return [x_batch[axis], w_batch[axis]]
    free = [
        [i for i in range(len(shape)) if i not in (*sums, *batch)]
        for shape, sums, batch in zip(shapes, (x_sums, w_sums), (x_batch, w_batch))
    ]
    i = axis - len(x_batch)
    return [free[0][i], None] if i < len(free[0]) else [None, free[1][i - len(free[0])]]


_RULES = {  # (params, shapes of the operands, axis, shape of the result) -> axes, or None
    "broadcast_in_dim": _broadcast_axes,
    "transpose": _transpose_axes,
    "reshape": _reshape_axes,
    "squeeze": _reshape_axes,
    "slice": _slice_axes,
    "pad": _pad_axes,
    "dot_general": _product_axes,
}


def _is_elementwise(eqn: Any) -> bool:
    """Whether a function with a rule of its own takes floats of one shape, number by number."""
    out = eqn.outvars[0].aval
    floats = all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in eqn.invars)
    same = all(v.aval.shape == out.shape for v in (*eqn.invars, *eqn.outvars))
    if not (floats and same and _all_elementwise(eqn.params["call_jaxpr"].jaxpr)):
        return False
    return _all_elementwise(_derivative(eqn))


def _all_elementwise(jaxpr: Any) -> bool:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in INLINED:
            if not _all_elementwise(eqn.params["jaxpr"].jaxpr):
                return False
        elif name == "broadcast_in_dim":
            if eqn.invars[0].aval.shape:
                return False
        elif name not in _SAME_SHAPE and not (name == _CUSTOM and _is_elementwise(eqn)):
            return False
    return not jaxpr.constvars


def _results(eqn: Any, inputs: list, axis: int, tokens: int) -> list:
    """The results of one operation for `tokens` tokens."""
    if eqn.primitive.name == _CUSTOM:
        return [_with_rule(eqn)(*inputs)]
    params = dict(eqn.params)
    for name in {"shape", "new_sizes", "limit_indices"} & set(params):  # of all tokens
        sizes = params[name]
        params[name] = (*sizes[:axis], tokens, *sizes[axis + 1 :])
    out = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(params))
    return list(out) if eqn.primitive.multiple_results else [out]


def _derivative(eqn: Any) -> Any:
    """The jaxpr (inputs, their tangents) -> tangent of a function with a rule of its own."""
    avals = tuple(v.aval for v in eqn.invars)
    call = lambda *xs: eqn.primitive.bind(*xs, **eqn.primitive.get_bind_params(eqn.params))[0]
    closed = jax.make_jaxpr(lambda xs, tangents: jax.jvp(call, xs, tangents)[1])(avals, avals)
    return partial_eval.dce_jaxpr(closed.jaxpr, [True], instantiate=True)[0]


def _with_rule(eqn: Any) -> Any:
    """An elementwise function with a rule of its own, for arrays of any shape."""

    @jax.custom_jvp
    def call(*xs):
        return _elementwise(eqn.params["call_jaxpr"].jaxpr, xs)[0]

    @call.defjvp
    def _(xs, tangents):
        return call(*xs), _elementwise(_derivative(eqn), (*xs, *tangents))[0]

    return call


def _elementwise(jaxpr: Any, args: tuple) -> list:
    """The results of a jaxpr of elementwise operations, for arrays of another shape."""
    values = dict(zip(jaxpr.invars, args))
    read = lambda v: v.val if isinstance(v, jex.Literal) else values[v]
    for eqn in jaxpr.eqns:
        inputs, name = [read(v) for v in eqn.invars], eqn.primitive.name
        if name in INLINED:
            outs = _elementwise(eqn.params["jaxpr"].jaxpr, inputs)
        elif name == _CUSTOM:
            outs = [_with_rule(eqn)(*inputs)]
        elif name == "broadcast_in_dim":
            outs = [jnp.broadcast_to(inputs[0], args[0].shape)]
        else:
            outs = [eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))]
        values.update(zip(eqn.outvars, outs))
    return [read(v) for v in jaxpr.outvars]
