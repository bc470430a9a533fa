"""to_hf: a model as a Hugging Face folder, which transformers opens."""

import itertools
import os
import pathlib
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from ..architectures.weights.inverse_maps import by_tensors
from ..core.arguments import FLOAT_TYPE, OPTIONAL_TREE, POSITIVE, takes
from ..io.atomic import replacing
from ..models.hf_files import CONFIG
from ..models.model import Model, family
from . import hf_json_files, hf_tensors, layer_codes
from .layer_codes import Written

DTYPES = ("float32", "float16", "bfloat16")


@takes(params=OPTIONAL_TREE, dtype=FLOAT_TYPE, shard_bytes=POSITIVE)
def to_hf(
    model: Model,
    path: str | os.PathLike,
    params: Any = None,
    *,
    dtype: DTypeLike | None = None,
    shard_bytes: int = hf_tensors.SHARD_BYTES,
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
    json_files[CONFIG]["torch_dtype"] = hf_tensors.widest(types.values())
    groups = by_tensors(weight_maps)
    together = itertools.chain.from_iterable
    tensors = dict(together(hf_tensors.dense_tensors(model.config, x, types) for x in groups))
    with replacing(path, directory=True) as folder:
        hf_json_files.write(folder, json_files, model)
        arrays = together(hf_tensors.dense_arrays(group, leaves, types) for group in groups)
        hf_tensors.write(folder, tensors, arrays, shard_bytes)
    size = sum(file.stat().st_size for file in path.iterdir())
    those = lambda has: tuple(leaf_path for leaf_path, leaf in leaves.items() if has(leaf))
    coded, rounded = those(layer_codes.is_coded), those(layer_codes.rounds_inputs)
    return Written(str(path), size, types, coded, rounded)


def _type(leaf: Any, dtype: DTypeLike | None) -> str:
    """The name of the dtype in which a leaf is written."""
    return (layer_codes.stored_dtype(leaf) if dtype is None else jnp.dtype(dtype)).name
