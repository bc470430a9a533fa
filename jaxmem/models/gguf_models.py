"""The model that a GGUF file describes: its configuration, and where its parameters are."""

import dataclasses
from typing import Any

import numpy as np

from ..architectures.family_modules import module_of_model_type
from ..architectures.gguf import gguf_decoder
from ..architectures.gguf.gguf_architectures import ARCHITECTURES
from ..architectures.weights.weight_map import WeightMap
from ..core.lazy import Lazy
from ..formats import gguf_fields, gguf_hf
from ..formats.gguf import Gguf
from .checkpoint_tensors import bare_name
from .model import family

# Names of special tokens in a tokenizer_config.json, and in a GGUF file.
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def config_and_weights(file: Gguf) -> tuple[Any, dict[str, WeightMap]]:
    """The configuration of a model, and the tensors of the file that each parameter is read from.

    Raises:
        ValueError: The file is of an architecture, has a field or a tensor that no model here
            computes; the message names it.
    """
    name = gguf_fields.architecture(file, (*ARCHITECTURES, *gguf_hf.NAMES))
    if name in ARCHITECTURES:
        config = gguf_decoder.config(file)
        return config, gguf_decoder.weights_of_file(file, config)
    hf, sources = gguf_hf.config(file), gguf_hf.sources(file)
    try:
        config = module_of_model_type(hf["model_type"]).Config.from_hf(hf)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    by_name = {bare_name(hf_name): name for hf_name, name in sources.items()}
    maps = {}
    for path, weight_map in family(config).weights(config).items():
        names = tuple(by_name.get(bare_name(x), x) for x in weight_map.names)
        is_turned = gguf_hf.is_turned(file, filter(file.tensors.__contains__, names))
        fn = np.transpose if is_turned else weight_map.fn
        maps[path] = dataclasses.replace(weight_map, names=names, fn=fn)
    return config, maps


def tensors(file: Gguf, weight_maps: dict[str, WeightMap]) -> dict[str, Lazy]:
    """The tensors of the file that parameters are read from."""
    names = {name for weight_map in weight_maps.values() for name in weight_map.names}
    return {name: tensor for name, tensor in file.tensors.items() if name in names}


def chat_template(file: Gguf) -> str | None:
    """The chat template of the file, or None without one."""
    template = file.fields.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None


def tokenizer_config(file: Gguf) -> dict[str, Any]:
    """The special tokens of the file by their names in a tokenizer_config.json; {} without any.

    A GGUF file that is written of the model has their ids again.
    """
    tokens, config = file.fields.get("tokenizer.ggml.tokens"), {}
    for name, field in _SPECIAL.items():
        i = file.fields.get(f"tokenizer.ggml.{field}_token_id")
        if isinstance(tokens, list) and isinstance(i, int) and 0 <= i < len(tokens):
            config[f"{name}_token"] = tokens[i]
    return {"tokenizer_class": "PreTrainedTokenizerFast"} | config if config else {}
