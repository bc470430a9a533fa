"""AxisBlocks: a function of arrays computed for a block of entries of an axis at a time.

Operations that take each entry for itself run on a block. Sums and extremes over all entries are
computed before, in a loop over blocks.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .axis_cut import Cut, first_cut
from .row_replay import ALONG_AN_AXIS, CALLS
from .row_replay import ELEMENTWISE as ON_ROWS
from .row_replay import REDUCTIONS as OVER_ROWS

_ELEMENTWISE = ON_ROWS | {
    *("add_any", "cbrt", "clz", "erf_inv", "nextafter", "population_count", "reduce_precision"),
    *("shift_left", "shift_right_arithmetic", "shift_right_logical", "bitcast_convert_type"),
}
_LOGICAL = {"reduce_and": (jnp.logical_and, True), "reduce_or": (jnp.logical_or, False)}
_REDUCTIONS = OVER_ROWS | _LOGICAL


@dataclasses.dataclass(frozen=True, eq=False)
class AxisBlocks:
    """A function of arrays whose results can be computed in blocks; see `of`."""

    entries: int  # of the axis
    inputs: tuple  # variables of the arguments
    outputs: tuple  # variables, or literals
    consts: dict  # variable -> array
    steps: list  # (operation, its inputs), in order
    cuts: dict  # variable -> Cut, of those that are computed in blocks
    levels: dict  # variable -> how many loops over blocks come before it

    @classmethod
    def of(cls, fn: Callable, args: Sequence[Array], entries: int) -> "AxisBlocks | None":
        """`fn(*args) -> list of arrays`, by blocks of an axis of so many entries.

        None where an operation needs several entries at once, and is no sum or extreme over them.

        Example:
            >>> share = lambda x, y: [x / x.sum(0)[None], y + 1]
            >>> x, y = jnp.arange(12.0).reshape(6, 2), jnp.ones(())
            >>> blocks = AxisBlocks.of(share, (x, y), 6)
            >>> bool((blocks.run((x, y), {0: 0}, 4)[0] == share(x, y)[0]).all())
            True
            >>> AxisBlocks.of(lambda x: [x @ x.T @ x], (x,), 6) is None
            True
        """
        closed = _without_calls(jax.make_jaxpr(fn)(*args))
        for in_groups in (False, True):
            jaxpr, consts = closed.jaxpr, dict(zip(closed.jaxpr.constvars, closed.consts))
            found = cls(entries, tuple(jaxpr.invars), tuple(jaxpr.outvars), consts, [], {}, {})
            for v in found.inputs:
                cut = first_cut(v.aval.shape, entries, in_groups)
                found.cuts.update({} if cut is None else {v: cut})
            try:
                found._add(jaxpr.eqns)
            except NotImplementedError:
                continue
            return found
        return None

    def run(self, args: Sequence[Array], places: dict[int, int], block: int) -> list[Array]:
        """The results of the function.

        Args:
            args: its arguments.
            places: {result: the argument of its shape whose memory it may take}.
            block: entries at a time, about.
        """
        units = math.lcm(*(self.entries // cut.size for cut in self.cuts.values()))
        fine = math.lcm(units, 128) if math.lcm(units, 128) <= block else units
        block = min(max(block // fine, 1) * fine, self.entries)
        arrays, known = dict(zip(self.inputs, args)), dict(self.consts)
        known |= {v: x for v, x in arrays.items() if v not in self.cuts}
        # 1. Sums and extremes, each in the first loop in which its operand is known.
        needed = self._needed(v for v in self.outputs if _is_variable(v))
        for level in range(1 + max(self.levels.values(), default=0)):
            sums = []
            for eqn, inputs in needed:
                if any(v in self.cuts for v in eqn.outvars):
                    continue
                if self._cut_of(inputs):
                    sums += [(eqn, inputs[0])] if self.levels.get(inputs[0], 0) == level else []
                elif self.levels[eqn.outvars[0]] == level:
                    known |= _results(eqn, [_whole(x, known) for x in inputs], eqn.params)
            known |= self._reduced(sums, known, arrays, block)
        # 2. The results, each written where the argument was read.
        cut = [i for i, v in enumerate(self.outputs) if _is_variable(v) and v in self.cuts]
        shape = lambda v: jnp.zeros(v.aval.shape, v.aval.dtype)
        places = {i: j for i, j in places.items() if self._may_take(i, j)}
        start = {i: args[places[i]] if i in places else shape(self.outputs[i]) for i in cut}
        wanted = [self.outputs[i] for i in cut]

        def write(first, count, buffers):
            now = arrays | {self.inputs[j]: buffers[i] for i, j in places.items()}
            values = self._block(wanted, known, now, first, count)
            return {i: self._put(buffers[i], values[v], v, first) for i, v in zip(cut, wanted)}

        end = self._over_blocks(write, start, block)
        return [end[i] if i in end else _whole(v, known) for i, v in enumerate(self.outputs)]

    def _add(self, equations: Any) -> None:
        """Adds operations in order."""
        for eqn in equations:
            inputs = list(eqn.invars)
            cut = self._cut_of_result(eqn, inputs)
            known = max((self.levels.get(v, 0) for v in inputs if _is_variable(v)), default=0)
            is_sum = cut is None and self._cut_of(inputs) is not None
            self.steps.append((eqn, inputs))
            self.levels.update(dict.fromkeys(eqn.outvars, known + is_sum))
            self.cuts.update({} if cut is None else dict.fromkeys(eqn.outvars, cut))

    def _cut_of(self, inputs: list) -> Cut | None:
        """How the operands of an operation are cut; None if none is.

        Raises:
            NotImplementedError: not all in the same way.
        """
        cuts = {self.cuts[v] for v in inputs if _is_variable(v) and v in self.cuts}
        if len(cuts) > 1:
            raise NotImplementedError
        return next(iter(cuts), None)

    def _cut_of_result(self, eqn: Any, inputs: list) -> Cut | None:
        """How the results of an operation are cut; None if they belong to no entry, or to all.

        Raises:
            NotImplementedError: it needs several entries at once.
        """
        name, params, cut = eqn.primitive.name, eqn.params, self._cut_of(inputs)
        out = eqn.outvars[0].aval
        if cut is None:  # what is repeated, or counted, for each entry can be so for a block
            sizes = {c.size for c in self.cuts.values()}
            axes = [a for a, n in enumerate(out.shape) if n in sizes and n > 1]
            repeats = name in ("broadcast_in_dim", "iota") and axes and out.size > max(out.shape)
            return Cut(axes[-1], out.shape[axes[-1]]) if repeats else None
        if name in _ELEMENTWISE:
            ranks = {v.aval.ndim for v in inputs} - {0}  # axes of 1 are repeated
            if ranks == {out.ndim} and out.shape[cut.axis] == cut.size:
                return cut
            raise NotImplementedError
        if name in ALONG_AN_AXIS and params[ALONG_AN_AXIS[name]] != cut.axis:
            return cut
        if name in _REDUCTIONS:
            if cut.axis not in params["axes"]:
                return Cut(cut.axis - sum(a < cut.axis for a in params["axes"]), cut.size)
            is_extreme = name not in ("reduce_sum", "reduce_prod", *_LOGICAL)
            if not is_extreme or jnp.issubdtype(out.dtype, jnp.floating):
                return None
        return self._moved(eqn, cut)

    def _moved(self, eqn: Any, cut: Cut) -> Cut:
        """Where an operation that only moves numbers puts the axis.

        Raises:
            NotImplementedError: it is no such operation.
        """
        name, params = eqn.primitive.name, eqn.params
        old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        if name == "broadcast_in_dim":
            axis = params["broadcast_dimensions"][cut.axis]
            if new[axis] == cut.size:
                return Cut(axis, cut.size)
        if name == "transpose":
            return Cut(params["permutation"].index(cut.axis), cut.size)
        if name == "concatenate" and params["dimension"] != cut.axis:
            return cut
        if name == "split" and params["axis"] != cut.axis:
            return cut
        if name in ("slice", "pad") and new[cut.axis] == cut.size and len(eqn.invars) < 3:
            whole = name == "slice" or not any(params["padding_config"][cut.axis])
            strides = params.get("strides") or (1,) * len(old)
            if whole and (name == "pad" or strides[cut.axis] == 1):
                return cut
        if name in ("reshape", "squeeze"):
            before = math.prod(old[: cut.axis])
            for axis, size in enumerate(new):
                at = math.prod(new[:axis]) == before and size > 1
                divides = max(size, cut.size) % min(size, cut.size) == 0
                if at and divides and self.entries % size == 0:
                    return Cut(axis, size)
        raise NotImplementedError

    def _needed(self, wanted: Iterator) -> list:
        """The operations that variables depend on, in order."""
        left, chosen = set(wanted), []
        for eqn, inputs in reversed(self.steps):
            if not left.isdisjoint(eqn.outvars):
                left |= {v for v in inputs if _is_variable(v)}
                chosen.append((eqn, inputs))
        return chosen[::-1]

    def _may_take(self, i: int, j: int) -> bool:
        """Whether result i may be written, block by block, where argument j was read."""
        new, old = self.outputs[i], self.inputs[j]
        alike = _is_variable(new) and new in self.cuts and self.cuts[new] == self.cuts.get(old)
        return alike and (new.aval.shape, new.aval.dtype) == (old.aval.shape, old.aval.dtype)

    def _block(self, wanted: list, known: dict, arrays: dict, first: Any, count: int) -> dict:
        """{variable: its block}: `count` entries of the axis from `first` on."""
        values: dict = {}
        place = lambda cut: (first // (self.entries // cut.size), count * cut.size // self.entries)

        def part(v, cut):
            """The block of an operand; of one that is not cut, what lies along the axis."""
            if _is_variable(v) and v in self.cuts:
                if v not in values:
                    start, size = place(self.cuts[v])
                    values[v] = lax.dynamic_slice_in_dim(arrays[v], start, size, self.cuts[v].axis)
                return values[v]
            whole = _whole(v, known)
            if cut is None or jnp.shape(whole)[cut.axis : cut.axis + 1] != (cut.size,):
                return whole
            return lax.dynamic_slice_in_dim(whole, *place(cut), cut.axis)

        for eqn, inputs in self._needed(iter(wanted)):
            if eqn.outvars[0] not in self.cuts:
                continue
            cut, params, name = self.cuts[eqn.outvars[0]], dict(eqn.params), eqn.primitive.name
            start, size = place(cut)
            for key in {"shape", "new_sizes", "limit_indices"} & set(params):
                sizes = params[key]
                params[key] = (*sizes[: cut.axis], size, *sizes[cut.axis + 1 :])
            along = cut
            if name == "broadcast_in_dim":
                dims = params["broadcast_dimensions"]
                along = Cut(dims.index(cut.axis), cut.size) if cut.axis in dims else None
            results = _results(eqn, [part(v, along) for v in inputs], params)
            if name == "iota" and params["dimension"] == cut.axis:
                (v,) = eqn.outvars
                results = {v: results[v] + jnp.asarray(start).astype(v.aval.dtype)}
            values |= results
        return {v: part(v, None) for v in wanted}

    def _reduced(self, sums: list, known: dict, arrays: dict, block: int) -> dict:
        """{variable: sum, product or extreme over all entries}."""
        if not sums:
            return {}
        rules = [_REDUCTIONS[eqn.primitive.name] for eqn, _ in sums]
        outs = [eqn.outvars[0] for eqn, _ in sums]
        start = [jnp.full(v.aval.shape, zero, v.aval.dtype) for v, (_, zero) in zip(outs, rules)]

        def add(first, count, totals):
            values = self._block([v for _, v in sums], known, arrays, first, count)
            parts = [eqn.primitive.bind(values[v], **eqn.params) for eqn, v in sums]
            return [combine(a, b) for (combine, _), a, b in zip(rules, totals, parts)]

        return dict(zip(outs, self._over_blocks(add, start, block)))

    def _over_blocks(self, step: Callable, carry: Any, block: int) -> Any:
        """Folds `step(first entry, entries, carry)`; a last block may have fewer entries."""
        count, rest = divmod(self.entries, block)
        carry = lax.fori_loop(0, count, lambda i, carry: step(i * block, block, carry), carry)
        return step(jnp.int32(count * block), rest, carry) if rest else carry

    def _put(self, buffer: Array, value: Array, v: Any, first: Any) -> Array:
        cut = self.cuts[v]
        start = first // (self.entries // cut.size)
        return lax.dynamic_update_slice_in_dim(buffer, value, start, cut.axis)


def _without_calls(closed: Any) -> Any:
    """A closed jaxpr with the operations of each `jit` or custom rule in its place."""

    def run(jaxpr, consts, args):
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
        for eqn in jaxpr.eqns:
            inputs, name = [_whole(v, values) for v in eqn.invars], eqn.primitive.name
            if name in CALLS:
                inner = eqn.params[CALLS[name]]
                values |= dict(zip(eqn.outvars, run(inner.jaxpr, inner.consts, inputs)))
            else:
                values |= _results(eqn, inputs, eqn.params)
        return [_whole(v, values) for v in jaxpr.outvars]

    return jax.make_jaxpr(lambda *args: run(closed.jaxpr, closed.consts, args))(*closed.in_avals)


def _is_variable(v: Any) -> bool:
    return not hasattr(v, "val")


def _whole(v: Any, known: dict) -> Any:
    return known[v] if _is_variable(v) else v.val


def _results(eqn: Any, inputs: list, params: dict) -> dict:
    """{variable: value} of an operation's results."""
    bound = eqn.primitive.get_bind_params(params)
    out = eqn.primitive.bind(*inputs, **bound)
    return dict(zip(eqn.outvars, out if eqn.primitive.multiple_results else [out]))
