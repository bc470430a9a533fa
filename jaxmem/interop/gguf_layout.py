"""Everything of a decoder's GGUF file but its numbers: the header, and where each tensor lies."""

import dataclasses
import struct
from typing import Any

import numpy as np

from ..architectures.gguf import gguf_decoder
from ..models.model import Model
from . import gguf_block_bytes, gguf_metadata, gguf_tensors, layer_codes
from .gguf_field_bytes import field, text
from .gguf_tensors import Tensor
from .gguf_tokenizer import tokenizer_fields

ALIGNMENT_BYTES = 32  # a tensor begins at a multiple of this


@dataclasses.dataclass(frozen=True)
class GgufLayout:
    """The header, and after it the divisors of rotary frequencies f32 and the tensors, by name."""

    header: bytes
    divisors: dict[str, np.ndarray]
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        divisors = sum(padded(4 * x.size) for x in self.divisors.values())
        sizes = (gguf_block_bytes.nbytes(x.kind, x.shape) for x in self.tensors.values())
        return padded(len(self.header)) + divisors + sum(map(padded, sizes))

    @property
    def slack(self) -> int:
        """Bytes by which files of the same parameters in other types may be longer: padding."""
        return (ALIGNMENT_BYTES - 1) * len(self.tensors)

    @property
    def together(self) -> list[tuple[str, ...]]:
        """The paths of parameters that lie in one tensor, which has one type."""
        paths = {
            tuple(dict.fromkeys(part.path for part, _ in x.pieces)) for x in self.tensors.values()
        }
        return [several for several in paths if len(several) > 1]

    def holds(self, path: str, leaf: Any) -> bool:
        """Whether the file can hold the codes of a leaf, in the place of the parameter `path`."""
        parts = (part for x in self.tensors.values() for part, _ in x.pieces if part.path == path)
        fold = next(parts).fold
        return fold is not None and gguf_block_bytes.kind(leaf, fold, half=False)[0] == "Q"

    @property
    def types(self) -> dict[str, str]:
        """The type in which each parameter is written, by its path."""
        return {
            part.path: tensor.kind for tensor in self.tensors.values() for part, _ in tensor.pieces
        }

    @property
    def leaves(self) -> dict[str, Any]:
        """The leaf of each parameter, by its path."""
        return {
            part.path: part.leaf for tensor in self.tensors.values() for part, _ in tensor.pieces
        }

    @property
    def decoded(self) -> tuple[str, ...]:
        """The paths of the parameters whose codes the file does not hold."""
        leaves = self.leaves
        is_float = lambda kind: kind[0] in "FB"
        return tuple(
            path
            for path, kind in self.types.items()
            if is_float(kind) and layer_codes.is_coded(leaves[path])
        )


def layout(
    model: Model, params: Any, *, half: bool, tokenizer: bool = True, shapes: bool = False
) -> GgufLayout:
    """The layout of the file of `model` with `params` (None: its own).

    Args:
        model: a decoder.
        params: the model's tensors, dense or encoded.
        half: dense matrices are F16, not F32.
        tokenizer: the file has the vocabulary of the model's tokenizer.
        shapes: `params` may be abstract.

    Raises:
        ValueError: the model is no decoder, or no architecture of llama.cpp describes it; its
            tokenizer is none of llama.cpp's; `params` are not those of the model.
    """
    if model.config.family not in ("llama", "decoder"):
        raise ValueError(
            f"{model.source} is a {model.config.family}, and a GGUF file of ours holds decoders"
        )
    metadata = gguf_metadata.metadata(model.config)
    weight_maps = gguf_decoder.weights(model.config, metadata.architecture)
    parameters = layer_codes.parameters(model, params, weight_maps, shapes=shapes)
    tensors = gguf_tensors.tensors(parameters, half)
    fields = {name: field(name, value) for name, value in metadata.fields.items()}
    fields |= tokenizer_fields(model, metadata.architecture, vocabulary=tokenizer)
    divisors = {name: Tensor(x.shape, "F32", []) for name, x in metadata.divisors.items()}
    return GgufLayout(_header(fields, divisors | tensors), metadata.divisors, tensors)


def padded(nbytes: int) -> int:
    """The next multiple of the alignment, in bytes.

    Example:
        >>> padded(33)
        64
    """
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _header(fields: dict[str, bytes], tensors: dict[str, Tensor]) -> bytes:
    """The file's header: its encoded fields, then each tensor's name, shape, type and offset."""
    parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(fields)), *fields.values()]
    offset = 0
    for name, tensor in tensors.items():
        shape, kind = tensor.shape, tensor.kind
        parts += [text(name), struct.pack("<I", len(shape))]
        parts += [struct.pack(f"<{len(shape)}Q", *shape[::-1])]
        parts += [struct.pack("<IQ", gguf_block_bytes.TYPES[kind], offset)]
        offset += padded(gguf_block_bytes.nbytes(kind, shape))
    return b"".join(parts)
