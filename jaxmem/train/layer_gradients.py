"""LayerGradients: the backward pass of a scan over layers, which updates each layer as it goes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.layer_program import LayerScan, is_float
from ..core.leaf import decode, is_encoded
from ..optimizers.stochastic_rounding import PARAM_SEEDS_PER_STEP
from .gradient_clipping import sum_of_squares
from .residual_codec import restored
from .stack_entries import entry, row_major, with_entry
from .traced_step import Progress, TracedStep

Slopes = dict[Any, Array]  # {variable: the loss's gradient by it (micro-batches, ...)}


@dataclasses.dataclass(frozen=True, eq=False)
class LayerGradients:
    """The backward pass of one scan over layers."""

    step: TracedStep
    piece: LayerScan
    crossing: list  # of `TracedStep.forward`
    inputs: list  # the carry before each layer, held: arrays (micro-batches, layers, ...)
    slopes: Slopes  # by the results of the scan
    spends: bool  # whether params are updated

    @property
    def params(self) -> list[int]:
        """The params whose layers are scanned over."""
        return sorted(self.piece.params)

    @property
    def whole_params(self) -> list:
        """The variables of params that each layer reads whole."""
        return [v for v in self._whole if v in self.step.index]

    @property
    def whole_values(self) -> list:
        """The variables of other values that each layer reads whole, and that have gradients."""
        return [v for v in self._whole if v not in self.step.index]

    @property
    def _whole(self) -> list:
        """Both of them."""
        return list(filter(self.step.program.is_active, dict.fromkeys(self.piece.whole_reads)))

    @property
    def loose(self) -> dict[int, Any]:
        """{place among the slices: the variable} of stacks that are no params."""
        slices = self.piece.loose_slices
        return {place: v for place, v in slices.items() if self.step.program.is_active(v)}

    @property
    def floats(self) -> list[bool]:
        """For each array of the carry that layers change, whether it has a gradient."""
        return [is_float(v) for v in self.piece.state]

    @property
    def result_places(self) -> list[int]:
        """The stacked results that the loss depends on."""
        return [k for k, v in enumerate(self.piece.results[1]) if v in self.slopes]

    def run(self, progress: Progress) -> tuple[Progress, Slopes, dict[int, Array]]:
        """(progress, gradients by what the scan reads, gradients by whole params)."""
        step, piece, start = self.step, self.piece, progress
        stacks, constant = step.update.of_layers(self.params, progress.opt, piece.length)
        zeros = lambda v: jnp.zeros(v.aval.shape, v.aval.dtype)
        many = lambda v: jnp.zeros((step.micro, *v.aval.shape), v.aval.dtype)
        moved = [self.slopes[v] if v in self.slopes else many(v) for v in self.moving_results]
        sums = (
            moved,
            [zeros(v) for v in self.whole_params],
            [many(v) for v in self.whole_values],
            {place: many(v) for place, v in self.loose.items()},
        )

        def layer(t, carried):
            params, opt, shared, squares, sums = carried
            params = row_major(params)
            i = t if piece.reverse else piece.length - 1 - t
            dense = {p: decode(entry(params[p], i)) for p in self.params}
            grads, sums = self.of_layer(i, dense, start.params, sums)
            squares = squares + sum_of_squares(grads)
            if self.spends:
                # A stack is written after all reads of it, so that XLA needs no copy of it.
                grads, sums, params, opt = lax.optimization_barrier((grads, sums, params, opt))
                layers = row_major([entry(params[p], i) for p in self.params])
                state = {j: entry(opt[j], i) for j in stacks}
                state |= {j: start.opt[j] for j in constant}
                new, new_state, shared = self.updated(i, layers, grads, state, start.factor)
                params = row_major(with_entry(params, row_major(dict(zip(self.params, new))), i))
                opt = with_entry(opt, dict(zip(stacks, new_state)), i)
            return params, opt, shared, squares, sums

        carried = (
            {p: progress.params[p] for p in self.params},
            {j: progress.opt[j] for j in stacks},
            progress.shared,
            progress.squares,
            sums,
        )
        params, opt, shared, squares, sums = lax.fori_loop(0, piece.length, layer, carried)
        progress = dataclasses.replace(
            progress,
            params=[params.get(i, x) for i, x in enumerate(progress.params)],
            opt=[opt.get(j, x) for j, x in enumerate(progress.opt)],
            shared=shared,
            squares=squares,
        )
        by_param = dict(zip([step.index[v] for v in self.whole_params], sums[1]))
        return progress, self.by_operand(*sums), by_param

    def updated(self, i: Any, layers: list, grads: list, state: dict, factor: Any) -> tuple:
        """What `TracedStep.updated` gives of layer i.

        Encoded weights are updated one after the other, by blocks, because their rounding has
        temporaries in f32.
        """
        step, triples = self.step, list(zip(self.params, layers, grads))
        dense = [triple for triple in triples if not is_encoded(triple[1])]
        if len(dense) == len(triples):
            return step.updated(self.params, layers, grads, state, factor, self.seed(i))
        new, new_state, shared = {}, dict(state), {}
        of = lambda indices: {j: state[j] for j in step.update.of_params(indices) if j in state}
        for p, w, grad in triples:
            if is_encoded(w):
                its, seed = of([p]), self.seed(i) + (1 + p) * PARAM_SEEDS_PER_STEP
                new[p], changed, shared = step.updated_in_blocks(p, w, grad, its, factor, seed)
                new_state |= dict(zip(its, changed))
        if dense:
            indices, *both = map(list, zip(*dense))
            its = of(indices)
            found, changed, shared = step.updated(indices, *both, its, factor, self.seed(i))
            new |= dict(zip(indices, found))
            new_state |= dict(zip(its, changed))
        return [new[p] for p in self.params], [new_state[j] for j in state], shared

    def of_layer(self, i: Any, dense: dict, params: list, sums: tuple) -> tuple[list, tuple]:
        """(gradients by layer i, added up over micro-batches, and `sums` with what it adds)."""
        step, piece = self.step, self.piece

        def add(total, m):
            grads, (moved, by_param, by_value, by_loose) = total
            values = step.values(piece, params, m, entry(self.crossing, m))
            state = [self.restored(entry(entry(x, m), i)) for x in self.inputs]
            slices = entry(piece.loose(values), i)

            def layer(dense, whole, loose, moving):
                known = values | dict(zip(self._whole, whole))
                taken = {place: dense[param] for place, (param, _) in piece.stacks.items()}
                after, ys = piece.layer(
                    known, _merged(self.floats, moving, state), piece.slices(taken, slices | loose)
                )
                return _chosen(self.floats, after), [ys[k] for k in self.result_places]

            whole = [values[v] for v in self._whole]
            loose = {place: slices[place] for place in self.loose}
            _, pull = jax.vjp(layer, dense, whole, loose, _chosen(self.floats, state))
            results = [self.slopes[piece.results[1][k]] for k in self.result_places]
            found = pull((entry(moved, m), [entry(entry(x, m), i) for x in results]))
            whole = dict(zip(self._whole, found[1]))
            grads = jax.tree.map(jnp.add, grads, found[0])
            by_param = [x + whole[v] for x, v in zip(by_param, self.whole_params)]
            added = [x + whole[v] for x, v in zip(entry(by_value, m), self.whole_values)]
            sums = (
                with_entry(moved, found[3], m),
                by_param,
                with_entry(by_value, added, m),
                with_entry(by_loose, with_entry(entry(by_loose, m), found[2], i), m),
            )
            return (grads, sums), None

        zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, w.dtype), dense)
        (grads, sums), _ = step.over_micro_batches(add, (zeros, sums))
        return [grads[p] for p in self.params], sums

    def restored(self, x: Any) -> Array:
        """An array of the carry, of what `TracedStep.kept` made of it."""
        return x if self.step.held is None else restored(x)

    @property
    def moving_results(self) -> list:
        """The variables of the carry after the last layer, of floats that layers change."""
        return _chosen(self.floats, self.piece.results[0])

    def by_operand(self, moved: list, _: list, by_value: list, by_loose: dict) -> Slopes:
        """The gradients by what the scan reads."""
        slopes: Slopes = {}
        first = _chosen(self.floats, self.piece.state)
        passed = [
            (v, self.slopes[out]) for out, v in self.piece.unchanged.items() if out in self.slopes
        ]
        loose = [(self.loose[place], x) for place, x in by_loose.items()]
        for v, x in (*zip(first, moved), *passed, *zip(self.whole_values, by_value), *loose):
            if self.step.program.is_active(v):
                slopes[v] = slopes[v] + x if v in slopes else x
        return slopes

    def seed(self, i: Any) -> Any:
        """A number for layer i that no other layer of the program has, nor what is no layer."""
        start = 1 + len(self.step.program.params)
        scans = [piece for piece in self.step.program.pieces if isinstance(piece, LayerScan)]
        return i + start + sum(piece.length for piece in scans[: scans.index(self.piece)])


def _chosen(flags: Sequence[bool], values: Sequence[Any]) -> list:
    return [x for x, flag in zip(values, flags) if flag]


def _merged(flags: Sequence[bool], chosen: Sequence[Any], others: Sequence[Any]) -> list:
    """`others`, with the flagged ones taken from `chosen` in turn."""
    rest = iter(chosen)
    return [next(rest) if flag else x for x, flag in zip(others, flags)]
