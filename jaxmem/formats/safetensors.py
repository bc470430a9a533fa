"""{tensor name: Lazy} from the files models come in: safetensors and llama2.c.

Tensors are read with a seek and a read, not through a memory map: the pages of a mapped file stay
in the process until the system wants them back, and so the peak would be the file.
"""

import json
import math
import pathlib

import ml_dtypes
import numpy as np

from ..core.lazy import Lazy

_SAFETENSORS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the format's reference reader


def part(path: pathlib.Path, offset: int, count: int, dtype: np.dtype) -> np.ndarray:
    """`count` numbers from byte `offset` of a file.

    Raises:
        ValueError: The file has become shorter than it was when it was opened.
    """
    numbers = np.fromfile(path, dtype, count, offset=offset)
    if numbers.size != count:
        raise ValueError(f"{path} ends inside a tensor; has it changed since it was opened?")
    return numbers


def stored(path: pathlib.Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Lazy:
    """An array that lies as it is at byte `offset` of a file."""
    read = lambda _=None: part(path, offset, math.prod(shape), dtype).reshape(shape)
    return Lazy(shape, dtype, read)


def safetensors(path: pathlib.Path) -> dict[str, Lazy]:
    """The tensors of one safetensors file; only its header is read.

    Raises:
        ValueError: The file is not a whole safetensors file, or holds a type such as fp8.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"{path} is no whole safetensors file: {size} bytes end in its header")
        text = file.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        return {name: _safetensor(path, size, 8 + length, **e) for name, e in entries.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error


def _safetensor(path, size, start, *, dtype, shape, data_offsets) -> Lazy:
    if dtype not in _SAFETENSORS:
        raise ValueError(f"a tensor of type {dtype}; expected one of {', '.join(_SAFETENSORS)}")
    begin, end = data_offsets
    shape, dtype = tuple(shape), _SAFETENSORS[dtype]
    if min(shape, default=0) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - begin} bytes for a tensor of shape {shape} and type {dtype}")
    if begin < 0 or start + end > size:
        raise ValueError(f"a tensor ends at byte {start + end} of {size}")
    return stored(path, start + begin, shape, dtype)


def sharded(index: pathlib.Path) -> dict[str, Lazy]:
    """The tensors of the safetensors files that an index file beside them lists.

    Raises:
        ValueError: The index is malformed, or names a tensor its file does not hold.
        FileNotFoundError: A file it lists is missing.
    """
    try:
        where = dict(json.loads(index.read_text())["weight_map"])
        files = {name: index.parent / pathlib.Path(name).name for name in where.values()}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{index} is no index of safetensors files: {error!r}") from error
    tensors = {name: safetensors(path) for name, path in files.items()}
    for name, file in where.items():
        if name not in tensors[file]:
            raise ValueError(f"{index} says {name} is in {file}, which does not hold it")
    return {name: tensors[file][name] for name, file in where.items()}


def halves(pairs: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from interleaved rope order to the order that rotates half against half.

    llama2.c and GGUF store row pairs (2i, 2i+1) of a head that turn together; our models, like
    transformers, keep them head_dim / 2 apart.

    Example:
        >>> import numpy as np
        >>> from jaxmem.formats.safetensors import halves
        >>> halves(np.array([0, 10, 1, 11, 2, 12, 3, 13]), heads=2)
        array([ 0,  1, 10, 11,  2,  3, 12, 13])
    """
    rest = pairs.shape[1:]
    return pairs.reshape(heads, -1, 2, *rest).swapaxes(1, 2).reshape(-1, *rest)


def llama2c(path: pathlib.Path) -> tuple[dict, dict[str, Lazy]]:
    """The configuration, as a config.json would give it, and the tensors of a llama2.c file.

    Reference: llama2.c, its first file version: seven int32, then float32 tensors (Karpathy, 2023).

    Raises:
        ValueError: The file's length is not the one its header asks for.
    """
    size = path.stat().st_size
    if size < 28:
        raise ValueError(f"{path} is no llama2.c file: {size} bytes, expected a header of 28")
    d, ffn, layers, heads, kv_heads, vocab, length = part(path, 0, 7, np.dtype("<i4")).tolist()
    tied, vocab = vocab > 0, abs(vocab)  # the sign says whether a head follows
    if min(d, ffn, layers, heads, kv_heads, vocab, length) < 1 or d % heads or heads % kv_heads:
        raise ValueError(f"{path} is no llama2.c file: its header gives impossible sizes")
    head = d // heads
    kv = kv_heads * head
    block = "model.layers.{}."
    layout = [  # in the file's order: name, layers, shape
        ("model.embed_tokens.weight", 1, (vocab, d)),
        (block + "input_layernorm.weight", layers, (d,)),
        (block + "self_attn.q_proj.weight", layers, (d, d)),
        (block + "self_attn.k_proj.weight", layers, (kv, d)),
        (block + "self_attn.v_proj.weight", layers, (kv, d)),
        (block + "self_attn.o_proj.weight", layers, (d, d)),
        (block + "post_attention_layernorm.weight", layers, (d,)),
        (block + "mlp.gate_proj.weight", layers, (ffn, d)),
        (block + "mlp.down_proj.weight", layers, (d, ffn)),
        (block + "mlp.up_proj.weight", layers, (ffn, d)),
        ("model.norm.weight", 1, (d,)),
        ("rope tables", 1, (length, head)),
        *([] if tied else [("lm_head.weight", 1, (vocab, d))]),
    ]
    expected = 28 + 4 * sum(n * math.prod(shape) for _, n, shape in layout)
    if size != expected:
        raise ValueError(f"{path} is no whole llama2.c file: {size} bytes, expected {expected}")
    tensors, offset = {}, 28
    for name, n, shape in layout:
        turns = heads if "q_proj" in name else kv_heads if "k_proj" in name else 0
        for i in range(n):
            tensor = stored(path, offset, shape, np.dtype("<f4"))
            if turns:
                tensor = tensor.map(lambda w, turns=turns: halves(w, turns), shape)
            tensors[name.format(i)] = tensor
            offset += 4 * math.prod(shape)
    del tensors["rope tables"]
    config = {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": d,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return config, tensors
