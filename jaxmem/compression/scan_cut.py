"""A function cut at its scan over layers: the part before it, one layer, the part after it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.jaxpr_rewrites import around_scans
from ..core.paths import is_whole, paths


@dataclasses.dataclass(frozen=True)
class ScanCut:
    """`fn(params, *batch)`, cut at its first scan.

    Two cuts of one function are equal, so that a program compiled for one serves the other.
    """

    fn: Callable
    structure: Any  # of the params
    shapes: tuple  # of its leaves
    names: tuple[str, ...]
    places: tuple[tuple[str, int], ...]  # (path, index in the scan's xs) of a scanned weight
    count: int  # layers

    layered = property(lambda self: dict(self.places))
    abstract = property(lambda self: self.structure.unflatten(self.shapes))  # the params

    @classmethod
    def of(cls, fn: Callable, params: Any, batch: tuple) -> "ScanCut":
        """The cut of `fn`, found by tracing it on one batch.

        Raises:
            NoLayers: `fn` runs no scan, its scan returns more than its carry, or no weight reaches
                it as it is in the params.
        """
        leaves, structure = jax.tree.flatten(params, is_leaf=is_whole)
        shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
        names, places, counts = tuple(paths(params)), {}, []
        cut = cls(fn, structure, shapes, names, (), 0)

        def trace(leaves, batch):
            carry, body, xs = cut._first_scan(structure.unflatten(leaves), batch)
            if jax.tree.leaves(body(list(carry), [x[0] for x in xs])[1]):
                raise NoLayers("the scan over layers returns more than its carry")
            by_id = {id(leaf): name for leaf, name in zip(leaves, names)}
            places.update({by_id[id(x)]: j for j, x in enumerate(xs) if id(x) in by_id})
            counts.extend(map(len, xs))
            return ()

        jax.eval_shape(trace, list(shapes), batch)
        if not places:
            raise NoLayers("no weight reaches the scan over layers as it is in the params")
        return dataclasses.replace(cut, places=tuple(places.items()), count=counts[0])

    @functools.partial(jax.jit, static_argnums=0)
    def start(self, rest: dict, batch: tuple) -> list[Array]:
        """The carry that the first layer gets; `rest` has the weights outside the scan by path."""
        return self._first_scan(self._all_params(rest), batch)[0]

    def block(self, layer: dict, rest: dict, i: Any, carry: list, batch: tuple) -> list[Array]:
        """The carry after layer i; `layer` has its weights by path, without the stack axis."""
        _, body, xs = self._first_scan(self._all_params(rest), batch)
        weights = {place: layer[path] for path, place in self.layered.items()}
        of_layer = lambda x: lax.dynamic_index_in_dim(jnp.asarray(x), i, keepdims=False)
        slices = [weights[j] if j in weights else of_layer(x) for j, x in enumerate(xs)]
        return body(list(carry), slices)[0]

    run_block = functools.partial(jax.jit, static_argnums=0)(block)

    def tail(self, rest: dict, carry: list, batch: tuple) -> Any:
        """The output of `fn`, given the carry after the last layer."""
        skipped = []

        def skip(body, init, xs, length, **options):
            if skipped:
                return lax.scan(body, init, xs, length, **options)
            skipped.append(True)
            return list(carry), []

        return around_scans(self.fn, _same, skip)(self._all_params(rest), *batch)

    def _first_scan(self, params: Any, batch: tuple) -> tuple:
        """(the initial carry, the body, the scanned arrays) of the first scan in `fn`."""

        def stop(body, init, xs, length, **options):
            raise _ScanReached(init, body, xs)

        try:
            around_scans(self.fn, _same, stop)(params, *batch)
        except _ScanReached as reached:
            return reached.args
        raise NoLayers("the model runs no scan, expected one over its layers")

    def _all_params(self, rest: dict) -> Any:
        """All params, with zeros in place of the scanned ones."""
        zeros = lambda x: jnp.zeros(x.shape, x.dtype)
        return self.structure.unflatten(
            [rest[n] if n in rest else zeros(x) for n, x in zip(self.names, self.shapes)]
        )


def scans_layers(fn: Callable, params: Any, batch: tuple) -> bool:
    """Whether `fn(params, *batch)` can be cut at a scan over its layers."""
    try:
        ScanCut.of(fn, params, batch)
    except NoLayers:
        return False
    return True


class NoLayers(ValueError):
    """A function cannot be cut, because it has no scan over layers of the kind that is needed."""


class _ScanReached(Exception):
    """Raised at the scan over layers, with its initial carry, its body and its scanned arrays."""


def _same(body: Callable) -> Callable:
    return body
