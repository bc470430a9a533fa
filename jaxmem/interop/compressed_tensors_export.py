"""to_compressed_tensors: a checkpoint of int4 and int8 weights for vLLM and transformers.

The directory has config.json with a `quantization_config`, model.safetensors and the tokenizer.
formats/compressed_tensors.py describes the format and reads it.
"""

import collections
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..architectures.weights.weight_map import WeightMap
from ..codecs.dynamic_quantization import DynamicArray
from ..codecs.integer import IntArray
from ..core.arguments import OPTIONAL_TREE, takes
from ..core.fold import Fold
from ..formats.compressed_tensors import packed as words
from ..formats.safetensors import write_safetensors
from ..io.atomic import replacing
from ..models.model import Model
from . import layer_codes
from .hf_config import config_json
from .layer_codes import Written

Scheme = tuple[int, int | None, bool, bool]  # bits, group, symmetric, int8 inputs


@takes(params=OPTIONAL_TREE)
def to_compressed_tensors(
    path: str | os.PathLike, model: Model, params: Any = None, *, packed: bool = True
) -> Written:
    """Writes `model` with `params` (default: its own) to a new directory `path`.

    Linear weights of `Int`, with one scale per row or groups that divide the row, keep their codes:
    int4 up to 4 bits, else int8. The rounding of inputs to int8, token by token, by
    `Dynamic(Int(bits))` is written too; for other roundings only the codes are written. Other
    encoded weights and embedding tables are decoded, and the result lists them. Layers that are
    encoded differently are named one by one; vLLM fuses q, k and v, and gate and up, and requires
    one form for each of these. `packed` writes `pack-quantized`, which vLLM reads for weight-only
    quantization; `packed=False` writes int8 codes, `int-quantized`, which vLLM reads for weights
    and inputs of 8 bits. The directory is complete or absent.

    Raises:
        ValueError: `path` exists; the model is not of the Llama family, or no config.json can
            describe it; `params` are not those of the model, or are shapes.

    Example:
        >>> import pathlib, tempfile, jax, jax.numpy as jnp, numpy as np, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=64, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config, ids = llama.Config(**sizes), jnp.zeros((1, 8), jnp.int32)
        >>> shapes = jax.eval_shape(llama.module(config).init, jax.random.key(0), ids)["params"]
        >>> draw = lambda x: np.random.default_rng(0).normal(size=x.shape).astype(x.dtype)
        >>> params = jax.tree.map(draw, shapes)
        >>> model = jm.models.Model(config, params, None, "random")
        >>> encoded = jm.encode(params, {"layers/mlp/up/kernel": jm.Int(4, group=32)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "int4"
        ...     written = jm.interop.to_compressed_tensors(path, model, encoded)
        ...     files = sorted(file.name for file in path.iterdir())
        >>> written.types["layers/mlp/up/kernel"], written.types["layers/mlp/gate/kernel"]
        ('int4', 'float32')
        >>> files
        ['config.json', 'model.safetensors']
    """
    path = pathlib.Path(path)
    if path.exists():
        raise ValueError(f"{path} exists; choose another place")
    if model.config.family != "llama":
        raise ValueError(f"{model.source} is a {model.config.family}, expected a Llama")
    hf = config_json(model.config)
    parameters = list(layer_codes.parameters(model, params))
    schemes = {
        leaf_path: _scheme(leaf, weight_map, packed) for leaf_path, weight_map, leaf in parameters
    }
    if any(schemes.values()):
        hf["torch_dtype"] = "float16"  # the dtype of the scales
        hf["quantization_config"] = _quantization(parameters, schemes, packed, model.config.tied)
    shapes, types = {}, {}
    for leaf_path, weight_map, leaf in parameters:
        types[leaf_path], layer_shapes = _shapes(weight_map, leaf, schemes[leaf_path], packed)
        for name in weight_map.names:
            stem = name.removesuffix("weight")
            shapes |= {stem + suffix: shape for suffix, shape in layer_shapes.items()}
    with replacing(path, directory=True) as temporary:
        (temporary / "config.json").write_text(json.dumps(hf, indent=2), encoding="utf-8")
        arrays = (
            array
            for leaf_path, weight_map, leaf in parameters
            for array in _arrays(weight_map, leaf, schemes[leaf_path], packed)
        )
        write_safetensors(temporary / "model.safetensors", shapes, arrays)
        if model.tokenizer is not None:
            model.tokenizer.save(str(temporary / "tokenizer.json"))
    coded = [leaf_path for leaf_path, _, leaf in parameters if layer_codes.is_coded(leaf)]
    decoded = tuple(leaf_path for leaf_path in coded if not schemes[leaf_path])
    size = sum(file.stat().st_size for file in path.iterdir())
    rounds_in_file = lambda leaf_path: schemes[leaf_path] is not None and schemes[leaf_path][-1]
    rounded = [leaf_path for leaf_path, _, leaf in parameters if layer_codes.rounds_inputs(leaf)]
    unrounded = tuple(leaf_path for leaf_path in rounded if not rounds_in_file(leaf_path))
    return Written(str(path), size, types, decoded, unrounded)


