"""lift: run any JAX function on encoded leaves. The one file that reads jaxprs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.extend.core as jex
import numpy as np
from jax import Array, lax
from jax.extend import source_info_util
from jax.interpreters import partial_eval

from .leaf import Encoded, decode, is_encoded, separate_shared
from .paths import paths
from .primitive_rules import RULES, decoded, dot
from .traced_mesh import stand_in

OnDecode = Literal["allow", "error"] | Callable[[str, str], None]


def lift(fn: Callable, *, on_decode: OnDecode = "allow") -> Callable:
    """Makes `fn` accept encoded leaves wherever it takes arrays.

    `fn` is traced on the shapes that the leaves stand for, so it needs no change; each operation
    that meets an encoded leaf is then handed to it (`dot`, `take`, ...), or to its decoded array
    where it has no faster way. Compose freely with `jit`, `grad`, `vmap` and `remat`. A leaf that
    `fn` returns as it came stays encoded.

    `on_decode` says what happens when an operation needs the dense array: "allow" decodes that one
    weight under `jax.checkpoint`, "error" refuses, and a function is told (primitive, path).

    Raises:
        TypeError: with `on_decode="error"`, an operation has no encoded form; names both.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> model = lambda params, x: jax.nn.relu(x @ params["w"])
        >>> enc = {"w": jm.Int(8).encode(jnp.eye(4))}
        >>> jax.jit(jm.lift(model, on_decode="error"))(enc, jnp.ones((2, 4))).round(2)[0]
        Array([1., 1., 1., 1.], dtype=float32)
    """

    @functools.wraps(fn)
    def lifted(*args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=is_encoded)
        traced = [is_encoded(x) or isinstance(x, (jax.Array, np.ndarray)) for x in leaves]
        values = [x for x, t in zip(leaves, traced) if t]

        def flat(*arrays):
            it = iter(arrays)
            a, k = tree.unflatten([next(it) if t else x for x, t in zip(leaves, traced)])
            return fn(*a, **k)

        stand_ins = [stand_in(x) if is_encoded(x) else jax.typeof(x) for x in values]
        jaxpr, out = jax.make_jaxpr(flat, return_shape=True)(*stand_ins)
        arguments = (*args, *(kwargs[k] for k in sorted(kwargs)))
        names = [path for argument in arguments for path in paths(argument)]
        held = [
            _Held(x, path or "the argument") if is_encoded(x) else x
            for x, path, t in zip(leaves, names, traced)
            if t
        ]
        outs = _Reader(on_decode).run(jaxpr.jaxpr, jaxpr.consts, *held)
        return jax.tree.structure(out).unflatten([_open(v) for v in outs])

    return lifted


def around_scans(
    fn: Callable, wrap: Callable[[Callable], Callable], scan: Callable = lax.scan
) -> Callable:
    """`fn` with the body of each outermost scan wrapped: what runs a model's layers, from outside.

    `wrap` takes the body, a function of (carry, slice) as `lax.scan` has it, and returns another,
    such as `jax.checkpoint` of it; `scan` runs it in place of `lax.scan`. Arguments are arrays or
    any pytree of them; those with the host are traced as if on the device.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> fn = lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 3)[0]
        >>> str(jax.make_jaxpr(around_scans(fn, jax.checkpoint))(1.0)).count("policy=")
        1
    """

    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs))

        def flat(*leaves):
            args, kwargs = tree.unflatten(leaves)
            return fn(*args, **kwargs)

        jaxpr, out = jax.make_jaxpr(flat, return_shape=True)(*map(_near, leaves))
        outs = _Reader("allow", wrap, scan).run(jaxpr.jaxpr, jaxpr.consts, *leaves)
        return jax.tree.structure(out).unflatten(outs)

    return wrapped


def _near(x: Any) -> Any:
    """`x`, or where it lies with the host its shape on the device: how a function is traced."""
    space = getattr(jax.typeof(x), "memory_space", None)
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if space == jax.memory.Space.Host else x


def lean(fn: Callable) -> Callable:
    """`fn` without what its results do not need; neither jit nor XLA sees a scan's dead carry.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> kept = lambda xs: jax.lax.scan(lambda c, x: (c @ x, x[0]), jnp.eye(9), xs)[1]
        >>> text = str(jax.make_jaxpr(lean(kept))(jnp.ones((4, 9, 9))))
        >>> "dot_general" in text, "scan" in text
        (False, True)
    """

    def run(*args):
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        out = jax.tree.structure(shape)
        jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * out.num_leaves)
        given = [x for x, wanted in zip(jax.tree.leaves(args), used) if wanted]
        return out.unflatten(jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, closed.consts))(*given))

    return run


def made_of(fn: Callable, *args: Any) -> list[frozenset[int]]:
    """For each array that `fn` returns, which of the flat arguments it is computed from.

    Example:
        >>> made_of(lambda x, y, z: {"a": x * y, "b": 2.0}, 1.0, 2.0, 3.0)
        [frozenset({0, 1}), frozenset()]
    """
    leaves, tree = jax.tree.flatten(args)
    jaxpr = jax.make_jaxpr(lambda *leaves: fn(*tree.unflatten(leaves)))(*leaves).jaxpr
    from_args = {v: frozenset([i]) for i, v in enumerate(jaxpr.invars)}
    of = lambda v: frozenset() if isinstance(v, jex.Literal) else from_args.get(v, frozenset())
    for eqn in jaxpr.eqns:
        sources = frozenset().union(*map(of, eqn.invars))
        from_args |= dict.fromkeys(eqn.outvars, sources)
    return [of(v) for v in jaxpr.outvars]


def dot_general(x: Any, w: Any, dims: Any, **kwargs) -> Array:
    """`lax.dot_general` where either side may be encoded; what leaves made of leaves call.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jm.Int(8).encode(jnp.eye(4))
        >>> jm.dot_general(jnp.ones((2, 4)), w, (((1,), (0,)), ((), ()))).shape
        (2, 4)
    """
    y = dot(x, w, dims, **kwargs)
    return decoded(lambda x, w: lax.dot_general(x, w, dims, **kwargs), x, w) if y is None else y


@dataclasses.dataclass(frozen=True)
class _Held:
    """An encoded leaf on its way through a jaxpr, with the path it came by."""

    leaf: Encoded
    path: str


def _open(v):
    return v.leaf if isinstance(v, _Held) else v


def _close(value, like):
    """`value` held under the path of `like`, or under the first held path of a list."""
    paths = [v.path for v in like if isinstance(v, _Held)]
    return _Held(value, paths[0]) if is_encoded(value) and paths else value


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Replays a jaxpr with held leaves in place of arrays."""

    on_decode: OnDecode
    wrap: Callable | None = None  # what to do to the body of a scan
    scan: Callable = lax.scan

    def run(self, jaxpr, consts, *args):
        env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
        read = lambda v: v.val if isinstance(v, jex.Literal) else env[v]
        for eqn in jaxpr.eqns:
            here = eqn.source_info  # the model's own lines and names stay in the program's text
            names = source_info_util.current_name_stack() + here.name_stack
            with source_info_util.user_context(here.traceback, name_stack=names):
                out = self.step(eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, out))
        return [read(v) for v in jaxpr.outvars]

    def step(self, eqn, vals) -> list:
        name = eqn.primitive.name
        as_list = list if eqn.primitive.multiple_results else lambda out: [out]

        def bind(*vals):
            with eqn.ctx.manager:  # such as "compute on the host"
                return as_list(_bind(eqn.primitive, eqn.params, *vals))

        if not any(isinstance(v, _Held) for v in vals) and not (self.wrap and name in _ENTERED):
            return bind(*vals)
        if name in _CALLS:
            return _CALLS[name](self, vals, **eqn.params)
        if name in RULES:
            out = RULES[name](*map(_open, vals), **eqn.params)
            if out is not NotImplemented:
                return [_close(o, vals) for o in as_list(out)]
        for v in vals:
            if isinstance(v, _Held):
                self.decodes(name, v.path)
        return decoded(bind, *map(_open, vals))

    def decodes(self, primitive: str, path: str):
        if self.on_decode == "error":
            raise TypeError(f"{primitive} has no encoded form for {path!r} and would decode it")
        if callable(self.on_decode):
            self.on_decode(primitive, path)

    def dense(self, why: str, vals) -> list:
        """The values decoded, where a control flow primitive must carry or return arrays."""
        for v in vals:
            if isinstance(v, _Held):
                self.decodes(why, v.path)
        return decode([_open(v) for v in vals])


