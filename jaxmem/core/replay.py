"""JaxprReplay: runs a jaxpr again, operation by operation, with encoded leaves in place of arrays.

`lift` hands it leaves, `around_scans` what shall become of the bodies of scans.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.extend.core as jex
from jax import lax
from jax.extend import source_info_util

from ..kernels.ragged_matmul import ragged_matmul
from .decoded_once import decoded_first, small_on
from .encoded_product import decoded
from .leaf import decode, is_encoded, separate_shared
from .loop_carries import filled, moving, passed_through, scan_arity
from .named_leaf import NamedLeaf, with_name, without_name
from .primitive_rules import RULES
from .products_before_scan import scan_products_first
from .stack_layer import layers_in_stack
from .traced_mesh import stand_in

OnDecode = Literal["allow", "error"] | Callable[[str, str], None]


@dataclasses.dataclass(frozen=True)
class JaxprReplay:
    """Runs jaxprs whose inputs are arrays or `NamedLeaf`s."""

    on_decode: OnDecode
    wrap: Callable | None = None  # body of a scan -> the body to run in its place
    scan: Callable = lax.scan  # runs the wrapped bodies
    in_stack: bool = False  # whether a body's products read layers in their stacks

    def run(self, jaxpr: Any, consts: Any, *args: Any) -> list:
        """The outputs of a jaxpr, each an array or a `NamedLeaf`."""
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
        self.run_equations(jaxpr.eqns, values)
        return [v.val if isinstance(v, jex.Literal) else values[v] for v in jaxpr.outvars]

    def run_equations(self, eqns: Any, values: dict) -> None:
        """Runs operations in order; their operands are in `values`, and their results go there."""
        read = lambda v: v.val if isinstance(v, jex.Literal) else values[v]
        for eqn in eqns:
            # the program's text still shows the model's own lines and names
            source = eqn.source_info
            names = source_info_util.current_name_stack() + source.name_stack
            with source_info_util.user_context(source.traceback, name_stack=names):
                outs = self.step(eqn, [read(v) for v in eqn.invars])
            values.update(zip(eqn.outvars, outs))

    def step(self, eqn: Any, inputs: list) -> list:
        """The outputs of one operation."""
        name = eqn.primitive.name
        as_list = list if eqn.primitive.multiple_results else lambda out: [out]

        def bind(*inputs):
            with eqn.ctx.manager:  # such as "compute on the host"
                return as_list(_bind(eqn.primitive, eqn.params, *inputs))

        # 1. Without a leaf the operation runs as it is, unless a scan in it is to be wrapped.
        enter = self.wrap and name in _MAY_HOLD_SCANS
        if not any(isinstance(v, NamedLeaf) for v in inputs) and not enter:
            return bind(*inputs)
        # 2. An operation that holds a jaxpr (jit, scan, cond, ...) is replayed from inside.
        if name in _CALLS:
            outs = _CALLS[name](self, inputs, **eqn.params)
            if outs is not NotImplemented:
                return outs
        # 3. The leaf may have its own way.
        if name in RULES:
            out = RULES[name](*map(without_name, inputs), **eqn.params)
            if out is not NotImplemented:
                return [with_name(o, inputs) for o in as_list(out)]
        # 4. It has none: the operation takes the decoded arrays.
        self.report(name, inputs)
        return decoded(bind, *map(without_name, inputs))

    def report(self, primitive: str, inputs: list) -> None:
        """Refuses, or tells `on_decode`, that `primitive` decodes the leaves among `inputs`."""
        for v in inputs:
            if not isinstance(v, NamedLeaf):
                continue
            if self.on_decode == "error":
                raise TypeError(
                    f"{primitive} has no encoded form for {v.path!r} and would decode it"
                )
            for path in (v.path, *v.joined_to) if callable(self.on_decode) else ():
                self.on_decode(primitive, path)

    def as_arrays(self, primitive: str, values: list) -> list:
        """The values as arrays, where control flow must carry or return arrays."""
        self.report(primitive, values)
        return decode([without_name(v) for v in values])


def _bind(primitive, params, *inputs):
    return primitive.bind(*inputs, **primitive.get_bind_params(params))


# Below is what an operation that holds jaxprs does: (replay, its inputs, **its parameters).


def _inline(replay, inputs, *, jaxpr, **_):
    return replay.run(jaxpr.jaxpr, jaxpr.consts, *inputs)


def _barrier(replay, inputs, **_):
    outs = lax.optimization_barrier([without_name(v) for v in inputs])
    return [with_name(out, [v]) for out, v in zip(outs, inputs)]


def _function(replay, jaxpr, consts, inputs, primitive):
    """(a function of the inputs without names that returns arrays, those inputs)."""

    def run(*values):
        named = [with_name(value, [v]) for value, v in zip(values, inputs)]
        return replay.as_arrays(primitive, replay.run(jaxpr, consts, *named))

    return run, [without_name(v) for v in inputs]


def _remat(replay, inputs, *, jaxpr, policy, prevent_cse, **_):
    run, values = _function(replay, jaxpr, (), inputs, "remat")
    return jax.checkpoint(run, policy=policy, prevent_cse=prevent_cse)(*values)


def _cond(replay, inputs, *, branches, **_):
    index, *inputs = inputs
    runs = [_function(replay, b.jaxpr, b.consts, inputs, "cond")[0] for b in branches]
    return lax.switch(without_name(index), runs, *map(without_name, inputs))


def _scan(replay, inputs, **params):
    n_const, _ = scan_arity(params)
    const, rest = [without_name(x) for x in inputs[:n_const]], inputs[n_const:]
    changes = replay.wrap is not None or any(isinstance(x, NamedLeaf) for x in rest)
    platforms = () if changes else small_on(params["jaxpr"].jaxpr, const, params["length"])
    if not platforms:
        return _run_scan(replay, inputs, **params)

    def as_stored(const, rest):
        named = [with_name(value, [x]) for value, x in zip(const, inputs)]
        return replay.as_arrays("scan", _run_scan(replay, [*named, *rest], **params))

    products_first = functools.partial(scan_products_first, replay.run_equations, **params)
    return decoded_first(platforms, products_first, as_stored, const, rest)


def _run_scan(replay, inputs, *, jaxpr, length, reverse, unroll, **params):
    # 1. Split the inputs into constants, carry and scanned stacks.
    n_const, n_carry = scan_arity(params)
    const, carry = inputs[:n_const], inputs[n_const : n_const + n_carry]
    xs = inputs[n_const + n_carry :]

    # 2. Stacks whose layers are not encoded alike take a scan for each run of layers that are.
    ends = sorted({end for x in xs if isinstance(x, NamedLeaf) for end in x.leaf.ends})
    if ends:
        params = dict(jaxpr=jaxpr, reverse=reverse, unroll=unroll, **params)
        return _scan_runs(replay, const, carry, xs, ends, params)

    # 3. What is sliced is the arrays of a leaf that have the axis of layers. Where no array has it,
    # the leaf says what to slice, or is decoded.
    unstacked = lambda x: isinstance(x, NamedLeaf) and not x.leaf.stack
    in_place = lambda x: layers_in_stack(without_name(x)) if replay.in_stack else None
    pairs = [
        x.leaf.moved_layers() if unstacked(x) else in_place(x) or separate_shared(without_name(x))
        for x in xs
    ]
    decodes = [pair is NotImplemented for pair in pairs]
    xs = [replay.as_arrays("scan", [x])[0] if d else x for x, d in zip(xs, decodes)]
    pairs = [separate_shared(x) if d else pair for x, d, pair in zip(xs, decodes, pairs)]
    sliced, rebuilds = zip(*pairs) if pairs else ((), ())
    fixed = passed_through(jaxpr.jaxpr, n_const, carry)

    # 4. Scan over those arrays, and over the carries that change.
    wrap, run_scan = replay.wrap or (lambda body: body), replay.scan
    # scans inside the body are not wrapped
    replay = JaxprReplay(replay.on_decode, in_stack=replay.in_stack)

    @wrap
    def body(state, arrays):
        layer = [with_name(rebuild(a), [x]) for a, x, rebuild in zip(arrays, xs, rebuilds)]
        carried = filled(carry, fixed, state)
        outs = replay.run(jaxpr.jaxpr, jaxpr.consts, *const, *carried, *layer)
        state = moving(outs[:n_carry], fixed)
        return replay.as_arrays("scan", state), replay.as_arrays("scan", outs[n_carry:])

    start = replay.as_arrays("scan", moving(carry, fixed))
    options = dict(reverse=reverse, unroll=unroll)
    end, ys = run_scan(body, start, list(sliced), length, **options)
    return [*filled(carry, fixed, end), *ys]


def _scan_runs(replay, const, carry, xs, ends, params):
    """Consecutive scans over runs of layers that are encoded alike; `ends` is where they end."""

    def layers(x, start, stop):
        if not isinstance(x, NamedLeaf):
            return x[start:stop]
        part = x.leaf.layers(start, stop)
        return dataclasses.replace(x, leaf=part) if is_encoded(part) else part

    runs = list(zip([0, *ends], ends))
    outputs = {}  # first layer of a run -> its stacked outputs
    for start, stop in reversed(runs) if params["reverse"] else runs:
        inputs = [*const, *carry, *(layers(x, start, stop) for x in xs)]
        outs = _run_scan(replay, inputs, **params | {"length": stop - start, "unroll": 1})
        carry, outputs[start] = outs[: len(carry)], outs[len(carry) :]
    stacked = zip(*(outputs[start] for start, _ in runs))
    return [*carry, *(lax.concatenate(ys, 0) for ys in stacked)]


def _while(replay, inputs, *, cond_nconsts, cond_jaxpr, body_nconsts, body_jaxpr, **_):
    n_const = cond_nconsts + body_nconsts
    cond_const, body_const = inputs[:cond_nconsts], inputs[cond_nconsts:n_const]
    carry = inputs[n_const:]
    fixed = passed_through(body_jaxpr.jaxpr, body_nconsts, carry)

    def goes_on(state):
        carried = filled(carry, fixed, state)
        return replay.run(cond_jaxpr.jaxpr, cond_jaxpr.consts, *cond_const, *carried)[0]

    def body(state):
        carried = filled(carry, fixed, state)
        outs = replay.run(body_jaxpr.jaxpr, body_jaxpr.consts, *body_const, *carried)
        return replay.as_arrays("while", moving(outs, fixed))

    start = replay.as_arrays("while", moving(carry, fixed))
    return filled(carry, fixed, lax.while_loop(goes_on, body, start))


def _ragged_dot(replay, inputs, *, ragged_dot_dimension_numbers, preferred_element_type, **_):
    """A stack of matrices is decoded one by one; NotImplemented for other ragged products."""
    d = ragged_dot_dimension_numbers
    numbers = d.dot_dimension_numbers, tuple(d.lhs_ragged_dimensions), tuple(d.rhs_group_dimensions)
    x, w, sizes = inputs[:3]
    only_stack = isinstance(w, NamedLeaf) and not isinstance(x, NamedLeaf)
    if not only_stack or numbers != ((((1,), (1,)), ((), ())), (0,), (0,)) or len(inputs) > 3:
        return NotImplemented
    dtype = preferred_element_type or x.dtype
    product = lambda x, w, sizes: ragged_matmul(x, w, sizes, dtype)
    jaxpr = jax.make_jaxpr(product)(x, stand_in(w.leaf), sizes)
    return replay.run(jaxpr.jaxpr, jaxpr.consts, x, w, sizes)


def _shard_map(
    replay, inputs, *, jaxpr, mesh, in_specs, out_specs, newly_manual_axes, check_vma, **_
):
    """Each device runs the body on its part of a leaf's stack; a leaf cut elsewhere is decoded."""
    on_stack = lambda x, spec: all(entry is None for entry in spec[len(x.leaf.stack) :])
    values = [
        replay.as_arrays("shard_map", [x])[0]
        if isinstance(x, NamedLeaf) and not on_stack(x, spec)
        else x
        for x, spec in zip(inputs, in_specs)
    ]
    run, values = _function(replay, jaxpr, (), values, "shard_map")
    specs = tuple(jax.tree.map(lambda _: spec, x) for x, spec in zip(values, in_specs))  # noqa: B023
    options = dict(axis_names=set(newly_manual_axes), check_vma=check_vma)
    mapped = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=list(out_specs), **options)
    return mapped(*values)


INLINED = ("jit", "pjit", "closed_call", "core_call")  # calls of a jaxpr, and nothing more
_MAY_HOLD_SCANS = (*INLINED, "scan")

_CALLS = {
    "jit": _inline,
    "pjit": _inline,
    "closed_call": _inline,
    "core_call": _inline,
    "optimization_barrier": _barrier,
    "remat2": _remat,
    "remat": _remat,
    "checkpoint": _remat,
    "cond": _cond,
    "scan": _scan,
    "while": _while,
    "ragged_dot_general": _ragged_dot,
    "shard_map": _shard_map,
}
