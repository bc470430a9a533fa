"""to_hf: a model as a Hugging Face folder, which transformers opens."""

import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ..architectures.weights.inverse_maps import by_tensors, filled, shape_of_tensors
from ..architectures.weights.weight_map import WeightMap
from ..core.arguments import FLOAT_TYPE, OPTIONAL_TREE, POSITIVE, takes
from ..formats import weight_norm
from ..formats.safetensors import write_safetensors
from ..io.atomic import replacing
from ..models.hf_files import CONFIG
from ..models.model import Model, family
from ..models.tokenizer_files import CHAT_TEMPLATE, TOKENIZER
from . import hf_json_files, layer_codes
from .layer_codes import Written

DTYPES = ("float32", "float16", "bfloat16")


@takes(params=OPTIONAL_TREE, dtype=FLOAT_TYPE, shard_bytes=POSITIVE)
def to_hf(
    model: Model,
    path: str | os.PathLike,
    params: Any = None,
    *,
    dtype: DTypeLike | None = None,
    shard_bytes: int = 5_000_000_000,
) -> Written:
    """Writes `model` to a new directory `path` that transformers and `jm.models.load` open.

    The directory has config.json, model.safetensors (in several files with an index, if it is
    larger than `shard_bytes`) and, where the model has them, the tokenizer, the chat template and
    generation_config.json. Tensors have the names and layouts that the family's checkpoints have:
    the same map that reads them is read backwards, for every family that loads. Encoded weights are
    decoded, and the result lists them; one layer at a time is in memory. What the model does not
    hold, such as the pooler of a BERT without a head, is not written. The directory is complete or
    absent.

    Args:
        model: read from a Hugging Face folder, or of the Llama family.
        path: a directory that does not exist yet.
        params: the model's tensors, changed or encoded; None for its own.
        dtype: float32, float16 or bfloat16, for all tensors. None keeps the dtype of each, and
            config.json names the widest. Numbers are rounded to the nearest.
        shard_bytes: the most bytes of tensors in one file, unless one tensor is larger.

    Raises:
        ValueError: `path` exists; no config.json describes the model; `params` are not those of the
            model, or are shapes; a number is too large for float16.

    Example:
        >>> import pathlib, tempfile, jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=64, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config, ids = llama.Config(**sizes), jnp.zeros((1, 8), jnp.int32)
        >>> params = jax.jit(llama.module(config).init)(jax.random.key(0), ids)["params"]
        >>> model = jm.models.Model(config, params, None, "random")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = jm.interop.to_hf(model, f"{folder}/hf", dtype="bfloat16")
        ...     again = jm.models.load(f"{folder}/hf")
        >>> again.config == config, written.types["layers/mlp/up/kernel"]
        (True, 'bfloat16')
    """
    path = pathlib.Path(path)
    if path.exists():
        raise ValueError(f"{path} exists; choose another place")
    if dtype is not None and jnp.dtype(dtype).name not in DTYPES:
        raise ValueError(f"dtype is {jnp.dtype(dtype).name}, expected {' or '.join(DTYPES)}")
    json_files = hf_json_files.json_files(model)
    weight_maps = family(model.config).weights(model.config)
    leaves = layer_codes.leaves(model, params, weight_maps)
    types = {leaf_path: _type(leaf, dtype) for leaf_path, leaf in leaves.items()}
    json_files[CONFIG]["torch_dtype"] = _widest(types.values())
    groups = by_tensors(weight_maps)
    tensors = dict(itertools.chain.from_iterable(_tensors(model.config, x, types) for x in groups))
    with replacing(path, directory=True) as folder:
        for name, content in json_files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        arrays = itertools.chain.from_iterable(_arrays(group, leaves, types) for group in groups)
        _write_tensors(folder, tensors, arrays, shard_bytes)
        if model.tokenizer is not None:
            (folder / TOKENIZER).write_text(model.tokenizer.to_str(), encoding="utf-8")
        if model.chat_template is not None:
            (folder / CHAT_TEMPLATE).write_text(model.chat_template, encoding="utf-8")
    size = sum(file.stat().st_size for file in path.iterdir())
    those = lambda has: tuple(leaf_path for leaf_path, leaf in leaves.items() if has(leaf))
    coded, rounded = those(layer_codes.is_coded), those(layer_codes.rounds_inputs)
    return Written(str(path), size, types, coded, rounded)


def _type(leaf: Any, dtype: DTypeLike | None) -> str:
    """The name of the dtype in which a leaf is written."""
    return (layer_codes.stored_dtype(leaf) if dtype is None else jnp.dtype(dtype)).name


def _widest(types: Iterable[str]) -> str:
    """The dtype that holds the numbers of all `types`."""
    distinct = set(types)
    return distinct.pop() if len(distinct) == 1 else "float32"


def _tensors(
    config: Any, group: dict[str, WeightMap], types: dict[str, str]
) -> Iterator[tuple[str, tuple[tuple[int, ...], np.dtype]]]:
    """The name, shape and dtype of each tensor that a group of parameters makes."""
    shape = shape_of_tensors(list(group.values()))
    dtype = jnp.dtype(_widest(types[leaf_path] for leaf_path in group))
    prefix = "transformer." if config.family == "gpt2" else ""
    first = next(iter(group.values()))
    lengths = tuple(1 if axis in first.normed else n for axis, n in enumerate(shape))
    for stem in first.names:
        name = stem if stem.startswith("lm_head.") else prefix + stem
        if first.normed:
            gain, direction = weight_norm.names(name)
            yield from ((gain, (lengths, dtype)), (direction, (shape, dtype)))
        else:
            yield name, (shape, dtype)


def _arrays(
    group: dict[str, WeightMap], leaves: dict[str, Any], types: dict[str, str]
) -> Iterator[np.ndarray]:
    """The tensors that a group of parameters makes, in the order of `_tensors`."""
    weight_maps = list(group.values())
    shape, layouts = shape_of_tensors(weight_maps), [x.fn for x in weight_maps]
    dtype = jnp.dtype(_widest(types[leaf_path] for leaf_path in group))
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


def _write_tensors(
    folder: pathlib.Path,
    tensors: dict[str, tuple[tuple[int, ...], np.dtype]],
    arrays: Iterator[np.ndarray],
    shard_bytes: int,
) -> None:
    """Writes one file of tensors, or several of at most `shard_bytes` and their index."""
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
    if count > 1:
        files = {name: file_name for file_name, shard in zip(names, shards) for name in shard}
        index = {"metadata": {"total_size": sum(nbytes.values())}, "weight_map": files}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