def _scheme(leaf: Any, weight_map: WeightMap, packed: bool) -> Scheme | None:
    """The scheme by which the codes of a leaf are written, or None if it is decoded."""
    dynamic = isinstance(leaf, DynamicArray) and leaf.limits is None and leaf.to == "int8"
    inner = layer_codes.unwrap(leaf)
    turned = weight_map.fn is np.transpose
    if not isinstance(inner, IntArray) or not turned or inner.scale.dtype == jnp.float32:
        return None
    k, n = weight_map.shape[-2:]
    one_scale_per_row = inner.scale.shape[-2] == 1
    if not layer_codes.has_fold(inner, Fold((n,), (k,), (-1, -2))):
        return None
    if not one_scale_per_row and k % inner.group:
        return None
    bits = 4 if inner.bits <= 4 and packed else 8
    return bits, None if one_scale_per_row else inner.group, inner.zero is None, dynamic


def _shapes(
    weight_map: WeightMap, leaf: Any, scheme: Scheme | None, packed: bool
) -> tuple[str, dict]:
    """The name of a parameter's type, and the shapes and dtypes of each layer's tensors."""
    shape = weight_map.shape[1:] if weight_map.stacked else weight_map.shape
    shape = shape[::-1] if weight_map.fn is np.transpose else shape
    if scheme is None:
        dtype = layer_codes.stored_dtype(leaf)
        suffix = "" if weight_map.names[0].endswith("bias") else "weight"
        return dtype.name, {suffix: (shape, dtype)}
    (n, k), (bits, group, symmetric, _) = shape, scheme
    groups, words_of = (k // group if group else 1), lambda length: -(-length * bits // 32)
    i4, i8 = np.dtype("int32"), np.dtype("int8")
    codes = {"weight_packed": ((n, words_of(k)), i4)} if packed else {"weight": ((n, k), i8)}
    scale_dtype = np.dtype(layer_codes.unwrap(leaf).scale.dtype)
    tensors = codes | {"weight_scale": ((n, groups), scale_dtype)}
    if packed:
        tensors["weight_shape"] = ((2,), np.dtype("int64"))
    if not symmetric:
        tensors["weight_zero_point"] = ((words_of(n), groups), i4) if packed else ((n, groups), i8)
    return f"int{bits}", tensors


def _arrays(
    weight_map: WeightMap, leaf: Any, scheme: Scheme | None, packed: bool
) -> Iterator[np.ndarray]:
    """The arrays of each layer's tensors, in the order and with the shapes of `_shapes`."""
    for layer in layer_codes.layers(leaf, weight_map):
        if scheme is None:
            dense = layer_codes.stored_array(layer)
            yield dense.T if weight_map.fn is np.transpose else dense
            continue
        inner = layer_codes.unwrap(layer)
        bits, middle = scheme[0], 2 ** (inner.bits - 1)
        shifted = lambda a: (a - middle + 2 ** (bits - 1)).astype(np.uint8)  # noqa: B023
        signed = lambda a: (a - middle).astype(np.int8)  # noqa: B023
        codes = layer_codes.matrix(inner)
        yield words(shifted(codes), bits) if packed else signed(codes)
        yield np.asarray(inner.scale).T
        if packed:
            yield np.array(codes.shape, np.int64)
        if inner.zero is not None:
            zeros = layer_codes.zero_points(inner)  # (groups, n)
            yield words(shifted(zeros), bits).T if packed else signed(zeros).T


def _quantization(parameters: list, schemes: dict, packed: bool, tied: bool) -> dict:
    """The `quantization_config`: one group for each scheme, and the list of dense linear layers."""
    form = "pack-quantized" if packed else "int-quantized"
    members, dense = collections.defaultdict(list), ["lm_head"] if tied else []
    for leaf_path, weight_map, _ in parameters:
        if weight_map.fn is not np.transpose:
            continue
        modules = [name.removesuffix(".weight") for name in weight_map.names]
        if schemes[leaf_path] is None:
            dense += modules
        else:
            members[schemes[leaf_path]] += modules
    groups, kind = {}, lambda module: re.sub(r".*\.\d+\.", "", module)
    uses = collections.Counter(k for modules in members.values() for k in set(map(kind, modules)))
    # One regular expression names all modules of a kind if only one scheme has that kind.
    target = lambda module: (
        f"re:.*{re.escape(kind(module))}$" if uses[kind(module)] == 1 else module
    )
    for i, (scheme, modules) in enumerate(members.items()):
        bits, group, symmetric, dynamic = scheme
        targets = list(dict.fromkeys(map(target, modules))) if len(members) > 1 else ["Linear"]
        groups[f"group_{i}"] = {
            "targets": targets,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": symmetric,
                "strategy": "channel" if group is None else "group",
                "group_size": group,
                "dynamic": False,
                "observer": "minmax",
                "actorder": None,
            },
            "input_activations": _INPUTS if dynamic else None,
            "output_activations": None,
            "format": form,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": dense,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


_INPUTS = {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "token", "dynamic": True}
