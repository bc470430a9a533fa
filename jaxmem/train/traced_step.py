"""TracedStep: a training step on its arguments: its forward pass, and its updates."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from ..codecs.integer import IntArray
from ..core.axis_blocks import AxisBlocks
from ..core.layer_program import LayerProgram, LayerScan, Straight, Values, is_float, read
from ..core.leaf import decode, is_encoded
from ..core.paths import leaf_paths
from ..core.traced_mesh import stand_in
from ..optimizers.split_leaf import Split
from .layerwise_update import LayerwiseUpdate
from .residual_codec import Held, keep
from .stack_entries import entry

BLOCK_NUMBERS = 2**22  # of a large array that is no stack, which are updated at a time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """What a backward pass has so far; the last three are f32 scalars."""

    params: list  # leaves
    opt: list  # leaves of the optimizer's state
    shared: dict[int, Array]  # {place: new array} of the state that belongs to no param
    squares: Array  # the sum of the squares of the gradients that are known
    factor: Array | None  # that gradients are multiplied by
    loss: Array


@dataclasses.dataclass(frozen=True, eq=False)
class TracedStep:
    """A training step on the arrays, concrete or traced, of its arguments."""

    program: LayerProgram
    update: LayerwiseUpdate
    state: dict  # of `train_state`
    rows: Any  # the batch, its arrays (micro-batches, rows, ...)
    micro: int
    held: Held | None = None  # how the inputs of layers wait for the backward pass
    scale: Array | None = None  # that the loss is multiplied by for its gradients

    @classmethod
    def of(
        cls,
        loss: Callable,
        optimizer: optax.GradientTransformation,
        state: dict,
        rows: Any,
        held: Held | None = None,
        scale: Array | None = None,
    ):
        """The step; see `released` for the arguments and for what is refused."""
        leaves, tree = jax.tree.flatten(state["params"], is_leaf=is_encoded)
        dense = tree.unflatten([stand_in(x) if is_encoded(x) else x for x in leaves])
        program = LayerProgram.of(loss, dense, entry(rows, None))
        _check(program, leaves, leaf_paths(state["params"]))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dense)
        update = LayerwiseUpdate.of(optimizer, shapes, state["opt"])
        return cls(program, update, state, rows, len(jax.tree.leaves(rows)[0]), held, scale)

    @property
    def index(self) -> dict:
        """{variable: the param that it is}."""
        return {v: i for i, v in enumerate(self.program.params)}

    @property
    def shared(self) -> dict[int, Array]:
        """{place: array} of the optimizer's state that belongs to no param."""
        opt = jax.tree.leaves(self.state["opt"])
        return {j: opt[j] for j, owner in enumerate(self.update.owners) if owner is None}

    @property
    def late(self) -> list:
        """The variables of large params that the last piece and an earlier one between scans read.

        For the gradient of such a param, as a tied embedding is, the last piece is run again when
        the earlier one is: it is not in memory while layers run.
        """
        program, found = self.program, []
        for v in program.pieces[-1].reads:
            first = program.first_reader.get(self.index.get(v))
            is_early = first is not None and isinstance(program.pieces[first], Straight)
            if is_early and first < len(program.pieces) - 1 and v.aval.size > BLOCK_NUMBERS:
                found.append(v)
        return found

    def start(self, factor: Array | None = None) -> Progress:
        """Before the backward pass."""
        zero = jnp.zeros((), jnp.float32)
        leaves = jax.tree.leaves(self.state["params"], is_leaf=is_encoded)
        return Progress(leaves, jax.tree.leaves(self.state["opt"]), self.shared, zero, factor, zero)

    def new_state(self, end: Progress) -> dict:
        """The state after the step."""
        opt = [end.shared.get(j, x) for j, x in enumerate(end.opt)]
        tree = jax.tree.structure(self.state["params"], is_leaf=is_encoded)
        params, opt = tree.unflatten(end.params), self.update.state.unflatten(opt)
        return {"params": params, "opt": opt, "step": self.state["step"] + 1}

    def over_micro_batches(self, fn: Callable, start: Any) -> tuple[Any, Any]:
        """(the last carry, results stacked) of `fn(carry, m)`; m is None if there is only one."""
        if self.micro > 1:
            return lax.scan(fn, start, jnp.arange(self.micro))
        end, ys = fn(start, None)
        return end, jax.tree.map(lambda y: y[None], ys)

    def values(self, piece: Any, params: Sequence[Any], m: Any, crossing: Sequence[Any]) -> Values:
        """The values that a piece may read, for micro-batch m; see `LayerProgram.crossing`."""
        program = self.program
        whole = {v: in_blocks(params[self.index[v]]) for v in piece.reads if v in self.index}
        batch = dict(zip(program.batch, jax.tree.leaves(entry(self.rows, m))))
        return program.consts | batch | dict(zip(program.crossing, crossing)) | whole

    def forward(self) -> tuple[list, dict[int, list]]:
        """(`LayerProgram.crossing`, {piece: the carry before each layer}), over micro-batches.

        Carries are as `keep` makes them, where inputs of layers are held in another form.
        """
        program, params = self.program, self.start().params

        def run(_, m):
            crossing, inputs = {}, {}
            for i, piece in enumerate(program.pieces[:-1]):
                values = self.values(piece, params, m, ()) | crossing
                if isinstance(piece, Straight):
                    crossing |= piece.run(values)
                else:
                    written, inputs[i] = self.run_layers(piece, values, params)
                    crossing |= written
            return None, ([crossing[v] for v in program.crossing], inputs)

        return self.over_micro_batches(run, None)[1]

    def run_layers(self, piece: LayerScan, values: Values, params: list) -> tuple[Values, list]:
        """(what a scan over layers writes, the carry before each layer)."""
        stacks = {place: params[i] for place, (i, _) in piece.stacks.items()}
        is_any_encoded = any(map(is_encoded, stacks.values()))

        def layer(state, slices):
            layers, others = slices
            if is_any_encoded:  # XLA would decode the whole stack before the loop, and slice that
                layers = lax.optimization_barrier(layers)
            after, ys = piece.layer(values, state, piece.slices(decode(layers), others))
            return after, (self.kept(state), ys)

        start = [read(v, values) for v in piece.state]
        options = dict(length=piece.length, reverse=piece.reverse)
        end, (inputs, ys) = lax.scan(layer, start, (stacks, piece.loose(values)), **options)
        results = dict(zip(piece.results[0], end)) | dict(zip(piece.results[1], ys))
        results |= {v: read(carry, values) for v, carry in piece.unchanged.items()}
        return {v: results[v] for v in piece.writes}, inputs

    def kept(self, state: list) -> list:
        """The carry before a layer, as it waits for the backward pass."""
        if self.held is None:
            return state
        return [keep(x, self.held, i, exact=False) for i, x in enumerate(state)]

    def updated_in_blocks(
        self,
        index: int,
        param: Any,
        grad: Array,
        state: dict[int, Array],
        factor: Array | None,
        seed: Any,
    ) -> tuple[Any, list, dict[int, Array]]:
        """`updated` of one param, or a layer of it, some rows or columns at a time if it is large.

        Its temporaries are those of `BLOCK_NUMBERS` numbers; XLA would make some of the whole.
        """
        leaves, tree = jax.tree.flatten(param)

        def change(*arrays):
            param, grad = tree.unflatten(arrays[: len(leaves)]), arrays[len(leaves)]
            its = dict(zip(state, arrays[len(leaves) + 1 :]))
            new, new_state, shared = self.updated([index], [param], [grad], its, factor, seed)
            return [*jax.tree.leaves(new), *new_state, *shared.values()]

        args, entries = [*leaves, grad, *state.values()], max(grad.shape, default=1)
        blocks = AxisBlocks.of(change, args, entries) if grad.size > BLOCK_NUMBERS else None
        if blocks is None:
            results = change(*args)
        else:
            n = len(leaves)
            places = {i: i if i < n else i + 1 for i in range(n + len(state))}
            results = blocks.run(args, places, BLOCK_NUMBERS * entries // grad.size)
        new, rest = results[: len(leaves)], results[len(leaves) :]
        shared = dict(zip(self.shared, rest[len(state) :]))
        return tree.unflatten(new), rest[: len(state)], shared

    def updated(
        self,
        indices: Sequence[int],
        params: Sequence[Any],
        grads: Sequence[Array],
        state: dict[int, Array],
        factor: Array | None,
        seed: Any,
    ) -> tuple[list, list, dict[int, Array]]:
        """(new params, their new state, the state that belongs to no param).

        Args:
            indices: which params these are.
            params: leaves, or a layer of each.
            grads: their gradients.
            state: {place: array} of the optimizer's state that belongs to them.
            factor: that the gradients are multiplied by; None for 1.
            seed: differs between two updates of one step.
        """
        if factor is not None:
            # One in float16 might become 0 if it is divided by a loss scale.
            wide = lambda g: g.astype(jnp.float32) if g.dtype == jnp.float16 else g
            grads = [wide(g) * factor.astype(wide(g).dtype) for g in grads]
        scans = [piece for piece in self.program.pieces if isinstance(piece, LayerScan)]
        seeds = 1 + len(self.program.params) + sum(piece.length for piece in scans)
        step = (self.state["step"] + 1) * seeds + seed
        dense = [decode(w) for w in params]
        new = self.update(indices, params, dense, grads, state, self.shared, step)
        return *new[:2], dict(zip(self.shared, new[2]))


def in_blocks(leaf: Any) -> Array:
    """`leaf.decode()`; a large one by blocks, because XLA would make temporaries in f32 of all."""
    if not is_encoded(leaf) or math.prod(leaf.shape) <= BLOCK_NUMBERS:
        return decode(leaf)
    leaves, tree = jax.tree.flatten(leaf)
    entries = max(leaf.shape)
    dense = lambda *leaves: [tree.unflatten(leaves).decode()]
    blocks = AxisBlocks.of(dense, leaves, entries)
    if blocks is None:
        return decode(leaf)
    return blocks.run(leaves, {}, BLOCK_NUMBERS * entries // math.prod(leaf.shape))[0]


def _check(program: LayerProgram, leaves: list, names: list[str]) -> None:
    """Refuses params that cannot be updated layer by layer."""
    for v, leaf, name in zip(program.params, leaves, names):
        if not is_float(v):
            raise TypeError(f"{name!r} is {v.aval.dtype}, expected floats: keep it in the batch")
        is_int8 = isinstance(leaf, IntArray) and leaf.bits == 8 and leaf.zero is None
        if is_encoded(leaf) and not is_int8 and not isinstance(leaf, Split):
            raise TypeError(
                f"{name!r} is {type(leaf).__name__}, expected an array, Int(8) or Split"
            )
    scans = [piece for piece in program.pieces if isinstance(piece, LayerScan)]
    for i in program.stacked:
        is_read = any(program.params[i] in piece.reads for piece in program.pieces)
        if is_read or sum(i in piece.params for piece in scans) > 1:
            raise ValueError(
                f"{names[i]!r} is also read outside its scan over layers, expected that only the "
                "scan reads it: a penalty of weights goes into the optimizer, as in optax.adamw"
            )
    for v in [v for piece in scans for v in piece.loose_slices.values()]:
        if program.is_active(v) and v.aval.ndim > 2:
            raise ValueError(
                f"a scan over layers takes slices of a computed array of shape {v.aval.shape}, "
                "expected stacks of the params as they are stored: transpose or reshape a layer "
                "inside the scan, not the stack before it"
            )
