"""The tensors of a Hugging Face checkpoint, dense: names, shapes, arrays, and the files of them."""

import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..architectures.weights.inverse_maps import filled, shape_of_tensors
from ..architectures.weights.weight_map import WeightMap
from ..formats import weight_norm
from ..formats.safetensors import write_safetensors
from . import layer_codes

SHARD_BYTES = 5_000_000_000  # transformers' own limit of a file


def widest(types: Iterable[str]) -> str:
    """The dtype that holds the numbers of all `types`."""
    distinct = set(types)
    return distinct.pop() if len(distinct) == 1 else "float32"


def names(config: Any, weight_map: WeightMap) -> list[str]:
    """The names that transformers gives the tensors of a parameter."""
    prefix = "transformer." if config.family == "gpt2" else ""
    return [x if x.startswith("lm_head.") else prefix + x for x in weight_map.names]


def dense_tensors(
    config: Any, group: dict[str, WeightMap], types: dict[str, str]
) -> Iterator[tuple[str, tuple[tuple[int, ...], np.dtype]]]:
    """The name, shape and dtype of each tensor that a group of parameters makes."""
    shape = shape_of_tensors(list(group.values()))
    dtype = jnp.dtype(widest(types[leaf_path] for leaf_path in group))
    first = next(iter(group.values()))
    lengths = tuple(1 if axis in first.normed else n for axis, n in enumerate(shape))
    for name in names(config, first):
        if first.normed:
            gain, direction = weight_norm.names(name)
            yield from ((gain, (lengths, dtype)), (direction, (shape, dtype)))
        else:
            yield name, (shape, dtype)


def dense_arrays(
    group: dict[str, WeightMap], leaves: dict[str, Any], types: dict[str, str]
) -> Iterator[np.ndarray]:
    """The tensors that a group of parameters makes, in the order of `dense_tensors`."""
    weight_maps = list(group.values())
    shape, layouts = shape_of_tensors(weight_maps), [x.fn for x in weight_maps]
    dtype = jnp.dtype(widest(types[leaf_path] for leaf_path in group))
    axes = weight_maps[0].normed
    streams = [layer_codes.layers(leaves[leaf_path], x) for leaf_path, x in group.items()]
    for layers in zip(*streams):
        arrays = [_cast(layer_codes.stored_array(x), dtype, next(iter(group))) for x in layers]
        for part in range(weight_maps[0].parts) if weight_maps[0].parts else (...,):
            tensor = filled(shape, layouts, [array[part] for array in arrays])
            yield from weight_norm.separated(tensor, axes) if axes else (tensor,)


def _cast(array: np.ndarray, dtype: np.dtype, leaf_path: str) -> np.ndarray:
    """The array in `dtype`; a number that only becomes infinite by this is refused."""
    with np.errstate(over="ignore"):
        cast = np.asarray(array).astype(dtype, copy=False)
    if dtype == np.float16 and np.isinf(cast).sum() > np.isinf(array).sum():
        largest = np.abs(array[np.isfinite(array)]).max()
        raise ValueError(f"{leaf_path} has a number of {largest:g}, too large for float16")
    return cast


def by_folder(tensors: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Tensors by the folder that they are written in, "" for that of config.json.

    Example:
        >>> by_folder({"embed.weight": 1, "2_Dense/linear.weight": 2})
        {'': {'embed.weight': 1}, '2_Dense': {'linear.weight': 2}}
    """
    folders: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        folder, _, own = name.rpartition("/")
        folders.setdefault(folder, {})[own] = tensor
    return folders


def write(
    folder: pathlib.Path,
    tensors: dict[str, tuple[tuple[int, ...], np.dtype]],
    arrays: Iterator[np.ndarray],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes one file of tensors, or several of at most `shard_bytes` and their index.

    Those of `by_folder` that have a folder come last, and are one file in it.
    """
    folders = by_folder(tensors)
    tensors = folders.pop("", {})
    nbytes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in tensors.items()}
    shards, free = [], 0
    for name, size in nbytes.items():
        if not shards or size > free:
            shards.append([])
            free = shard_bytes
        shards[-1].append(name)
        free -= size
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    names = ["model.safetensors"] if count == 1 else names
    for file_name, shard in zip(names, shards):
        of_shard = {name: tensors[name] for name in shard}
        write_safetensors(folder / file_name, of_shard, itertools.islice(arrays, len(shard)))
    for module, of_module in folders.items():
        (folder / module).mkdir(exist_ok=True)
        rest = itertools.islice(arrays, len(of_module))
        write_safetensors(folder / module / "model.safetensors", of_module, rest)
    if count > 1:
        files = {name: file_name for file_name, shard in zip(names, shards) for name in shard}
        index = {"metadata": {"total_size": sum(nbytes.values())}, "weight_map": files}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
