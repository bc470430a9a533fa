"""The architecture that a GGUF file names, and the fields of it."""

import re
from collections.abc import Iterable

from ..io.json_fields import JsonFields
from .gguf import Gguf

_BY_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
_BY_LAYER += ("expert_feed_forward_length", "expert_used_count")


def architecture(file: Gguf, known: Iterable[str]) -> str:
    """The file's `general.architecture`.

    Raises:
        ValueError: It is none of those that are `known`.
    """
    name, known = file.fields.get("general.architecture"), tuple(known)
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{file.path} is of architecture {name!r}, expected {', '.join(known)}")
    return name


def architecture_fields(file: Gguf, name: str) -> JsonFields:
    """The fields of the architecture `name`; one with an equal number for each layer is a number.

    Example:
        >>> import pathlib
        >>> from jaxmem.formats.gguf import Gguf
        >>> file = Gguf(pathlib.Path("a.gguf"), {"llama.attention.head_count": "many"}, {})
        >>> architecture_fields(file, "llama").integer("attention.head_count")
        Traceback (most recent call last):
        ValueError: a.gguf: llama.attention.head_count is 'many', expected an integer of at least 1
    """
    prefix = f"{name}."
    values = {k.removeprefix(prefix): v for k, v in file.fields.items() if k.startswith(prefix)}
    for field in _BY_LAYER:
        numbers = values.get(field)
        if isinstance(numbers, list) and numbers and numbers == numbers[:1] * len(numbers):
            values[field] = numbers[0]
    return JsonFields(values, f"{file.path}: {prefix}")


def vocabulary_size(file: Gguf) -> int:
    """The number of tokens that the file has an embedding for.

    Raises:
        ValueError: It has no embedding, or one that is no matrix.
    """
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{file.path} has no matrix token_embd.weight")
    return embedding.shape[0]


def layer_count(file: Gguf, fields: JsonFields) -> int:
    """The number of layers, for all of which the file has tensors.

    Raises:
        ValueError: The field says another number than the tensors.
    """
    layers = fields.integer("block_count")
    matches = (re.match(r"blk\.(\d{1,9})\.", name) for name in file.tensors)
    blocks = {int(match[1]) for match in matches if match}
    if len(blocks) != layers or max(blocks, default=-1) != layers - 1:
        missing = next((i for i in range(len(blocks) + 1) if i not in blocks), None)
        more = max(blocks, default=0) >= layers
        problem = f"tensors of block {max(blocks)}" if more else f"no tensors of block {missing}"
        fields.refuse("block_count", "the number of blocks with tensors", f"; it has {problem}")
    return layers
