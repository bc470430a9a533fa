"""to_compressed_tensors: a checkpoint of int4 and int8 weights for vLLM and transformers.

The directory is that of to_hf, with a `quantization_config` in config.json and codes for weights.
formats/compressed_tensors.py describes the format and reads it.
"""

import collections
import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..architectures.weights.inverse_maps import by_tensors, shape_of_tensors
from ..architectures.weights.weight_map import WeightMap
from ..codecs.integer import IntArray
from ..core.arguments import OPTIONAL_TREE, takes
from ..core.leaf import is_encoded
from ..core.paths import path_of_layers
from ..io.atomic import replacing
from ..models.hf_files import CONFIG
from ..models.model import Model, family
from . import hf_json_files, hf_tensors, layer_codes
from .layer_codes import Written
from .linear_codes import CodedTensors, CodeForm, coded_tensors

# Linear layers of transformers that a model here does not hold: heads that are the embedding, and
# others. A router of a mixture has another name in the checkpoint than in its module.
_HEADS = ("lm_head", "proj_out", "vocab_projector", "decoder")
_NOT_HELD = tuple(f"re:.*{x}$" for x in (*_HEADS, r"pooler\.dense", r"contact_head\.regression"))
_ROUTER = r"re:.*\.router$"


@takes(params=OPTIONAL_TREE)
def to_compressed_tensors(
    path: str | os.PathLike, model: Model, params: Any = None, *, packed: bool = True
) -> Written:
    """Writes `model` with `params` (default: its own) to a new directory `path`.

    Linear weights of `Int`, with one scale per row or groups that divide the row, keep their codes:
    int4 up to 4 bits, else int8. Weights that a family holds in one tensor, such as q, k and v,
    keep them if they have one form; each expert has tensors of its own. The rounding of inputs to
    int8, token by token, by `Dynamic(Int(bits))` is written too; for other roundings only the codes
    are written. Other encoded weights, routers and embedding tables are decoded, and the result
    lists them. Layers that are encoded differently are named one by one; vLLM fuses q, k and v, and
    gate and up, and requires one form for each of these. `packed` writes `pack-quantized`, which
    vLLM reads for weight-only quantization; `packed=False` writes int8 codes, `int-quantized`,
    which vLLM reads for weights and inputs of 8 bits. The directory is complete or absent.

    Raises:
        ValueError: `path` exists; no config.json describes the model; `params` are not those of the
            model, or are shapes; they hold codes of a module that is no linear layer in
            transformers: the Conv1D of a GPT-2, or all experts in one tensor.

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
    json_files = hf_json_files.json_files(model)
    runs = list(_runs(model, params, packed))
    if any(run.coded for run in runs):
        json_files[CONFIG]["torch_dtype"] = "float16"  # the dtype of the scales
        json_files[CONFIG]["quantization_config"] = _quantization(model.config, runs, packed)
    types, leaves = {}, {}
    for run in runs:
        types |= dict.fromkeys(run.leaves, f"int{run.coded.form.bits}") if run.coded else run.types
        leaves |= run.leaves
    tensors = dict(itertools.chain.from_iterable(_tensors(model.config, run) for run in runs))
    with replacing(path, directory=True) as folder:
        hf_json_files.write(folder, json_files, model)
        arrays = itertools.chain.from_iterable(map(_arrays, runs))
        hf_tensors.write(folder, tensors, arrays)
    size = sum(file.stat().st_size for file in path.iterdir())
    coded = {name: run.coded for run in runs for name in run.leaves}
    those = lambda has: [name for name, leaf in leaves.items() if has(leaf)]
    decoded = tuple(name for name in those(layer_codes.is_coded) if not coded[name])
    rounds_in_file = lambda name: coded[name] and coded[name].form.rounds_inputs
    rounded = those(layer_codes.rounds_inputs)
    unrounded = tuple(name for name in rounded if not rounds_in_file(name))
    return Written(str(path), size, types, decoded, unrounded)


@dataclasses.dataclass(frozen=True)
class _Run:
    """Parameters that make the same tensors, in layers that are encoded alike."""

    weight_maps: dict[str, WeightMap]
    leaves: dict[str, Any]
    coded: CodedTensors | None  # None: they are written dense

    @property
    def types(self) -> dict[str, str]:
        """The dtype of each parameter that is written dense."""
        return {path: layer_codes.stored_dtype(leaf).name for path, leaf in self.leaves.items()}


def _runs(model: Model, params: Any, packed: bool) -> Iterator[_Run]:
    """The runs of all parameters, in the order of their tensors."""
    weight_maps = family(model.config).weights(model.config)
    leaves = layer_codes.leaves(model, params, weight_maps)
    for group in by_tensors(weight_maps):
        encoded = [leaves[path] for path in group if is_encoded(leaves[path])]
        ends = sorted({0, *(end for leaf in encoded for end in leaf.ends)})
        whole = len(ends) == 1
        for start, stop in [(0, 0)] if whole else itertools.pairwise(ends):
            maps, cut = dict(group), {path: leaves[path] for path in group}
            if not whole:
                name = lambda path: path_of_layers(path, start, stop)  # noqa: B023
                maps = {name(path): x.layers(start, stop - start) for path, x in group.items()}
                cut = {name(path): _layers(leaf, start, stop) for path, leaf in cut.items()}
            coded = None
            if _is_linear(model, maps, cut):
                coded = coded_tensors(list(maps.values()), list(cut.values()), packed)
            yield _Run(maps, cut, coded)


def _layers(leaf: Any, start: int, stop: int) -> Any:
    """Layers [start, stop) of a leaf: an encoded one, or an array."""
    if is_encoded(leaf):
        return leaf.layers(start, stop)
    return np.stack([layer_codes.layer(leaf, i) for i in range(start, stop)])


def _is_linear(model: Model, weight_maps: dict[str, WeightMap], leaves: dict[str, Any]) -> bool:
    """Whether the tensors of parameters are the weights of linear layers in transformers.

    Raises:
        ValueError: codes are given for what a reader of codes would take for none.
    """
    path, weight_map = next(iter(weight_maps.items()))
    has_codes = any(isinstance(layer_codes.unwrap(x), IntArray) for x in leaves.values())
    rank = _rank(weight_maps)
    refused = ""
    if model.config.family == "gpt2" and path.endswith("kernel"):
        refused = "its module in transformers is a Conv1D"
    if "/experts/" in path and rank > 2:
        refused = "all experts are one tensor in transformers"
    if refused and has_codes:
        raise ValueError(
            f"{path} has codes, and {refused}, for which compressed-tensors has no form; keep it "
            "dense, or write the model with to_hf or to_gguf"
        )
    is_matrix = rank == 2 and weight_map.names[0].endswith(".weight")
    others = any(part in f"/{path}" for part in ("embedding", "/router/", "/pool/"))
    return is_matrix and not refused and not others


def _rank(weight_maps: dict[str, WeightMap]) -> int:
    """The number of axes of the tensors that parameters make."""
    return len(shape_of_tensors(list(weight_maps.values())))


def _tensors(config: Any, run: _Run) -> Iterator[tuple[str, tuple[tuple[int, ...], np.dtype]]]:
    """The name, shape and dtype of each tensor of a run."""
    if run.coded is None:
        yield from hf_tensors.dense_tensors(config, run.weight_maps, run.types)
        return
    for name in hf_tensors.names(config, run.coded.weight_maps[0]):
        for end, form in run.coded.shapes().items():
            yield f"{name}{end}", form


def _arrays(run: _Run) -> Iterator[np.ndarray]:
    """The arrays of a run, in the order of `_tensors`."""
    if run.coded is None:
        return hf_tensors.dense_arrays(run.weight_maps, run.leaves, run.types)
    return run.coded.arrays()


def _quantization(config: Any, runs: list[_Run], packed: bool) -> dict:
    """The `quantization_config`: one group for each form, and the list of dense linear layers."""
    layout = "pack-quantized" if packed else "int-quantized"
    members: dict[CodeForm, list[str]] = collections.defaultdict(list)
    dense = ["lm_head"] if getattr(config, "tied", False) else []
    for run in runs:
        path, weight_map = next(iter(run.weight_maps.items()))
        names = hf_tensors.names(config, weight_map)
        modules = [x.removesuffix(".weight") for x in names if x.endswith(".weight")]
        if run.coded:
            members[run.coded.form] += modules
        elif "embedding" not in path and _rank(run.weight_maps) == 2:
            dense += modules
    if config.family not in ("llama", "decoder"):
        dense += _NOT_HELD
    elif getattr(config, "mixture", None):
        dense.append(_ROUTER)
    kind = lambda module: re.sub(r".*\.\d+\.", "", module)
    uses = collections.Counter(k for modules in members.values() for k in set(map(kind, modules)))
    # One regular expression names all modules of a kind if only one form has that kind.
    target = lambda module: (
        f"re:.*{re.escape(kind(module))}$" if uses[kind(module)] == 1 else module
    )
    groups = {}
    for i, (form, modules) in enumerate(members.items()):
        targets = list(dict.fromkeys(map(target, modules))) if len(members) > 1 else ["Linear"]
        groups[f"group_{i}"] = {
            "targets": targets,
            "weights": {
                "num_bits": form.bits,
                "type": "int",
                "symmetric": form.symmetric,
                "strategy": "channel" if form.group is None else "group",
                "group_size": form.group,
                "dynamic": False,
                "observer": "minmax",
                "actorder": None,
            },
            "input_activations": _INPUTS if form.rounds_inputs else None,
            "output_activations": None,
            "format": layout,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": dense,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


_INPUTS = {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "token", "dynamic": True}
