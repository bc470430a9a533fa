"""encode_by_block: each layer calibrated on what the encoded layers before it give."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..calibration.batches import tuples
from ..calibration.statistics import product_axes, stats
from ..core.codec import needs_stats
from ..core.lazy import is_lazy
from ..core.leaf import decode
from ..core.lifting import around_scans
from ..core.paths import is_whole, paths
from ..core.segmented import Segmented
from ..core.usage import uses
from ..train import learnable_int, learned_rounding, losses
from .encoding import encode, joined
from .layer_paths import by_layer, layers_of


def encode_by_block(
    model: Any,
    plan: Mapping[str, Any],
    batches: Iterable[tuple],
    *,
    passes: int = 0,
    learning_rate: float = 0.02,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """What `encode(model.tensors, plan)` gives, each block calibrated after the ones before it.

    `model` has `tensors`, which may be lazy, and `apply(params, *batch)` with one scan over its
    layers, as the models here have. A block's Gram moments are taken of what the blocks before it,
    encoded, hand on, so that it makes up for what they lost; then it is encoded, and run. What
    comes after the scan (a head) is calibrated last. `progress(done, blocks)` is told.

    With `passes` the codes and scales of a block's `Int` leaves then learn (`learn_rounding`, at
    `learning_rate`), so many times over the batches: what the block makes of its inputs comes near,
    relative to the size of each position, to what the dense block makes of the dense model's. What
    is no nearer in the end is not kept.

    In memory at once: the encoded model, the weights outside the scan, one block with its moments
    (and 16 bytes for each weight of it that learns), and the activations of one batch; those of the
    others wait in a temporary file each. Frantar et al., 2022 (section 4, "quantize one block at a
    time"); Chen et al., 2024 (EfficientQAT, its first phase).

    Raises:
        ValueError: no batch; passes below 0, or with nothing that learns; a loss that is not
            finite; a model without a scan over its layers, or one that changes weights on their
            way there; what `encode` raises.
        TypeError: no model, or a batch that is no tuple.

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
    cut = Cut.of(model.apply, model.tensors, batches[0])
    leaves = jax.tree.leaves(model.tensors, is_leaf=is_whole)
    rest = {
        path: jnp.asarray(leaf.load() if is_lazy(leaf) else leaf)
        for path, leaf in zip(cut.names, leaves)
        if path not in cut.layered
    }
    layered = {path: leaf for path, leaf in zip(cut.names, leaves) if path in cut.layered}
    ways = uses(model.apply, cut.abstract, *batches[0])
    if passes:
        _check_learning(cut, plan, ways)
    shapes = dict(zip(cut.names, (x.shape for x in cut.shapes)))
    codecs = by_layer(plan, shapes)
    pieces = []
    with tempfile.TemporaryDirectory() as folder:
        carries = [_Kept(f"{folder}/{i}") for i in range(len(batches))]
        for kept, batch in zip(carries, batches):
            kept.put(cut.start(rest, batch))
        exact = [_Kept(f"{folder}/exact-{i}") for i in range(len(batches))] if passes else []
        for dense, kept in zip(exact, carries):
            dense.put(kept.get())
        wanted = {path: codec for path, codec in codecs.items() if path in rest}
        fed = product_axes(cut.tail, rest, (carries[0].get(), batches[0]))
        for path, codec in wanted.items():  # told now, not after the blocks
            if needs_stats(codec) and path not in fed:
                raise ValueError(f"{path}: {codec} wants stats of a product after the layers")

        def one(i: int) -> dict:  # a function, so that nothing of a block outlives it
            own = {path: jnp.asarray(_layer(leaf, i)) for path, leaf in layered.items()}
            given = lambda: ((rest, i, k.get(), b) for k, b in zip(carries, batches))
            here = {path: codec for path in own if (codec := _codec(codecs.get(path), i))}
            seen = stats(cut.block, own, given()) if here else None
            found = encode(own, here, uses=uses(cut.block, own, *next(given())), stats=seen)
            for kept, batch in zip(exact, batches):
                kept.put(_run(cut, own, rest, i, kept.get(), batch))
            if passes:
                how = learned_rounding.Options(
                    cut.block, losses.relative, learning_rate, passes * len(batches)
                )
                found = _learned(how, own, found, given, lambda: (k.get() for k in exact))
            del own, seen
            dense = decode(found)
            for kept, (*before, carry, batch) in zip(carries, given()):
                kept.put(_run(cut, dense, *before, carry, batch))
            return found

        for i in range(cut.count):
            pieces.append(one(i))
            if progress:
                progress(i + 1, cut.count)
        seen = None
        if wanted:
            seen = stats(cut.tail, rest, ((k.get(), b) for k, b in zip(carries, batches)))
    found = encode(rest, wanted, uses=ways, stats=seen)
    for path in layered:
        runs = codecs.get(path)
        runs = runs if isinstance(runs, list) else [(0, cut.count, runs)]
        stacks = tuple(_stack([piece[path] for piece in pieces[a:b]]) for a, b, _ in runs)
        found[path] = stacks[0] if len(stacks) == 1 else Segmented(stacks)
    return cut.structure.unflatten([found[path] for path in cut.names])


def _check_learning(cut: "Cut", plan: Mapping[str, Any], ways: Mapping) -> None:
    """Refuses passes over blocks of which nothing learns."""
    own = {path: codec for path, codec in plan.items() if layers_of(path)[0] in cut.layered}
    whole = encode(cut.abstract, own, uses=ways)
    if not jax.eval_shape(learnable_int.split_trainable, whole, cut.abstract)[0]:
        codecs = ", ".join(sorted(set(map(str, own.values())))) or "none"
        raise ValueError(f"passes, but no codec of the blocks leaves an Int to learn: {codecs}")


def _learned(how: tuple, own: dict, enc: dict, given: Callable, targets: Callable) -> dict:
    """The block's leaves after the steps, or `enc` where these brought nothing."""
    fn, loss, _, steps = how
    moving, still = learnable_int.split_trainable(enc, own)
    if not moving:
        return enc
    state, done = learned_rounding.init_state(how, moving), 0
    while done < steps:
        for args, target in zip(given(), targets()):
            moving, state, value = learned_rounding.train_step(
                how, moving, state, still, own, args, target
            )
            if not jnp.isfinite(value):
                message = f"block {args[1]}: the loss is {float(value)}, expected a finite number"
                raise ValueError(message)
            done += 1
    far = lambda tree: sum(
        float(_distance(fn, loss, tree, args, target)) for args, target in zip(given(), targets())
    )
    found = learnable_int.encode_trained(moving, still)
    return found if far(decode(found)) < far(decode(enc)) else enc


@dataclasses.dataclass(frozen=True)
class Cut:
    """`fn(params, *batch)` cut at its scan over layers: what comes before, one layer, and after.

    Two of the same are equal, so that what was compiled for one is there for the other.
    """

    fn: Callable
    structure: Any  # of the params
    shapes: tuple  # of its leaves
    names: tuple[str, ...]
    places: tuple[tuple[str, int], ...]  # path of a weight that the scan runs over, and where there
    count: int  # layers

    layered = property(lambda self: dict(self.places))
    abstract = property(lambda self: self.structure.unflatten(self.shapes))  # the params

    @classmethod
    def of(cls, fn: Callable, params: Any, batch: tuple) -> "Cut":
        leaves, structure = jax.tree.flatten(params, is_leaf=is_whole)
        shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
        names, found, counts = tuple(paths(params)), {}, []
        cut = cls(fn, structure, shapes, names, (), 0)

        def trace(leaves, batch):
            xs = cut._opened(structure.unflatten(leaves), batch)[2]
            where = {id(leaf): name for leaf, name in zip(leaves, names)}
            found.update({where[id(x)]: j for j, x in enumerate(xs) if id(x) in where})
            counts.extend(map(len, xs))
            return ()

        jax.eval_shape(trace, list(shapes), batch)
        if not found:
            raise ValueError("no weight reaches the scan over layers as it is in the params")
        return dataclasses.replace(cut, places=tuple(found.items()), count=counts[0])

    def start(self, rest: dict, batch: tuple) -> list[Array]:
        """What the first layer is given."""
        return _start(self, rest, batch)

    def block(self, own: dict, rest: dict, i: Any, carry: list, batch: tuple) -> list[Array]:
        """What layer i makes of `carry` with its own weights, {path: array without the stack}."""
        _, body, xs = self._opened(self._filled(rest), batch)
        at = {place: own[path] for path, place in self.layered.items()}
        pick = lambda x: lax.dynamic_index_in_dim(jnp.asarray(x), i, keepdims=False)
        out, ys = body(list(carry), [at[j] if j in at else pick(x) for j, x in enumerate(xs)])
        if jax.tree.leaves(ys):
            raise ValueError("the scan over layers returns more than its carry")
        return out

    def tail(self, rest: dict, carry: list, batch: tuple) -> Any:
        """What `fn` makes of what comes out of the last layer."""
        passed = []

        def skip(body, init, xs, length, **how):
            if passed:
                return lax.scan(body, init, xs, length, **how)
            passed.append(True)
            return list(carry), []

        return around_scans(self.fn, _same, skip)(self._filled(rest), *batch)

    def _opened(self, params: Any, batch: tuple) -> tuple:
        """(what the first scan starts from, its body, what it runs over)."""

        def stop(body, init, xs, length, **how):
            raise _Reached(init, body, xs)

        try:
            around_scans(self.fn, _same, stop)(params, *batch)
        except _Reached as reached:
            return reached.args
        raise ValueError("the model runs no scan, expected one over its layers")

    def _filled(self, rest: dict) -> Any:
        """All params, zeros for those of the layers."""
        zeros = lambda x: jnp.zeros(x.shape, x.dtype)
        return self.structure.unflatten(
            [rest[n] if n in rest else zeros(x) for n, x in zip(self.names, self.shapes)]
        )


class _Reached(Exception):
    """The scan over layers, with what it starts from, its body and what it runs over."""


@dataclasses.dataclass
class _Kept:
    """Arrays that wait in files, one batch's activations."""

    path: str
    kinds: tuple = ()

    def put(self, arrays: list[Array]) -> None:
        self.kinds = tuple((x.dtype, x.shape) for x in arrays)
        for j, x in enumerate(arrays):
            np.asarray(x).tofile(f"{self.path}-{j}")

    def get(self) -> list[Array]:
        read = lambda j, dtype: np.fromfile(f"{self.path}-{j}", dtype)
        return [jnp.asarray(read(j, d).reshape(s)) for j, (d, s) in enumerate(self.kinds)]


@functools.partial(jax.jit, static_argnums=0)
def _start(cut, rest, batch):
    return cut._opened(cut._filled(rest), batch)[0]


@functools.partial(jax.jit, static_argnums=0)
def _run(cut, own, rest, i, carry, batch):
    return cut.block(own, rest, i, carry, batch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _distance(fn, loss, own, args, target):
    return loss(target, fn(own, *args))


def _codec(codec: Any, i: int) -> Any:
    """Of layer i, from what `by_layer` tells of a leaf."""
    if not isinstance(codec, list):
        return codec
    return next(own for start, stop, own in codec if start <= i < stop)


def _stack(pieces: list) -> Any:
    """Layers of equal structure as a stack."""
    parts = [jax.tree.map(lambda a: a[None], piece) for piece in pieces]
    deep = lambda a: jax.ShapeDtypeStruct((len(pieces), *a.shape[1:]), a.dtype)
    return joined(jax.tree.map(deep, parts[0]), parts)


def _layer(leaf: Any, i: int) -> Any:
    return np.asarray(leaf.read(i), leaf.dtype) if is_lazy(leaf) else leaf[i]


def _same(body: Callable) -> Callable:
    return body
