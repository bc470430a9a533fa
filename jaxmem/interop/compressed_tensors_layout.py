"""Everything of a compressed-tensors checkpoint but its numbers: its files and its tensors."""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..architectures.weights.inverse_maps import by_tensors, shape_of_tensors
from ..architectures.weights.weight_map import WeightMap
from ..codecs.cast import CastArray
from ..codecs.integer import IntArray
from ..core.leaf import is_encoded
from ..core.paths import path_of_layers
from ..formats.safetensors import written_header
from ..models.hf_files import CONFIG
from ..models.model import Model, family
from . import hf_json_files, hf_tensors, layer_codes
from .linear_codes import CodedTensors, CodeForm, coded_tensors

# Linear layers of transformers that a model here does not hold: heads that are the embedding, and
# others. A router of a mixture has another name in the checkpoint than in its module.
_HEADS = ("lm_head", "proj_out", "vocab_projector", "decoder")
_NOT_HELD = tuple(f"re:.*{x}$" for x in (*_HEADS, r"pooler\.dense", r"contact_head\.regression"))
_ROUTER = r"re:.*\.router$"

# `tensor_names` of families whose tensors transformers 5 splits, or puts into other modules.
_SPLIT = ("nomic_bert", "dinov2", "dinov2_gated", "llama4_text")
# Bytes of a config.json that schemes take: of one group, of so many, and around a layer's name.
_GROUP_BYTES, _MOST_GROUPS, _NAME_BYTES = 600, 4, 16


@dataclasses.dataclass(frozen=True)
class Run:
    """Parameters that make the same tensors, in layers that are encoded alike."""

    weight_maps: dict[str, WeightMap]
    leaves: dict[str, Any]
    coded: CodedTensors | None  # None: they are written dense

    @property
    def types(self) -> dict[str, str]:
        """The dtype of each parameter that is written dense."""
        return {path: layer_codes.stored_dtype(leaf).name for path, leaf in self.leaves.items()}


@dataclasses.dataclass(frozen=True)
class CompressedTensorsLayout:
    """The JSON files by name, and the runs of parameters with the tensors that they make.

    `texts` has the bytes of the tokenizer and of the chat template, `tensors` the shape and the
    dtype of each tensor by its name.
    """

    model: Model
    json_files: dict[str, Any]
    runs: list[Run]
    tensors: dict[str, tuple[tuple[int, ...], np.dtype]]

    @property
    def nbytes(self) -> int:
        """Bytes of all files, if all tensors of a folder are in one of them."""
        texts = hf_json_files.texts(self.model, self.json_files).values()
        tensors = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.tensors.values())
        size = sum(len(text.encode()) for text in texts)
        headers = map(written_header, hf_tensors.by_folder(self.tensors).values())
        return size + sum(map(len, headers)) + tensors

    @property
    def slack(self) -> int:
        """Bytes by which texts for other forms may be longer: names of layers, and of groups."""
        names = sum(len(name) + _NAME_BYTES for name in self.tensors)
        return _GROUP_BYTES * _MOST_GROUPS + names

    @property
    def leaves(self) -> dict[str, Any]:
        """The leaf of each parameter, by its path."""
        return {path: leaf for run in self.runs for path, leaf in run.leaves.items()}

    @property
    def types(self) -> dict[str, str]:
        """The type in which each parameter is written, by its path."""
        coded = lambda run: dict.fromkeys(run.leaves, f"int{run.coded.form.bits}")
        types = (coded(run) if run.coded else run.types for run in self.runs)
        return {path: kind for by_path in types for path, kind in by_path.items()}

    @property
    def decoded(self) -> tuple[str, ...]:
        """The paths of the parameters whose codes the checkpoint does not hold."""
        dense = (run.leaves.items() for run in self.runs if not run.coded)
        leaves = itertools.chain.from_iterable(dense)
        return tuple(path for path, leaf in leaves if layer_codes.is_coded(leaf))

    @property
    def together(self) -> list[tuple[str, ...]]:
        """The paths of parameters that have one form because they lie in one tensor: none.

        Such parameters are floats: `holds` says so.
        """
        return []

    def holds(self, path: str, leaf: Any) -> bool:
        """Whether the checkpoint holds the codes, or the 16-bit floats, of a leaf at `path`."""
        if isinstance(leaf, CastArray):
            return True
        run = next(run for run in self.runs if path in run.leaves)
        if len(run.leaves) > 1 or not _is_linear(self.model, run.weight_maps, run.leaves):
            return False
        return coded_tensors([run.weight_maps[path]], [leaf], packed=True) is not None


def layout(
    model: Model, params: Any, *, packed: bool, shapes: bool = False
) -> CompressedTensorsLayout:
    """The layout of the checkpoint of `model` with `params` (None: its own).

    Args:
        model: a model that some config.json describes.
        params: the model's tensors, dense or encoded.
        packed: codes are in words of 32 bits, not in int8.
        shapes: `params` may be abstract.

    Raises:
        ValueError: as `to_compressed_tensors`.
    """
    json_files = hf_json_files.json_files(model)
    runs = list(_runs(model, params, packed, shapes))
    if any(run.coded for run in runs):
        json_files[CONFIG]["torch_dtype"] = "float16"  # the dtype of the scales
        json_files[CONFIG]["quantization_config"] = _quantization(model.config, runs, packed)
    tensors = dict(itertools.chain.from_iterable(_tensors(model.config, run) for run in runs))
    return CompressedTensorsLayout(model, json_files, runs, tensors)


def _runs(model: Model, params: Any, packed: bool, shapes: bool) -> Iterator[Run]:
    """The runs of all parameters, in the order of their tensors."""
    weight_maps = family(model.config).weights(model.config)
    leaves = layer_codes.leaves(model, params, weight_maps, shapes=shapes)
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
            yield Run(maps, cut, coded)


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
    if getattr(model.config, "tensor_names", "") in _SPLIT:
        refused = f"transformers loads the tensors of a {model.config.tensor_names} into others"
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


def _tensors(config: Any, run: Run) -> Iterator[tuple[str, tuple[tuple[int, ...], np.dtype]]]:
    """The name, shape and dtype of each tensor of a run."""
    if run.coded is None:
        yield from hf_tensors.dense_tensors(config, run.weight_maps, run.types)
        return
    for name in hf_tensors.names(config, run.coded.weight_maps[0]):
        for end, form in run.coded.shapes().items():
            yield f"{name}{end}", form


def _quantization(config: Any, runs: list[Run], packed: bool) -> dict:
    """The `quantization_config`: one group for each form, and the list of dense linear layers."""
    form_name = "pack-quantized" if packed else "int-quantized"
    members: dict[CodeForm, list[str]] = collections.defaultdict(list)
    dense = ["lm_head"] if getattr(config, "tied", False) else []
    for run in runs:
        path, weight_map = next(iter(run.weight_maps.items()))
        names = hf_tensors.names(config, weight_map)
        modules = [x.removesuffix(".weight") for x in names if x.endswith(".weight")]
        if run.coded:
            members[run.coded.form] += modules
        elif _rank(run.weight_maps) == 2 and not re.search("embedding|pool/dense", path):
            dense += modules
    if config.family not in ("llama", "decoder"):
        held = [module for modules in members.values() for module in modules]
        dense += [x for x in _NOT_HELD if not any(re.match(x[3:], module) for module in held)]
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
            "format": form_name,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": form_name,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": dense,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


_INPUTS = {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "token", "dynamic": True}
