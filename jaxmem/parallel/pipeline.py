"""Pipelines: each of S stages holds L/S layers, and micro-batches pass from stage to stage.

A model needs no change: the layers are those of the first scan that it runs. With M micro-batches
a stage waits (S − 1)/(M + S − 1) of the time under both schedules, GPipe and 1F1B; the schedules
differ in the activations that a stage keeps.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from ..core.arguments import POSITIVE, takes
from ..core.jaxpr_rewrites import argument_dependencies
from .pipeline_stages import STAGE, Stages, zeros


@takes(micro=POSITIVE)
def pipelined(fn: Callable, mesh: Mesh | AbstractMesh, *, micro: int) -> Callable:
    """`fn(*arguments, batch)` with its layers divided over the mesh axis `stage`, by GPipe.

    Gradients go through the pipeline: for each of M + S − 1 ticks a stage keeps its input and
    computes the rest again. Arrays of `batch` have their rows first. Results of `fn` have their
    rows first too, or are scalars, which are means over the batch. Stacks of layers, encoded or
    not, are divided over `stage` (`jm.shardings(params, mesh, {"layers/.*": P("stage")})`), other
    arguments are whole on every device; rows may be divided over `data` and `fsdp`. Huang et al.,
    2019 (GPipe).

    Raises:
        ValueError: when the result is called: `fn` runs no scan, layers or rows do not divide, the
            scan returns more than its carry, or the mesh has axes that a pipeline does not use.

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
            def tick(x, t):
                # Stage `at` works on micro-batch t − at, if there is one with that number.
                batch, busy = _pick(batches, t - at), (t >= at) & (t - at < micro)
                out = _if(busy, lambda: p.stage(at, rest, xs, x, batch), p.carry)
                ends = busy & (at == last)
                return _hand_on(out), _if(ends, lambda: p.tail(rest, out, batch), p.result)

            _, results = lax.scan(tick, zeros(p.carry), jnp.arange(micro + last))
            # The first micro-batch leaves the last stage at tick `last`.
            results = jax.tree.map(lambda a: a[last:], results)
            return jax.tree.map(lambda a: a[None] if a.ndim > 1 else a.mean()[None, None], results)

        spec = lambda a: P(STAGE, None, rows) if a.ndim else P(STAGE, rows)
        results = p.run(local, jax.tree.map(spec, p.result))
        # Only the last stage has results: rows of all micro-batches, or their mean.
        joined = lambda a: jnp.moveaxis(a, 0, 1).reshape(-1, *a.shape[2:])
        whole = lambda a, one: joined(a[-1]) if one.ndim else a[-1].mean()
        return jax.tree.map(whole, results, p.result)

    return run


