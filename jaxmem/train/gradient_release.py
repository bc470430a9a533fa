"""released: a layer's gradient is spent as soon as it is known (Lv et al., 2023, LOMO).

Layers are the outer loop of the backward pass and micro-batches the inner one, so that a step can
add up micro-batches and clip, and still holds the gradient of one layer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from ..core.arguments import FUNCTION, POSITIVE, TREE, Kind, takes
from ..core.layer_program import LayerScan
from ..core.leaf import decode
from .gradient_accumulation import micro_batches
from .gradient_clipping import clip_factor, sum_of_squares
from .layer_gradients import LayerGradients, Slopes
from .loss_scale import ScaledOptimizer, ScaledState
from .residual_codec import HELD, Held
from .stack_entries import entry
from .traced_step import Progress, TracedStep

_CLIP = Kind(
    "a number above 0, or None",
    lambda x: x is None or (isinstance(x, int | float) and not isinstance(x, bool) and x > 0),
)


@takes(params=TREE)
def train_state(
    params: Any, optimizer: optax.GradientTransformation, *, counts_skipped: bool = False
) -> dict:
    """The state before the first step: {"params", "opt", "step"}, and "skipped" if it counts them.

    `params` may hold encoded leaves; the optimizer's state is that of the arrays they stand for,
    and lies in memory as they would: `jm.state_shardings` gives its shardings.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> state = train_state({"w": jnp.ones((4, 4))}, optax.adam(1e-3))
        >>> state["opt"][0].mu["w"].shape, int(state["step"])
        ((4, 4), 0)
    """
    # Compiled, so that what the optimizer does not read is never decoded.
    opt = jax.jit(lambda params: optimizer.init(decode(params)))(params)
    zero = lambda: jnp.zeros((), jnp.int32)
    counts = {"step": zero()} | ({"skipped": zero()} if counts_skipped else {})
    return {"params": params, "opt": opt} | counts


_HELD = Kind(
    f"one of {', '.join(HELD)}, or None", lambda x: x is None or (isinstance(x, str) and x in HELD)
)


@takes(loss=FUNCTION, micro=POSITIVE, clip=_CLIP, held=_HELD)
def released(
    loss: Callable,
    optimizer: optax.GradientTransformation,
    *,
    micro: int = 1,
    clip: float | None = None,
    held: Held | None = None,
    skip_nonfinite: bool = False,
) -> Callable:
    """A training step whose backward pass updates each layer as soon as its gradient is known.

    The step is a function (state, batch) -> (state, loss), of a state of `train_state`; jit it with
    `donate_argnums=0`, so that stacks are updated in their own memory. It gives what
    `jax.value_and_grad` and `optimizer` give, to rounding, and holds the inputs of all layers and
    the gradient of one of them. The model does not change: the loss is traced, and its layers are
    the scans that take slices of the params. Arrays that no such scan slices (embedding, head,
    norms) are updated as soon as their gradient is known, a large one by blocks of rows or columns;
    where micro-batches add it up, a large gradient is in memory twice.

    Updates of bfloat16 params are rounded stochastically (see `jm.optimizers.apply_rounded`).
    Stacks of `Int(8)` or `jm.optimizers.split_weights` are decoded one layer at a time, and encoded
    again with stochastic rounding; the optimizer sees arrays.

    Args:
        loss: `loss(params, batch)`, a mean over the rows of the batch; of dense params.
        optimizer: treats each array of the params by itself, as Adam does; it is given one layer
            of a stack at a time. One of `scaled` has its loss scaled, and takes the second backward
            pass that `clip` takes.
        micro: micro-batches, whose gradients are added up for each layer. The first axis of every
            array in a batch counts rows.
        clip: the largest norm of the whole gradient, which is scaled down to it. The norm is exact,
            and takes a second backward pass, before any layer is updated.
        held: how the inputs of layers wait for the backward pass: None for as they are, "int8" and
            "int4" for codes that are right on average, "host" for host memory; as in `jm.Remat`.
        skip_nonfinite: leave params and optimizer as they are if the loss or the gradient has a
            number that is not finite; state["skipped"] counts such steps. It takes the second
            backward pass that `clip` takes, and a state with `counts_skipped`.

    Raises:
        ValueError: when the step is called: no scan takes slices of the params; a stack is also
            read outside its scan, or changed before it; or the update of one array reads the
            gradient of another.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> def loss(params, x):
        ...     x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["layers"])
        ...     return (x**2).mean()
        >>> optimizer = optax.adam(1e-2)
        >>> state = train_state({"layers": jnp.ones((3, 8, 8)) / 8}, optimizer)
        >>> step = jax.jit(released(loss, optimizer, micro=2), donate_argnums=0)
        >>> losses = []
        >>> for _ in range(5):
        ...     state, value = step(state, jnp.ones((4, 8)))
        ...     losses.append(float(value))
        >>> losses[-1] < losses[0]
        True
    """

    def step(state: dict, batch: Any) -> tuple[dict, Array]:
        if skip_nonfinite and "skipped" not in state:
            raise ValueError(
                f"the state has {sorted(state)}, expected that of train_state(..., "
                "counts_skipped=True)"
            )
        opt = state["opt"]
        is_scaled = isinstance(optimizer, ScaledOptimizer)
        if is_scaled and not isinstance(opt, ScaledState):
            raise ValueError("state['opt'] is not that of jm.train.scaled, as the optimizer is")
        plain, scale = (optimizer.inner, opt.scale) if is_scaled else (optimizer, None)
        inner = state | {"opt": opt.inner} if is_scaled else state
        run = TracedStep.of(loss, plain, inner, micro_batches(batch, micro), held, scale)
        crossing, inputs = run.forward()
        first = factor = None
        if clip is not None or skip_nonfinite or is_scaled:
            first = _backward(run, crossing, inputs, run.start(), spends=False)
        if is_scaled:
            factor = 1 / scale
        if clip is not None:
            norm = jnp.sqrt(first.squares)
            norm = norm if factor is None else norm * factor
            factor = clip_factor(norm, clip) * (1.0 if factor is None else factor)

        def updated():
            end = _backward(run, crossing, inputs, run.start(factor), spends=True)
            return run.new_state(end), end.loss

        if not (skip_nonfinite or is_scaled):
            return updated()
        finite = jnp.isfinite(first.loss) & jnp.isfinite(first.squares)
        unchanged = {name: inner[name] for name in ("params", "opt", "step")}
        new, value = lax.cond(finite, updated, lambda: (unchanged, first.loss))
        new["step"] = state["step"] + 1
        if is_scaled:
            new["opt"] = optimizer.after(opt, new["opt"], finite)
        if skip_nonfinite:
            new["skipped"] = state["skipped"] + 1 - finite.astype(jnp.int32)
        return new, value

    return step


def _backward(
    step: TracedStep, crossing: list, inputs: dict, progress: Progress, *, spends: bool
) -> Progress:
    """Progress after a backward pass, which updates params if it `spends` gradients.

    `crossing` and `inputs` are those of `TracedStep.forward`.
    """
    program = step.program
    slopes: Slopes = {}  # gradients by what pieces hand on
    whole: dict[int, Array] = {}  # and by params that pieces read whole
    ends: dict[int, list[int]] = {}  # piece -> the params whose gradients are known after it
    for param in range(len(program.params)):
        if param not in program.stacked:
            last = program.first_reader.get(param, len(program.pieces) - 1)
            ends.setdefault(last, []).append(param)
    for i, piece in reversed(list(enumerate(program.pieces))):
        if isinstance(piece, LayerScan):
            layers = LayerGradients(step, piece, crossing, inputs[i], slopes, spends)
            progress, found, by_param = layers.run(progress)
        else:
            reads = [v for v in piece.reads if v in program.active]
            if due := [v for v in reads if v in step.late and step.index[v] in ends.get(i, [])]:
                # Not before the layers are done, and not together with the first time.
                crossing, kept = lax.optimization_barrier((crossing, list(slopes.values())))
                slopes, last = dict(zip(slopes, kept)), program.pieces[-1]
                whole |= _straight_back(step, last, crossing, step.start(), {}, due, whole)[2]
            if piece is program.pieces[-1]:
                reads = [v for v in reads if v not in step.late]
            progress, found, by_param = _straight_back(
                step, piece, crossing, progress, slopes, reads, whole
            )
            whole, by_param = whole | by_param, {}
        slopes = {v: x for v, x in slopes.items() if v not in piece.writes}
        for total, new in ((slopes, found), (whole, by_param)):
            total |= {k: total[k] + x if k in total else x for k, x in new.items()}
        if i in ends:
            progress = _spend(step, progress, ends[i], whole, spends)
            # The gradient of a head is not kept while layers run.
            progress, kept = lax.optimization_barrier((progress, list(slopes.values())))
            slopes = dict(zip(slopes, kept))
    return progress


def _straight_back(
    step: TracedStep,
    piece: Any,
    crossing: list,
    progress: Progress,
    slopes: Slopes,
    reads: list,
    whole: dict[int, Array],
) -> tuple[Progress, Slopes, dict[int, Array]]:
    """What `LayerGradients.run` gives, for a piece between scans; the last one gives the loss.

    The gradients are those by the variables `reads`; by params, they are added to those in `whole`.
    """
    program, index = step.program, step.index
    is_last = piece is program.pieces[-1]
    outputs = [program.result] if is_last else [v for v in piece.writes if v in slopes]
    if not outputs:
        return progress, {}, {}
    of_params, of_pieces = [v for v in reads if v in index], [v for v in reads if v not in index]

    def add(total, m):
        values = step.values(piece, progress.params, m, entry(crossing, m))

        def run(chosen):
            known = values | dict(zip(reads, chosen))
            known |= piece.run(known)
            return [known[v] for v in outputs]

        out, pull = jax.vjp(run, [values[v] for v in reads])
        share = (1.0 if step.scale is None else step.scale) / step.micro
        mean = [jnp.asarray(share, x.dtype) for x in out] if is_last else None
        found = dict(zip(reads, *pull(mean or entry([slopes[v] for v in outputs], m))))
        loss = out[0].astype(jnp.float32) / step.micro if is_last else jnp.float32(0)
        sums = [x + found[v] for x, v in zip(total[1], of_params)]
        return (total[0] + loss, sums), [found[v] for v in of_pieces]

    zeros = lambda v: jnp.zeros(v.aval.shape, v.aval.dtype)
    sums = [whole[index[v]] if index[v] in whole else zeros(v) for v in of_params]
    (loss, sums), found = step.over_micro_batches(add, (progress.loss, sums))
    progress = dataclasses.replace(progress, loss=loss)
    return progress, dict(zip(of_pieces, found)), dict(zip([index[v] for v in of_params], sums))


def _spend(
    step: TracedStep, progress: Progress, indices: list[int], whole: dict, spends: bool
) -> Progress:
    """Progress after the update of params that are no stacks; takes their gradients of `whole`."""
    shapes = [step.program.params[i].aval for i in indices]
    grads = [whole.pop(i, None) for i in indices]
    grads = [jnp.zeros(v.shape, v.dtype) if g is None else g for g, v in zip(grads, shapes)]
    squares = progress.squares + sum_of_squares(grads)
    if not spends:
        return dataclasses.replace(progress, squares=squares)
    params, opt, shared = list(progress.params), list(progress.opt), progress.shared
    for i, grad in zip(indices, grads):
        places = step.update.of_params([i])
        state = {j: opt[j] for j in places}
        params[i], new, shared = step.updated_in_blocks(
            i, params[i], grad, state, progress.factor, 1 + i
        )
        for j, x in zip(places, new):
            opt[j] = x
    changes = dict(params=params, opt=opt, shared=shared, squares=squares)
    return dataclasses.replace(progress, **changes)
