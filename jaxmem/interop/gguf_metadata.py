"""The metadata of a Llama's GGUF file: names of tensors, fields, rope factors, tokenizer."""

import dataclasses
import pathlib
import struct
import warnings
from typing import Any

import numpy as np

from ..architectures import llama
from ..formats import gguf, gguf_config, gguf_llama
from ..models.model import Model
from . import gguf_vocabulary

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9  # types of a field
_FACTORS = "rope_freqs.weight"
_TEXT, _MODEL = "tokenizer.huggingface.json", "tokenizer.ggml.model"


def architecture(config: Any) -> str:
    """llama.cpp's name for a member of the family.

    Example:
        >>> from jaxmem.architectures.llama import Config
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> architecture(Config(**sizes)), architecture(Config(**sizes, qkv_bias=True))
        ('llama', 'qwen2')
    """
    if config.post_norms:
        return "gemma3"
    return "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"


def names(config: Any) -> dict[str, str]:
    """llama.cpp's name of a tensor for each name of a Hugging Face checkpoint."""
    tensor_names = {}
    for part, stem in gguf_llama.NAMES[architecture(config)].items():
        for i in range(config.layers) if "{}" in stem else (None,):
            name = part if i is None else f"blk.{i}.{part}"
            for suffix in ("weight", "bias"):
                tensor_names[f"{stem.format(i)}.{suffix}"] = f"{name}.{suffix}"
    return tensor_names


def fields(config: Any) -> dict[str, Any]:
    """The fields of the header that describe `config`."""
    c, arch = config, architecture(config)
    values = {
        "context_length": c.context,
        "embedding_length": c.width,
        "block_count": c.layers,
        "feed_forward_length": c.ffn,
        "attention.head_count": c.heads,
        "attention.head_count_kv": c.kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": c.eps,
        "rope.dimension_count": c.head_dim,
        "rope.freq_base": float(c.theta),
        "vocab_size": c.vocab,
    }
    if c.window:
        values["attention.sliding_window"] = c.window
    if len(c.rope_scaling) == 1:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(c.rope_scaling[0])}
    general = {"general.architecture": arch, "general.quantization_version": 2}
    return general | {f"{arch}.{name}": value for name, value in values.items()}


def factors(config: Any) -> dict[str, np.ndarray]:
    """The tensor that divides each rope frequency, if `config` has such divisors."""
    if config.rope_factors:
        return {_FACTORS: np.asarray(config.rope_factors, np.float32)}
    if len(config.rope_scaling) != 4:
        return {}
    numbers = gguf_config.llama3_factors(config.head_dim, config.theta, config.rope_scaling)
    return {_FACTORS: numbers}


def check(config: Any, file: gguf.Gguf) -> None:
    """Refuses a configuration that is not the one a reader of the file would find.

    Raises:
        ValueError: it differs; the message names the first field that does.
    """
    single = lambda x: float(np.float32(x)) if isinstance(x, float) else x
    plain = lambda c: {
        name: tuple(map(single, x)) if isinstance(x, tuple) else single(x)
        for name, x in dataclasses.asdict(c).items()
    }
    read_config = type(config).from_hf(gguf_config.config(file))
    read, expected = plain(read_config), plain(config)
    ignored = {"bos", "eos"} if config.local else {"bos", "eos", "local_theta"}
    # A reader knows some scalings only by their factors, which give the same frequencies.
    frequencies = [llama.per_layer(c)["frequencies"] for c in (read_config, config)]
    if np.allclose(*frequencies, rtol=1e-5, atol=0):
        ignored |= {"rope_scaling", "rope_factors"}
    for name in expected:
        if name not in ignored and read[name] != expected[name]:
            raise ValueError(
                f"a GGUF file cannot say {name} = {expected[name]}; it would read as {read[name]}"
            )


def tokenizer(model: Model) -> dict[str, bytes]:
    """The encoded fields of the tokenizer, copied if the model was read from a GGUF file.

    If llama.cpp has no tokenizer that does the same, the file says that it has no vocabulary, and
    a warning says why; so it does without a warning if the model has no tokenizer. llama.cpp then
    takes token ids, but no text.
    """
    none = {_MODEL: field(_MODEL, "none")}
    source = pathlib.Path(model.source)
    if source.suffix == ".gguf" and source.is_file():
        return none | gguf.encoded_fields(source, "tokenizer.")
    values, vocabulary, config = {}, {}, model.config
    if model.tokenizer is not None:
        values[_TEXT] = model.tokenizer.to_str()
        try:
            arch = architecture(config)
            vocabulary = gguf_vocabulary.fields(model.tokenizer, config.vocab, arch)
        except ValueError as error:
            warnings.warn(
                f"the tokenizer of {model.source} cannot be written for llama.cpp: {error}; the "
                "file has no vocabulary for it, only tokenizer.json as text",
                stacklevel=3,
            )
    ends, lost = gguf_vocabulary.end_fields(config.eos, vocabulary)
    if lost:
        warnings.warn(
            f"llama.cpp will not stop at {lost}: a GGUF file names three end tokens, and "
            f"{model.source} has {len(config.eos)}",
            stacklevel=3,
        )
    bos = {} if config.bos is None else {"bos_token_id": config.bos}
    for name, value in (bos | vocabulary | ends).items():
        values[f"tokenizer.ggml.{name}"] = value
    return none | {name: field(name, value) for name, value in values.items()}


def field(name: str, value: Any) -> bytes:
    """A field encoded for the header: its name, type and value."""
    return text(name) + _value(value)


def text(string: str) -> bytes:
    """A string encoded for the header: its length in bytes as u64, then UTF-8."""
    data = string.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """A value encoded for the header: the number of its type, then its bytes."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, list):
        return struct.pack("<I", _ARRAY) + _array(value)
    kind, form = (_F32, "f") if isinstance(value, float) else (_U32, "I")
    return struct.pack(f"<I{form}", kind, value)


def _array(values: list) -> bytes:
    """An array of strings, of floats or of integers: the type of an entry, the count, the data."""
    first = values[0] if values else ""
    if isinstance(first, str):
        return struct.pack("<IQ", _STRING, len(values)) + b"".join(map(text, values))
    kind, form = (_F32, "f") if isinstance(first, float) else (_I32, "i")
    return struct.pack(f"<IQ{len(values)}{form}", kind, len(values), *values)