@takes(micro=POSITIVE)
def one_f_one_b(loss: Callable, mesh: Mesh | AbstractMesh, *, micro: int) -> Callable:
    """(params, *arguments, batch) -> (loss, gradient), forward and backward in turns (1F1B).

    `loss(params, *arguments, batch)` is a scalar, a mean over the rows; arguments are divided as
    `pipelined` says. The backward pass of a micro-batch starts as soon as the last stage has its
    loss, so that stage s (from 0) keeps the inputs of at most 2 · (S − s) − 1 micro-batches,
    however many there are. Narayanan et al., 2019 (PipeDream).

    Raises:
        ValueError: as `pipelined` says.

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
        trained = [i for i, at in enumerate(p.live) if at < len(leaves)]  # indices in `p.rest`
        layers = lambda *leaves: p.opened((*leaves, *p.arguments[len(leaves) :]), zeros(p.one))[2]
        # Indices in `p.xs` of the stacks of layers that depend on the params.
        trained_xs = [
            j for j, sources in enumerate(argument_dependencies(layers, *leaves)) if sources
        ]

        def local(rest, xs, batches):
            loss, slope, slope_xs = _in_turns(p, micro, trained, trained_xs, rest, xs, batches)
            loss, slope = lax.psum((loss, slope), (STAGE, *p.rows))
            sums = (loss, slope, lax.psum(slope_xs, p.rows))
            return jax.tree.map(lambda a: (a / (micro * p.replicas)).astype(a.dtype), sums)

        spec = (P(), [P() for _ in trained], [P(STAGE) for _ in trained_xs])
        value, slope, slope_xs = p.run(local, spec)
        # The gradient through the stacks, and the one through other uses of the params.
        pull = jax.vjp(lambda *leaves: [layers(*leaves)[j] for j in trained_xs], *leaves)[1]
        gradients = list(pull(slope_xs))
        for i, gradient in zip(trained, slope):
            gradients[p.live[i]] += gradient
        return value, structure.unflatten(gradients)

    return run


def _in_turns(
    p: Stages,
    micro: int,
    trained: list[int],
    trained_xs: list[int],
    rest: list[Array],
    xs: list[Array],
    batches: Any,
) -> tuple[Array, list[Array], list[Array]]:
    """On one device, sums over micro-batches: the loss, gradients of `rest`, gradients of `xs`.

    Gradients are those of the arrays at the indices `trained` and `trained_xs`. At tick t, stage s
    runs micro-batch t − s forward and micro-batch t − 2(S − 1) + s backward.
    """
    at, last = lax.axis_index(STAGE), p.count - 1
    slots = min(micro, 2 * last + 1)  # micro-batches whose input a stage keeps
    weights, layers = [rest[i] for i in trained], [xs[j] for j in trained_xs]
    exists = lambda i: (i >= 0) & (i < micro)

    def tick(state, t):
        x_in, slope_out, inputs, total, slopes = state
        ahead, behind = t - at, t - 2 * last + at  # numbers of the two micro-batches
        batch, batch_behind = _pick(batches, ahead), _pick(batches, behind)
        # Forward, and keep the input.
        out = _if(exists(ahead), lambda: p.stage(at, rest, xs, x_in, batch), p.carry)
        keep = lambda a, x: lax.dynamic_update_index_in_dim(a, x, ahead % slots, 0)
        inputs = _if(exists(ahead), lambda: jax.tree.map(keep, inputs, x_in), inputs, inputs)

        # The last stage computes the loss, and its gradient by the stage's output.
        def end():
            tail = lambda new, out: p.tail(_put(rest, trained, new), out, batch)
            return jax.value_and_grad(tail, (0, 1))(weights, out)

        shapes = (p.result, (weights, p.carry))
        value, (slope, slope_end) = _if(exists(ahead) & (at == last), end, shapes)
        slope_out = [jnp.where(at == last, a, b) for a, b in zip(slope_end, slope_out)]

        # Backward: the stage runs again from the input that it kept.
        def backward():
            def again(new, new_xs, x):
                return p.stage(
                    at, _put(rest, trained, new), _put(xs, trained_xs, new_xs), x, batch_behind
                )

            x = jax.tree.map(lambda a: _at(a, behind % slots), inputs)
            return jax.vjp(again, weights, layers, x)[1](slope_out)

        slope_stage, slope_layers, slope_in = _if(
            exists(behind), backward, (weights, layers, p.carry)
        )
        new = ([a + b for a, b in zip(slope, slope_stage)], slope_layers)
        slopes = jax.tree.map(jnp.add, slopes, new)
        return (_hand_on(out), _hand_on(slope_in, -1), inputs, total + value, slopes), None

    inputs = [jnp.zeros((slots, *a.shape), a.dtype) for a in p.carry]
    start = (*zeros((p.carry, p.carry)), inputs, zeros(p.result), zeros((weights, layers)))
    (_, _, _, total, slopes), _ = lax.scan(tick, start, jnp.arange(micro + 2 * last))
    return total, *slopes


def _if(condition: Array, fn: Callable, shapes: Any, otherwise: Any = None) -> Any:
    """`fn()` if the condition holds, otherwise `otherwise` or zeros, without running `fn`."""
    return lax.cond(condition, fn, lambda: zeros(shapes) if otherwise is None else otherwise)


def _at(a: Array, i: Array) -> Array:
    """Row i of an array."""
    return lax.dynamic_index_in_dim(a, i, 0, keepdims=False)


def _pick(batches: Any, i: Array) -> Any:
    """The i-th micro-batch; the nearest one if none has that number."""
    return jax.tree.map(lambda a: _at(a, jnp.clip(i, 0, len(a) - 1)), batches)


def _put(values: list, at: list[int], new: list) -> list:
    """The list with the values at some indices replaced."""
    replaced = dict(zip(at, new))
    return [replaced.get(i, x) for i, x in enumerate(values)]


def _hand_on(tree: Any, step: int = 1) -> Any:
    """The arrays of the stage before this one, or with step −1 of the stage after it."""
    size = lax.axis_size(STAGE)
    pairs = [(i, i + step) for i in range(size) if 0 <= i + step < size]
    return jax.tree.map(lambda a: lax.ppermute(a, STAGE, pairs), tree)
