"""encode_by_block: each layer calibrated on what the encoded layers before it give."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..calibration.batches import tuples
from ..calibration.statistics import product_axes, stats
from ..core.arguments import AT_LEAST_0, BATCHES, takes
from ..core.codec import needs_stats
from ..core.lazy import is_lazy
from ..core.leaf import decode
from ..core.paths import is_whole
from ..core.segmented import Segmented
from ..core.usage import uses
from ..train import learnable_int, learned_rounding, output_losses
from .encoding import encode
from .joined_pieces import joined
from .plan_paths import by_layer, layers_of
from .scan_cut import ScanCut


@takes(batches=BATCHES, learning_rate=AT_LEAST_0)
def encode_by_block(
    model: Any,
    plan: Mapping[str, Any],
    batches: Iterable[tuple],
    *,
    passes: int = 0,
    learning_rate: float = 0.02,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """The encoded params of a model, each block calibrated on the outputs of encoded blocks.

    The Gram moments of a block are taken from the outputs of the encoded blocks before it, so that
    the block corrects their errors. Then the block is encoded and run. The weights after the scan
    (a head) are calibrated last.

    Memory holds the encoded model, the weights outside the scan, one block with its moments (and 16
    bytes for each weight that is trained), and the activations of one batch. The activations of
    each other batch wait in a temporary file. Frantar et al., 2022 (section 4, "quantize one block
    at a time"); Chen et al., 2024 (EfficientQAT, its first phase).

    Args:
        model: has `tensors`, which may be lazy, and `apply(params, *batch)` with one scan over its
            layers, as the models of `jm.models` have.
        plan: {path: codec}.
        batches: tuples of what `apply` takes after the params.
        passes: how often the codes and scales of a block's `Int` leaves are trained on all batches
            (`learn_rounding`), to bring the outputs of the encoded block near those of the dense
            block on the dense model's activations. A block that this does not improve stays as it
            was encoded.
        learning_rate: that of this training.
        progress: called as `progress(blocks done, blocks)`.

    Raises:
        ValueError: no batch; `passes` is negative, or no leaf can be trained; a loss is not finite;
            the model has no scan over its layers, or changes weights before the scan; what `encode`
            raises.
        TypeError: `model` has no `tensors` or `apply`; a batch is no tuple.

    Example:
        >>> import types, jax, jax.numpy as jnp, jaxmem as jm
        >>> def apply(params, x):
        ...     layer = lambda x, w: (x + jnp.tanh(x @ w), None)
        ...     return jax.lax.scan(layer, x, params["layers"])[0]
        >>> params = {"layers": jax.random.normal(jax.random.key(0), (3, 32, 32))}
        >>> model = types.SimpleNamespace(tensors=params, apply=apply)
        >>> plan = {"layers": jm.GPTQ(jm.Int(4))}
        >>> enc = encode_by_block(model, plan, [(jnp.ones((8, 32)),)])
        >>> jm.is_encoded(enc["layers"]), enc["layers"].shape
        (True, (3, 32, 32))
    """
    if not (hasattr(model, "tensors") and hasattr(model, "apply")):
        kind = type(model).__name__
        raise TypeError(f"encode_by_block takes a model with tensors and apply, got {kind}")
    batches = list(tuples(batches, "encode_by_block"))
    if passes < 0:
        raise ValueError(f"passes is {passes}, expected at least 0")
    cut = ScanCut.of(model.apply, model.tensors, batches[0])
    leaves = jax.tree.leaves(model.tensors, is_leaf=is_whole)
    rest = {
        path: jnp.asarray(leaf.load() if is_lazy(leaf) else leaf)
        for path, leaf in zip(cut.names, leaves)
        if path not in cut.layered
    }
    layered = {path: leaf for path, leaf in zip(cut.names, leaves) if path in cut.layered}
    all_uses = uses(model.apply, cut.abstract, *batches[0])
    if passes:
        _check_trainable(cut, plan, all_uses)
    shapes = dict(zip(cut.names, (x.shape for x in cut.shapes)))
    codecs = by_layer(plan, shapes)
    blocks = []
    with tempfile.TemporaryDirectory() as folder:
        carries = _store(f"{folder}/carry", (cut.start(rest, batch) for batch in batches))
        exact = _store(f"{folder}/exact", (carry.get() for carry in carries)) if passes else []
        rest_plan = {path: codec for path, codec in codecs.items() if path in rest}
        multiplied = product_axes(cut.tail, rest, (carries[0].get(), batches[0]))
        for path, codec in rest_plan.items():  # raised before the blocks are encoded
            if needs_stats(codec) and path not in multiplied:
                raise ValueError(f"{path}: {codec} wants stats of a product after the layers")

        def encode_layer(i: int) -> dict:  # a function, so that no array of a layer outlives it
            layer = {path: jnp.asarray(_layer(leaf, i)) for path, leaf in layered.items()}
            inputs = lambda: ((rest, i, c.get(), b) for c, b in zip(carries, batches))
            layer_plan = {path: codec for path in layer if (codec := _codec(codecs.get(path), i))}
            # Moments of what the encoded layers before give, then the codes.
            moments = stats(cut.block, layer, inputs()) if layer_plan else None
            layer_uses = uses(cut.block, layer, *next(inputs()))
            encoded = encode(layer, layer_plan, uses=layer_uses, stats=moments)
            for carry, batch in zip(exact, batches):
                carry.put(cut.run_block(layer, rest, i, carry.get(), batch))
            if passes:
                options = learned_rounding.Options(
                    cut.block, output_losses.relative, learning_rate, passes * len(batches)
                )
                targets = lambda: (carry.get() for carry in exact)
                encoded = _train_codes(options, layer, encoded, inputs, targets)
            del layer, moments
            # The activations that the next layer is given.
            dense = decode(encoded)
            for file, (*before, carry, batch) in zip(carries, inputs()):
                file.put(cut.run_block(dense, *before, carry, batch))
            return encoded

        for i in range(cut.count):
            blocks.append(encode_layer(i))
            if progress:
                progress(i + 1, cut.count)
        moments = None
        if rest_plan:
            moments = stats(cut.tail, rest, ((c.get(), b) for c, b in zip(carries, batches)))
    encoded = encode(rest, rest_plan, uses=all_uses, stats=moments)
    for path in layered:
        runs = codecs.get(path)
        runs = runs if isinstance(runs, list) else [(0, cut.count, runs)]
        stacks = tuple(_stack([block[path] for block in blocks[a:b]]) for a, b, _ in runs)
        encoded[path] = stacks[0] if len(stacks) == 1 else Segmented(stacks)
    return cut.structure.unflatten([encoded[path] for path in cut.names])


def _check_trainable(cut: ScanCut, plan: Mapping[str, Any], ways: Mapping) -> None:
    """Refuses passes over blocks in which no leaf can be trained."""
    is_of_layers = lambda path: layers_of(path, cut.layered)[0] in cut.layered
    of_layers = {path: codec for path, codec in plan.items() if is_of_layers(path)}
    whole = encode(cut.abstract, of_layers, uses=ways)
    if not jax.eval_shape(learnable_int.split_trainable, whole, cut.abstract)[0]:
        codecs = ", ".join(sorted(set(map(str, of_layers.values())))) or "none"
        raise ValueError(f"passes, but no codec of the blocks leaves an Int to learn: {codecs}")


def _train_codes(
    options: tuple, layer: dict, enc: dict, inputs: Callable, targets: Callable
) -> dict:
    """The leaves of a layer after training, or `enc` if training did not lower the loss."""
    fn, loss, _, steps = options
    moving, still = learnable_int.split_trainable(enc, layer)
    if not moving:
        return enc
    state, done = learned_rounding.init_state(options, moving), 0
    while done < steps:
        for args, target in zip(inputs(), targets()):
            moving, state, value = learned_rounding.train_step(
                options, moving, state, still, layer, args, target
            )
            if not jnp.isfinite(value):
                message = f"block {args[1]}: the loss is {float(value)}, expected a finite number"
                raise ValueError(message)
            done += 1
    total_loss = lambda tree: sum(
        float(_layer_loss(fn, loss, tree, args, target))
        for args, target in zip(inputs(), targets())
    )
    trained = learnable_int.encode_trained(moving, still)
    return trained if total_loss(decode(trained)) < total_loss(decode(enc)) else enc


@dataclasses.dataclass
class _ActivationFile:
    """The activations of one batch, as arrays that wait in files."""

    path: str
    kinds: tuple = ()

    def put(self, arrays: list[Array]) -> None:
        self.kinds = tuple((x.dtype, x.shape) for x in arrays)
        for j, x in enumerate(arrays):
            np.asarray(x).tofile(f"{self.path}-{j}")

    def get(self) -> list[Array]:
        read = lambda j, dtype: np.fromfile(f"{self.path}-{j}", dtype)
        return [jnp.asarray(read(j, d).reshape(s)) for j, (d, s) in enumerate(self.kinds)]


def _store(path: str, activations: Iterable[list[Array]]) -> list[_ActivationFile]:
    """Writes the activations of each batch, one batch in memory at a time."""
    files = []
    for i, arrays in enumerate(activations):
        files.append(_ActivationFile(f"{path}-{i}"))
        files[-1].put(arrays)
    return files


@functools.partial(jax.jit, static_argnums=(0, 1))
def _layer_loss(fn, loss, layer, args, target):
    return loss(target, fn(layer, *args))


def _codec(codec: Any, i: int) -> Any:
    """The codec of layer i, from a value of `by_layer`."""
    if not isinstance(codec, list):
        return codec
    return next(c for start, stop, c in codec if start <= i < stop)


def _stack(pieces: list) -> Any:
    """Encoded layers of equal structure as one stack."""
    parts = [jax.tree.map(lambda a: a[None], piece) for piece in pieces]
    deep = lambda a: jax.ShapeDtypeStruct((len(pieces), *a.shape[1:]), a.dtype)
    return joined(jax.tree.map(deep, parts[0]), parts)


def _layer(leaf: Any, i: int) -> Any:
    """Layer i of a stacked weight, read now if the weight is lazy."""
    return np.asarray(leaf.read(i), leaf.dtype) if is_lazy(leaf) else leaf[i]