def _bind(primitive, params, *vals):
    return primitive.bind(*vals, **primitive.get_bind_params(params))


def _inline(reader, vals, *, jaxpr, **_):
    return reader.run(jaxpr.jaxpr, jaxpr.consts, *vals)


def _barrier(reader, vals, **_):
    out = lax.optimization_barrier([_open(v) for v in vals])
    return [_close(new, [old]) for new, old in zip(out, vals)]


def _traced(reader, jaxpr, consts, vals, why):
    """(function of the opened values that returns arrays, the opened values)."""

    def run(*opened):
        held = [_close(new, [old]) for new, old in zip(opened, vals)]
        return reader.dense(why, reader.run(jaxpr, consts, *held))

    return run, [_open(v) for v in vals]


def _remat(reader, vals, *, jaxpr, policy, prevent_cse, **_):
    run, opened = _traced(reader, jaxpr, (), vals, "remat")
    return jax.checkpoint(run, policy=policy, prevent_cse=prevent_cse)(*opened)


def _cond(reader, vals, *, branches, **_):
    index, *vals = vals
    runs = [_traced(reader, b.jaxpr, b.consts, vals, "cond")[0] for b in branches]
    return lax.switch(_open(index), runs, *map(_open, vals))


def _constant_carry(jaxpr, n_before, carry):
    """Which carries a loop's body hands on as they came: those may stay encoded."""
    ins, outs = jaxpr.invars[n_before : n_before + len(carry)], jaxpr.outvars[: len(carry)]
    return [i is o for i, o in zip(ins, outs)]


