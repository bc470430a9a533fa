"""RowReplay: a function of a matrix (n, k) computed for some rows at a time, by its jaxpr.

Operations that take each row for itself run on the rows that are asked for. Sums and extremes over
all rows are computed once, in a loop over blocks of rows.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .fold import Fold, matrix_shape
from .row_slices import scan_rows

ELEMENTWISE = {
    *("abs", "add", "and", "ceil", "clamp", "convert_element_type", "copy", "cos", "div", "eq"),
    *("erf", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log"),
    *("log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow", "rem"),
    *("round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "stop_gradient", "sub"),
    *("tan", "tanh", "xor"),
}
ALONG_AN_AXIS = {"cumsum": "axis", "cummax": "axis", "cummin": "axis", "sort": "dimension"}
REDUCTIONS = {  # how two parts of a result become one, and what the first part is added to
    "reduce_sum": (jnp.add, 0),
    "reduce_prod": (jnp.multiply, 1),
    "reduce_max": (jnp.maximum, -jnp.inf),
    "reduce_min": (jnp.minimum, jnp.inf),
}
_BROADCAST = "broadcast_in_dim"
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr"}


@dataclasses.dataclass(frozen=True, eq=False)
class _Value:
    """A value of the function; a jaxpr that is called twice has its variables twice."""

    aval: Any


@dataclasses.dataclass(frozen=True, eq=False)
class RowReplay:
    """A function of a matrix whose result (n, k) can be computed for some rows; see `of`."""

    operations: dict  # value -> (operation, its inputs, all its results)
    row_axis: dict  # value -> its axis that counts the matrix's rows
    known: dict  # value -> the array, of those that have no such axis
    matrix: Any  # the value that stands for the matrix
    result: Any
    w: Any
    axes: tuple[int, ...]

    @classmethod
    def of(cls, fn: Callable, w: Any, axes: tuple[int, ...]) -> "RowReplay | None":
        """`fn` of the matrix in f32 of `w`, whose products sum over `axes`.

        None where an operation needs several rows at once, and is no sum or extreme over them.

        Args:
            fn: takes the matrix (n, k) in f32, and returns an array (n, k).
            w: one layer of a weight, an array or what is read by slices.
            axes: negative.

        Example:
            >>> w = jnp.array([[1.0, 3.0], [3.0, 1.0], [6.0, 2.0]])  # inputs, outputs
            >>> share = lambda matrix: matrix / matrix.max(0)[None]
            >>> RowReplay.of(share, w, (-2,)).rows(w[:, 1:], 1).tolist()
            [[1.0, 0.3333333432674408, 0.3333333432674408]]
            >>> RowReplay.of(lambda matrix: matrix @ matrix.T @ matrix, w, (-2,)) is None
            True
        """
        closed = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct(matrix_shape(w, axes), jnp.float32))
        jaxpr = closed.jaxpr
        names = {v: _Value(v.aval) for v in (*jaxpr.invars, *jaxpr.constvars)}
        matrix = names[jaxpr.invars[0]]
        known = dict(zip((names[v] for v in jaxpr.constvars), closed.consts))
        replay = cls({}, {matrix: 0}, known, matrix, None, w, axes)
        try:
            replay._add(jaxpr.eqns, names)
        except NotImplementedError:
            return None
        result = _read(jaxpr.outvars[0], names)
        return dataclasses.replace(replay, result=result) if replay._axis(result) == 0 else None

    def rows(self, rows: Array, start: Any) -> Array:
        """The result (r, k) of some rows of the weight; the first has the index `start`."""
        return self._of_rows(self.result, rows, start)

    def _add(self, equations: Any, names: dict) -> None:
        """Adds operations in order; `names` has the values of the variables of their jaxpr."""
        for eqn in equations:
            inputs = [_read(v, names) for v in eqn.invars]
            if eqn.primitive.name in CALLS:
                inner = eqn.params[CALLS[eqn.primitive.name]]
                inside = dict(zip(inner.jaxpr.invars, inputs))
                inside |= {v: _Value(v.aval) for v in inner.jaxpr.constvars}
                consts = (inside[v] for v in inner.jaxpr.constvars)
                self.known.update(zip(consts, inner.consts))
                self._add(inner.jaxpr.eqns, inside)
                results = (_read(v, inside) for v in inner.jaxpr.outvars)
                names.update(zip(eqn.outvars, results))
                continue
            results = [_Value(v.aval) for v in eqn.outvars]
            names.update(zip(eqn.outvars, results))
            axis = self._axis_of_result(eqn, inputs)
            if axis is not None:
                self.operations.update((v, (eqn, inputs, results)) for v in results)
                self.row_axis.update((v, axis) for v in results)
            elif self._row_axes(inputs):
                self.known[results[0]] = self._over_rows(eqn, inputs[0])
            else:
                whole = [self._whole(x) for x in inputs]
                self.known.update(zip(results, _results(eqn, whole, eqn.params)))

    def _axis_of_result(self, eqn: Any, inputs: list) -> int | None:
        """The axis of rows of an operation's results; None if they are of all rows, or of none.

        Raises:
            NotImplementedError: the operation needs several rows at once.
        """
        name, params, n = eqn.primitive.name, eqn.params, self.matrix.aval.shape[0]
        axes = self._row_axes(inputs)
        if not axes:  # a value that is repeated for each row can be repeated for some
            return _repeated_axis(params, inputs[0].aval.shape, n) if name == _BROADCAST else None
        if len(axes) > 1:
            raise NotImplementedError
        (axis,) = axes
        if name in ELEMENTWISE or params.get(ALONG_AN_AXIS.get(name), axis) != axis:
            return axis
        if name in (*REDUCTIONS, "reduce_and", "reduce_or") and axis not in params["axes"]:
            return axis - sum(a < axis for a in params["axes"])
        if name in REDUCTIONS and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
            return None
        return _moved_axis(eqn, axis)

    def _axis(self, v: Any) -> int | None:
        return None if hasattr(v, "val") else self.row_axis.get(v)

    def _row_axes(self, inputs: list) -> set[int]:
        return {self._axis(v) for v in inputs} - {None}

    def _whole(self, v: Any) -> Any:
        return v.val if hasattr(v, "val") else self.known[v]

    def _of_rows(self, result: Any, rows: Array, start: Any) -> Array:
        """The part of a variable that belongs to some rows of the weight."""
        matrix = Fold.from_weight(rows, self.axes)[0].astype(jnp.float32)
        count, values = len(matrix), {self.matrix: matrix}

        def part(v, eqn, axis):
            if self._axis(v) is not None:
                return value(v)
            whole = self._whole(v)
            is_repeated = eqn.primitive.name == _BROADCAST or jnp.ndim(whole) == 0
            if is_repeated or jnp.shape(whole)[axis] == 1:
                return whole
            return lax.dynamic_slice_in_dim(whole, start, count, axis)

        def value(v):
            if v not in values:
                (eqn, inputs, results), axis = self.operations[v], self.row_axis[v]
                params = dict(eqn.params)
                for name in {"shape", "new_sizes"} & set(params):
                    sizes = params[name]
                    params[name] = (*sizes[:axis], count, *sizes[axis + 1 :])
                parts = [part(x, eqn, axis) for x in inputs]
                values.update(zip(results, _results(eqn, parts, params)))
            return values[v]

        return value(result)

    def _over_rows(self, eqn: Any, operand: Any) -> Array:
        """A sum, a product or an extreme over all rows, block by block."""
        combine, first = REDUCTIONS[eqn.primitive.name]
        part = lambda rows, start: eqn.primitive.bind(
            self._of_rows(operand, rows, start), **eqn.params
        )
        out = eqn.outvars[0].aval
        step = lambda total, rows, start: combine(total, part(rows, start))
        return scan_rows(step, jnp.full(out.shape, first, out.dtype), self.w, self.axes)


def _read(v: Any, names: dict) -> Any:
    """The value of a variable; a literal stands for itself."""
    return v if hasattr(v, "val") else names[v]


def _results(eqn: Any, inputs: list, params: dict) -> list:
    """An operation's results."""
    out = eqn.primitive.bind(*inputs, **params)
    return out if eqn.primitive.multiple_results else [out]


def _repeated_axis(params: dict, shape: tuple[int, ...], n: int) -> int | None:
    """The first axis of n along which a broadcast repeats an array; None where there is none."""
    lengths = dict(zip(params["broadcast_dimensions"], shape))
    repeated = [a for a, m in enumerate(params["shape"]) if m == n and lengths.get(a, 1) == 1]
    return repeated[0] if repeated and math.prod(params["shape"]) > n else None


def _moved_axis(eqn: Any, axis: int) -> int:
    """Where an operation that only moves axes puts one of them.

    Raises:
        NotImplementedError: it is no such operation.
    """
    name, old = eqn.primitive.name, eqn.invars[0].aval.shape
    if name == _BROADCAST:
        return eqn.params["broadcast_dimensions"][axis]
    if name == "transpose":
        return eqn.params["permutation"].index(axis)
    if name in ("reshape", "squeeze"):
        new = eqn.outvars[0].aval.shape
        for a, size in enumerate(new):
            if size == old[axis] and math.prod(new[:a]) == math.prod(old[:axis]):
                return a
    raise NotImplementedError
