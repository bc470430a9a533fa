"""The layers of each parameter for an export: names of their tensors, codes and numbers."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..architectures.weights.weight_map import WeightMap
from ..codecs.cast import CastArray
from ..codecs.double_quantized_scales import DoubleQuantArray
from ..codecs.dynamic_quantization import DynamicArray
from ..codecs.float_offset import AffineArray
from ..codecs.host_packing import unpack_on_host
from ..codecs.integer import IntArray
from ..core.fold import Fold
from ..core.lazy import is_lazy
from ..core.leaf import is_encoded
from ..core.paths import is_whole, path_of_layers, paths
from ..models.model import Model, family


@dataclasses.dataclass(frozen=True)
class Written:
    """A report of an export: bytes of the file, the type of each parameter, and what was lost.

    `decoded` lists encoded leaves for which the format has no exact form, `unrounded` those whose
    inputs were rounded (`Dynamic`), which the file does not express. If layers are encoded
    differently, each run of layers has a path: `layers[0:2]/mlp/up/kernel`.
    """

    path: str
    nbytes: int
    types: dict[str, str]
    decoded: tuple[str, ...]
    unrounded: tuple[str, ...]

    def __str__(self) -> str:
        kinds = sorted(set(self.types.values()))
        count = lambda kind: sum(t == kind for t in self.types.values())
        counts = ", ".join(f"{count(kind)} in {kind}" for kind in kinds)
        lost = {
            "decoded, for want of an exact form": self.decoded,
            "inputs are no longer rounded": self.unrounded,
        }
        losses = [f"; {loss}: {', '.join(names)}" for loss, names in lost.items() if names]
        return f"{self.path}: {self.nbytes:,} bytes; {counts}{''.join(losses)}"


def parameters(
    model: Model,
    params: Any,
    weight_maps: dict[str, WeightMap] | None = None,
    *,
    shapes: bool = False,
) -> Iterator[tuple[str, WeightMap, Any]]:
    """The path, the weight map and the leaf of each parameter.

    `weight_maps` are by default those of a Hugging Face checkpoint. `shapes`: the params may be
    abstract. A stack whose layers are
    encoded differently yields several, one for each run of layers.

    Raises:
        ValueError: `params` are not those of the model, or are shapes.
    """
    weight_maps = weight_maps or family(model.config).weights(model.config)
    for path, leaf in leaves(model, params, weight_maps, shapes=shapes).items():
        weight_map = weight_maps[path]
        ends = leaf.ends if is_encoded(leaf) else ()
        if not ends:
            yield path, weight_map, leaf
        for start, stop in itertools.pairwise((0, *ends)):
            run = weight_map.layers(start, stop - start)
            yield path_of_layers(path, start, stop), run, leaf.layers(start, stop)


def leaves(
    model: Model, params: Any, weight_maps: dict[str, WeightMap], *, shapes: bool = False
) -> dict[str, Any]:
    """The leaf of each parameter by its path, in the order of `weight_maps`.

    `shapes`: the params may be abstract.

    Raises:
        ValueError: `params` are not those of the model, or are shapes.
    """
    tree = model.tensors if params is None else params
    by_path = dict(zip(paths(tree), jax.tree.leaves(tree, is_leaf=is_whole)))
    if set(by_path) != set(weight_maps):
        unmatched = sorted(set(by_path) ^ set(weight_maps))[0]
        raise ValueError(f"{unmatched}: the params are not those of {model.source}")
    for path, weight_map in weight_maps.items():
        leaf = by_path[path]
        if isinstance(leaf, jax.ShapeDtypeStruct) and not shapes:
            raise ValueError(f"{path}: {model.source} has shapes only, expected weights")
        if tuple(leaf.shape) != weight_map.shape:
            raise ValueError(f"{path} has shape {tuple(leaf.shape)}, expected {weight_map.shape}")
    return {path: by_path[path] for path in weight_maps}


def layers(leaf: Any, weight_map: WeightMap) -> Iterator[Any]:
    """The layers of a leaf: NumPy arrays or encoded leaves, one for each name of the weight map."""
    leaf = apart(leaf, weight_map)
    for i in range(weight_map.shape[0]) if weight_map.stacked else (None,):
        yield layer(leaf, i)


def apart(leaf: Any, weight_map: WeightMap) -> Any:
    """The leaf in host memory, decoded if it holds all layers together, as one matrix.

    On the device a program would be compiled for each shape that layers are sliced and unpacked in.
    """
    if not is_encoded(leaf):
        return leaf
    if weight_map.stacked and not leaf.stack and not leaf.ends:
        return leaf.decode()
    return jax.tree.map(np.asarray, leaf)


def layer(leaf: Any, i: int | None) -> Any:
    """Layer `i` of a leaf, or all of it for None: a NumPy array, or an encoded leaf."""
    if is_encoded(leaf):
        return leaf if i is None else leaf.layer(i)
    if is_lazy(leaf):
        return np.asarray(leaf.read(i), leaf.dtype)
    return np.asarray(leaf if i is None else leaf[i])


def is_coded(leaf: Any) -> bool:
    """Whether a leaf is encoded, and not only cast to another float type."""
    return is_encoded(leaf) and not isinstance(leaf, CastArray)


def rounds_inputs(leaf: Any) -> bool:
    """Whether products with a leaf round their inputs."""
    is_dynamic = lambda x: isinstance(x, DynamicArray)
    return any(map(is_dynamic, jax.tree.leaves(leaf, is_leaf=is_dynamic)))


def unwrap_inputs(leaf: Any) -> Any:
    """The leaf without the rounding of its inputs."""
    return leaf.inner if isinstance(leaf, DynamicArray) else leaf


def unwrap(leaf: Any) -> Any:
    """The leaf without the rounding of its inputs, and with scales that are arrays."""
    leaf = unwrap_inputs(leaf)
    return _on_device(leaf).unwrapped() if isinstance(leaf, DoubleQuantArray) else leaf


def stored_array(leaf: Any) -> Any:
    """The dense array of a layer, in the dtype in which it is stored."""
    if isinstance(leaf, CastArray):
        return np.asarray(leaf.values)
    if not is_encoded(leaf):
        return leaf
    # The values of integers are products: a program of all steps rounds as one for each step does.
    leaf = _decoded(leaf) if isinstance(leaf, IntArray) else _on_device(leaf).decode()
    return np.asarray(leaf)


@jax.jit
def _decoded(leaf: IntArray) -> jax.Array:
    return leaf.decode()


def _on_device(leaf: Any) -> Any:
    """The leaf with arrays of JAX, which its methods expect."""
    return jax.tree.map(jnp.asarray, leaf)


def stored_dtype(leaf: Any) -> np.dtype:
    """The dtype in which a leaf is stored dense: one of 16 bits, or else float32."""
    dtype = np.dtype(leaf.values.dtype if isinstance(leaf, CastArray) else leaf.dtype)
    return dtype if dtype.name in ("float16", "bfloat16") else np.dtype("float32")


def has_fold(leaf: Any, fold: Fold) -> bool:
    """Whether an encoded layer's matrix has the rows and columns of `fold`, the checkpoint's."""
    axes = lambda fold: (fold.kept, fold.summed, fold.order)
    return axes(leaf.fold) == axes(fold)


def limits(leaf: IntArray) -> tuple[int, int]:
    """The least and the greatest number that code − zero may be."""
    top = 2**leaf.bits - 1
    return (-top, top) if leaf.zero is not None else (-(2 ** (leaf.bits - 1)), top // 2)


def matrix(leaf: IntArray | AffineArray) -> np.ndarray:
    """The codes (n, k) of an unstacked leaf as int16, unsigned."""
    return unpack_on_host(leaf.codes, leaf.bits, leaf.scale.shape[-1], -2).astype(np.int16)


def numbers(leaf: IntArray) -> np.ndarray:
    """code − zero (n, k) of an unstacked leaf, int16."""
    if leaf.zero is None:
        return matrix(leaf) - np.int16(2 ** (leaf.bits - 1))
    return matrix(leaf) - repeat_groups(leaf, zero_points(leaf))


def zero_points(leaf: IntArray) -> np.ndarray:
    """(groups, n) of an unstacked leaf with zero points, unsigned int16."""
    return unpack_on_host(leaf.zero, leaf.bits, leaf.scale.shape[-1], -1).astype(np.int16)


def repeat_groups(leaf: IntArray | AffineArray, groups: Any, run: int = 1) -> np.ndarray:
    """Repeats one number of each group (groups, n) for each run of `run` columns: (n, k / run)."""
    groups = np.asarray(groups).T
    k = leaf.fold.k
    repeats = k // run if groups.shape[1] == 1 else leaf.group // run
    return np.repeat(groups, repeats, 1)[:, : k // run]