def _scan(reader, vals, *, jaxpr, length, reverse, unroll, **params):
    given = dict(jaxpr=jaxpr, reverse=reverse, unroll=unroll, **params)
    if "ft_in" in params:  # jax 0.12 packs the arity here
        n_const, n_carry = (len(p) for p in params["ft_in"].unpack()[:2])
    else:  # jax 0.10, 0.11
        n_const, n_carry = params["num_consts"], params["num_carry"]
    const, carry, xs = vals[:n_const], vals[n_const : n_const + n_carry], vals[n_const + n_carry :]
    ends = sorted({end for x in xs if isinstance(x, _Held) for end in x.leaf.ends})
    if ends:
        return _runs(reader, const, carry, xs, ends, given)
    whole = lambda x: isinstance(x, _Held) and not x.leaf.stack  # its arrays have no such axis
    xs = [reader.dense("scan", [x])[0] if whole(x) else x for x in xs]
    sliced, backs = zip(*map(separate_shared, map(_open, xs))) if xs else ((), ())
    fixed = _constant_carry(jaxpr.jaxpr, n_const, carry)
    moving = [v for v, f in zip(carry, fixed) if not f]

    wrap, run_scan = reader.wrap or (lambda body: body), reader.scan
    reader = _Reader(reader.on_decode)  # scans inside the body are not wrapped

    @wrap
    def body(state, xs_now):
        it = iter(state)
        now = [v if f else next(it) for v, f in zip(carry, fixed)]
        held = [_close(back(new), [old]) for new, old, back in zip(xs_now, xs, backs)]
        out = reader.run(jaxpr.jaxpr, jaxpr.consts, *const, *now, *held)
        state = [v for v, f in zip(out[:n_carry], fixed) if not f]
        return reader.dense("scan", state), reader.dense("scan", out[n_carry:])

    start = reader.dense("scan", moving)
    how = dict(reverse=reverse, unroll=unroll)
    end, ys = run_scan(body, start, list(sliced), length, **how)
    it = iter(end)
    return [*(v if f else next(it) for v, f in zip(carry, fixed)), *ys]


def _runs(reader, const, carry, xs, ends, given):
    """A scan over stacks whose layers differ: one scan for each run of layers that are alike."""

    def cut(x, a, b):
        if not isinstance(x, _Held):
            return x[a:b]
        part = x.leaf.layers(a, b)
        return _Held(part, x.path) if is_encoded(part) else part

    runs = list(zip([0, *ends], ends))
    pieces = {}
    for a, b in reversed(runs) if given["reverse"] else runs:
        vals = [*const, *carry, *(cut(x, a, b) for x in xs)]
        out = _scan(reader, vals, **given | {"length": b - a, "unroll": 1})
        carry, pieces[a] = out[: len(carry)], out[len(carry) :]
    stacked = zip(*(pieces[a] for a, _ in runs))
    return [*carry, *(lax.concatenate(ys, 0) for ys in stacked)]


def _while(reader, vals, *, cond_nconsts, cond_jaxpr, body_nconsts, body_jaxpr, **_):
    n = cond_nconsts + body_nconsts
    cond_const, body_const, carry = vals[:cond_nconsts], vals[cond_nconsts:n], vals[n:]
    fixed = _constant_carry(body_jaxpr.jaxpr, body_nconsts, carry)

    def whole(state):
        it = iter(state)
        return [v if f else next(it) for v, f in zip(carry, fixed)]

    def going(state):
        return reader.run(cond_jaxpr.jaxpr, cond_jaxpr.consts, *cond_const, *whole(state))[0]

    def body(state):
        out = reader.run(body_jaxpr.jaxpr, body_jaxpr.consts, *body_const, *whole(state))
        return reader.dense("while", [v for v, f in zip(out, fixed) if not f])

    start = reader.dense("while", [v for v, f in zip(carry, fixed) if not f])
    return whole(lax.while_loop(going, body, start))


_ENTERED = ("jit", "pjit", "closed_call", "core_call", "scan")

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
}
