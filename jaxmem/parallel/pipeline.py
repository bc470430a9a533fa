"""Pipelines: each of S stages holds L/S layers, and micro-batches pass from one to the next.

The stages are those of the first scan that a function runs, so a model needs no change. Of the
time, (S − 1)/(M + S − 1) is spent waiting, with M micro-batches, under both schedules; they differ
in what they hold meanwhile.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from ..core.lifting import made_of
from .stages import STAGE, Stages, zeros


def pipelined(fn: Callable, mesh: Mesh | AbstractMesh, *, micro: int) -> Callable:
    """`fn(*held, batch)` with its layers over the mesh's `stage`s, as GPipe (Huang et al., 2019).

    Gradients go through it; for each of M + S − 1 ticks a stage keeps what it was given, and
    computes the rest again. Arrays of `batch` have their rows first; so have the results, or they
    are scalars, means over the batch. Stacks lie over `stage`, encoded or not
    (`jm.shardings(params, mesh, {"layers/.*": P("stage")})`), other arguments on every device; rows
    may lie over `data` and `fsdp`.

    Raises:
        ValueError: when called: no scan, layers or rows that do not divide, a scan that returns
            more than its carry, or a mesh with axes that a pipeline does not use.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> layers = lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
        >>> w, x = jnp.ones((4, 8, 8)) / 8, jnp.ones((6, 8))
        >>> piped = jax.jit(pipelined(layers, jm.mesh(stage=4), micro=3))
        >>> bool(jnp.allclose(piped(w, x), layers(w, x)))
        True
    """

    @functools.wraps(fn)
    def run(*args):
        p = Stages.of(fn, mesh, micro, args)
        last, rows = p.count - 1, p.rows or None

        def local(rest, xs, batches):
            at = lax.axis_index(STAGE)

            @functools.partial(jax.checkpoint, prevent_cse=False)
            def tick(given, t):
                one, mine = _pick(batches, t - at), (t >= at) & (t - at < micro)
                out = _if(mine, lambda: p.stage(at, rest, xs, given, one), p.carry)
                ends = mine & (at == last)
                return _hand_on(out), _if(ends, lambda: p.tail(rest, out, one), p.result)

            _, found = lax.scan(tick, zeros(p.carry), jnp.arange(micro + last))
            found = jax.tree.map(lambda a: a[last:], found)  # before, nothing had come through
            return jax.tree.map(lambda a: a[None] if a.ndim > 1 else a.mean()[None, None], found)

        spec = lambda a: P(STAGE, None, rows) if a.ndim else P(STAGE, rows)
        found = p.run(local, jax.tree.map(spec, p.result))
        joined = lambda a: jnp.moveaxis(a, 0, 1).reshape(-1, *a.shape[2:])
        whole = lambda a, one: joined(a[-1]) if one.ndim else a[-1].mean()
        return jax.tree.map(whole, found, p.result)

    return run


def one_f_one_b(loss: Callable, mesh: Mesh | AbstractMesh, *, micro: int) -> Callable:
    """(params, *held, batch) -> (loss, gradient), forward and backward in turns (1F1B).

    `loss(params, *held, batch)` is a scalar, a mean over the rows; otherwise as `pipelined`. A
    micro-batch goes back as soon as it has come through, so stage s (from 0) keeps what at most
    2 · (S − s) − 1 of them gave it, however many there are. Narayanan et al., 2019 (PipeDream).

    Raises:
        ValueError: as `pipelined`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> layers = lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
        >>> loss = lambda w, x: (layers(w, x) ** 2).mean()
        >>> w, x = jnp.ones((4, 8, 8)) / 8, jnp.ones((6, 8))
        >>> value, slope = jax.jit(one_f_one_b(loss, jm.mesh(stage=4), micro=3))(w, x)
        >>> bool(jnp.allclose(slope, jax.grad(loss)(w, x), atol=1e-6))
        True
    """

    @functools.wraps(loss)
    def run(params, *args):
        p = Stages.of(loss, mesh, micro, (params, *args))
        leaves, structure = jax.tree.flatten(params)
        free = [i for i, at in enumerate(p.live) if at < len(leaves)]  # of `rest`, the trained
        layers = lambda *leaves: p.opened((*leaves, *p.held[len(leaves) :]), zeros(p.one))[2]
        moving = [j for j, of in enumerate(made_of(layers, *leaves)) if of]  # of `xs`

        def local(*given):
            loss, slope, slope_xs = _in_turns(p, micro, free, moving, *given)
            loss, slope = lax.psum((loss, slope), (STAGE, *p.rows))
            whole = (loss, slope, lax.psum(slope_xs, p.rows))
            return jax.tree.map(lambda a: (a / (micro * p.replicas)).astype(a.dtype), whole)

        spec = (P(), [P() for _ in free], [P(STAGE) for _ in moving])
        value, slope, slope_xs = p.run(local, spec)
        pull = jax.vjp(lambda *leaves: [layers(*leaves)[j] for j in moving], *leaves)[1]
        found = list(pull(slope_xs))
        for i, g in zip(free, slope):
            found[p.live[i]] += g
        return value, structure.unflatten(found)

    return run


def _in_turns(p: Stages, micro: int, free: list, moving: list, rest: list, xs: list, batches: Any):
    """On one device: sums over micro-batches of the loss and the gradients of its own part.

    Stage s works forward on micro-batch t − s at tick t, and back on t − 2(S − 1) + s.
    """
    at, last = lax.axis_index(STAGE), p.count - 1
    slots = min(micro, 2 * last + 1)
    trained, own = [rest[i] for i in free], [xs[j] for j in moving]
    there = lambda i: (i >= 0) & (i < micro)

    def tick(state, t):
        given, back, kept, total, slopes = state
        forth, come = t - at, t - 2 * last + at
        one, before = _pick(batches, forth), _pick(batches, come)
        out = _if(there(forth), lambda: p.stage(at, rest, xs, given, one), p.carry)
        keep = lambda a, x: lax.dynamic_update_index_in_dim(a, x, forth % slots, 0)
        kept = _if(there(forth), lambda: jax.tree.map(keep, kept, given), kept, kept)

        def end():
            tail = lambda new, out: p.tail(_put(rest, free, new), out, one)
            return jax.value_and_grad(tail, (0, 1))(trained, out)

        shapes = (p.result, (trained, p.carry))
        value, (slope, turn) = _if(there(forth) & (at == last), end, shapes)
        back = [jnp.where(at == last, a, b) for a, b in zip(turn, back)]

        def through():
            def again(new, own, x):
                return p.stage(at, _put(rest, free, new), _put(xs, moving, own), x, before)

            x = jax.tree.map(lambda a: _at(a, come % slots), kept)
            return jax.vjp(again, trained, own, x)[1](back)

        slope_here, slope_own, back = _if(there(come), through, (trained, own, p.carry))
        new = ([a + b for a, b in zip(slope, slope_here)], slope_own)
        slopes = jax.tree.map(jnp.add, slopes, new)
        return (_hand_on(out), _hand_on(back, -1), kept, total + value, slopes), None

    kept = [jnp.zeros((slots, *a.shape), a.dtype) for a in p.carry]
    start = (*zeros((p.carry, p.carry)), kept, zeros(p.result), zeros((trained, own)))
    (_, _, _, total, slopes), _ = lax.scan(tick, start, jnp.arange(micro + 2 * last))
    return total, *slopes


def _if(condition: Array, fn: Callable, shapes: Any, otherwise: Any = None) -> Any:
    """`fn()` where the condition holds, else zeros of its shapes: nothing is computed."""
    return lax.cond(condition, fn, lambda: zeros(shapes) if otherwise is None else otherwise)


def _at(a: Array, i: Array) -> Array:
    return lax.dynamic_index_in_dim(a, i, 0, keepdims=False)


def _pick(batches: Any, i: Array) -> Any:
    """The i-th micro-batch, or one that is there."""
    return jax.tree.map(lambda a: _at(a, jnp.clip(i, 0, len(a) - 1)), batches)


def _put(values: list, at: list[int], new: list) -> list:
    replaced = dict(zip(at, new))
    return [replaced.get(i, x) for i, x in enumerate(values)]


def _hand_on(tree: Any, step: int = 1) -> Any:
    """What the neighbour gave: the stage before, or with step −1 the one after."""
    size = lax.axis_size(STAGE)
    pairs = [(i, i + step) for i in range(size) if 0 <= i + step < size]
    return jax.tree.map(lambda a: lax.ppermute(a, STAGE, pairs), tree)
