"""Checkpoints of each format, read: a configuration, tensors by name, and what lies beside them."""

import contextlib
import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..architectures.families.tower_families import TOWER_FAMILIES
from ..architectures.family_modules import family_module, module_of_model_type
from ..architectures.weights.weight_map import WeightMap
from ..core.lazy import Lazy
from ..formats import (
    ctranslate2,
    gguf,
    llama2c,
    onnx_graph,
    quantized_checkpoint,
    safetensors,
    tokenizers,
    weight_norm,
)
from ..formats.log_mel_processor import LogMelProcessor
from ..io.json_fields import read_object
from . import (
    ctranslate2_models,
    end_tokens,
    gguf_models,
    quantized_weights,
    tokenizer_files,
    unreadable_sources,
)
from .hf_files import CONFIG
from .processor_files import PREPROCESSOR, Processor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SHARD = r".*-\d+-of-\d+\.safetensors"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint: `config` is what its `config_file` says; `coded` has the codes
    of quantized tensors by name, `leaf` makes an encoded leaf from the codes of a parameter's
    tensors; `weight_maps` are those of the configuration, unless the file has names of its own;
    `processor` is for a folder without one, `hf_files` for a file that is not of transformers."""

    config: Any
    config_file: pathlib.Path
    tensors: dict[str, Lazy]
    tokenizer: "Tokenizer | None"
    coded: dict[str, Any] = dataclasses.field(default_factory=dict)
    leaf: Callable[[list[Any], WeightMap, Any], Any] | None = None
    chat_template: str | None = None
    weight_maps: dict[str, WeightMap] | None = None
    processor: Processor | None = None
    hf_files: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_safetensors(path: pathlib.Path) -> Checkpoint:
    """A directory of safetensors, or one file of them, with a config.json of transformers.

    Raises:
        ValueError: a file is missing or malformed, or the configuration is not computed here.
    """
    folder = path if path.is_dir() else path.parent
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    is_shard = re.fullmatch(_SHARD, path.name) is not None and index.is_file()
    if (path.is_file() and not is_shard) or single.is_file():
        read = lambda: safetensors.safetensors(single if path.is_dir() else path)
    elif index.is_file():
        read = lambda: safetensors.sharded(index)
    else:
        advice = unreadable_sources.advice_for_folder(folder)
        raise ValueError(f"{path} holds neither {single.name} nor {index.name}{advice}")
    file = folder / CONFIG
    hf, tensors = read_object(file), weight_norm.joined(read())
    tokenizer = tokenizer_files.read_tokenizer(folder)
    quantized = quantized_checkpoint.method(hf)
    hf = {name: value for name, value in hf.items() if name != "quantization"}  # of MLX
    config = read_config(hf, file)
    if quantized is None:
        return Checkpoint(config, file, tensors, tokenizer)
    with prefixed(file):
        turned = config.family == "gpt2"  # its dense linears are (in, out)
        tensors, coded = quantized_checkpoint.read(tensors, *quantized, turned)
    return Checkpoint(config, file, tensors, tokenizer, coded, quantized_weights.from_matrices)


def read_gguf(path: pathlib.Path) -> Checkpoint:
    """A GGUF file, whose fields say the configuration.

    Raises:
        ValueError: the file is malformed, or holds a model that is not computed here.
    """
    file = gguf.gguf(path)
    tokenizer = tokenizer_files.read_gguf_tokenizer(file, path.parent)
    config, weight_maps = gguf_models.config_and_weights(file)
    tensors = gguf_models.tensors(file, weight_maps)
    leaf = functools.partial(quantized_weights.from_gguf, file)
    coded, template = dict(zip(tensors, tensors)), gguf_models.chat_template(file)
    said = gguf_models.tokenizer_config(file)
    hf_files = {tokenizer_files.TOKENIZER_CONFIG: said} if said else {}
    parts = config, path, tensors, tokenizer, coded, leaf, template, weight_maps
    return Checkpoint(*parts, hf_files=hf_files)


def read_onnx(path: pathlib.Path) -> Checkpoint:
    """An encoder in an ONNX file of PyTorch, with config.json beside it or in the folder above.

    Raises:
        ValueError: there is no config.json, it is of no encoder, or the file is malformed or holds
            weights in another form.
    """
    folders = [x for x in (path.parent, path.parent.parent) if (x / CONFIG).is_file()]
    if not folders:
        raise ValueError(f"{path} has no {CONFIG} beside it, which says what it computes")
    file = folders[0] / CONFIG
    config = read_config(read_object(file), file)
    if config.family not in ("bert", "encoder"):
        raise ValueError(f"{path} holds a {config.family}, expected an encoder")
    weight_maps = family_module(config.family).weights(config)
    names = [name for weight_map in weight_maps.values() for name in weight_map.names]
    tensors = onnx_graph.named(onnx_graph.onnx_weights(path), names, path)
    return Checkpoint(config, file, tensors, tokenizer_files.read_tokenizer(folders[0]))


def read_bin(path: pathlib.Path) -> Checkpoint:
    """A Whisper of CTranslate2, or a llama2.c file.

    Raises:
        ValueError: the file is neither, or is malformed; for a pickle the message says what to do.
    """
    return _ctranslate2(path) if ctranslate2.is_ctranslate2(path) else _llama2c(path)


def _ctranslate2(path: pathlib.Path) -> Checkpoint:
    """A Whisper; the config.json beside its file is one of CTranslate2."""
    tokenizer = tokenizer_files.read_tokenizer(path.parent)
    fields = end_tokens.fields_of(path.with_name(CONFIG))
    hf, tensors = ctranslate2_models.whisper(ctranslate2.ctranslate2(path), fields, tokenizer)
    files = {CONFIG: hf, PREPROCESSOR: ctranslate2_models.preprocessor(hf)}
    more = {"processor": LogMelProcessor.from_hf(files[PREPROCESSOR]), "hf_files": files}
    return Checkpoint(read_config(hf, path), path, tensors, tokenizer, **more)


def _llama2c(path: pathlib.Path) -> Checkpoint:
    """A Llama, with the tokenizer that lies beside its file."""
    if unreadable_sources.is_pickle(path):
        raise unreadable_sources.pickle_error(path)
    hf, tensors = llama2c.llama2c(path)
    size = hf["vocab_size"]
    tokenizer = tokenizer_files.read_tokenizer(path.parent)
    if tokenizer is not None and tokenizer.token_to_id("<s>") == hf["bos_token_id"]:
        tokenizers.surround(tokenizer, ["<s>"], [])
    for beside in (path.with_name(f"tok{size}.bin"), path.with_name("tokenizer.bin")):
        if tokenizer is None and beside.is_file():
            tokenizer = tokenizers.from_llama2c(beside, size)
    return Checkpoint(read_config(hf, path), path, tensors, tokenizer)


def read_config(hf: dict, source: Any) -> Any:
    """The configuration that a config.json says; `source` is where it is from, for errors.

    Raises:
        ValueError: it lacks a field, or has one that is not computed here.
    """
    with prefixed(source):
        text, kind = hf.get("text_config"), hf.get("model_type")
        if isinstance(text, dict) and kind not in TOWER_FAMILIES:
            kind = text.get("model_type")
        return module_of_model_type(kind).Config.from_hf(hf)


# {the end of a file's name, or "" for a directory: its reader}
READERS = {"": read_safetensors, ".safetensors": read_safetensors}
READERS |= {".gguf": read_gguf, ".bin": read_bin, ".onnx": read_onnx}


@contextlib.contextmanager
def prefixed(source: Any) -> Iterator[None]:
    """Puts `source` before the message of an error in the block, as a ValueError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error
