"""to_gguf: a model of the Llama family as one GGUF file that llama.cpp reads.

Codes are moved, never rounded again: weights that a block type can store exactly are written in it,
all others in f32 (or f16 on request).
"""

import dataclasses
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from ..architectures.weight_map import WeightMap
from ..core.arguments import OPTIONAL_TREE, takes
from ..core.fold import Fold
from ..core.lazy import Lazy
from ..formats import gguf, gguf_llama
from ..io.atomic import replacing
from ..models.model import Model
from ..models.quantized_weights import placed
from . import gguf_encoding, gguf_metadata, layer_codes
from .layer_codes import Written

ALIGNMENT_BYTES = 32  # a tensor begins at a multiple of this


@takes(params=OPTIONAL_TREE)
def to_gguf(
    path: str | os.PathLike, model: Model, params: Any = None, *, half: bool = False
) -> Written:
    """Writes `model` with `params` (default: its own) to the file `path`, one layer at a time.

    `Int` of up to 4 bits (3 with a zero point) becomes Q4_0, of 5 bits (4) Q5_0, of up to 8 bits
    (7) Q8_0; `Affine` of up to 4 bits becomes Q4_1, of 5 bits Q5_1. The length of a row and of a
    group must be multiples of 32, and scales must be f16. The codes of a `Dynamic` weight are
    written, but its inputs are no longer rounded. `Cast` and 16-bit arrays become F16 and BF16.
    Other encoded weights are decoded; these and dense matrices are F32, or F16 with `half`. The
    result lists the type of each parameter; layers that are encoded differently are listed
    separately. The fields of the tokenizer are copied from the GGUF file that the model was read
    from, or made from its tokenizer: byte-level BPE with a split that llama.cpp names, or
    SentencePiece. For another tokenizer the file has no vocabulary, and a warning says why. The
    file is complete or absent.

    Raises:
        ValueError: the model is not of the Llama family, or a GGUF file cannot describe it; `path`
            is a directory; `params` are not those of the model, or are shapes.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp, numpy as np, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=64, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config, ids = llama.Config(**sizes), jnp.zeros((1, 8), jnp.int32)
        >>> shapes = jax.eval_shape(llama.module(config).init, jax.random.key(0), ids)["params"]
        >>> draw = lambda x: np.random.default_rng(0).normal(size=x.shape).astype(x.dtype)
        >>> params = jax.tree.map(draw, shapes)
        >>> model = jm.models.Model(config, params, None, "random")
        >>> encoded = jm.encode(params, {"layers/mlp/up/kernel": jm.Int(4, group=32)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = jm.interop.to_gguf(f"{folder}/model.gguf", model, encoded)
        >>> written.types["layers/mlp/up/kernel"], written.types["layers/mlp/gate/kernel"]
        ('Q4_0', 'F32')
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a directory, expected a file")
    if model.config.family != "llama":
        raise ValueError(f"{model.source} is a {model.config.family}, expected a Llama")
    parameters = layer_codes.parameters(model, params)
    parts = [_part(model.config, *parameter, half) for parameter in parameters]
    factors = gguf_metadata.factors(model.config)
    file = _skeleton(path, model.config, factors, parts)
    gguf_metadata.check(model.config, file)
    fields = {name: gguf_metadata.field(name, value) for name, value in file.fields.items()}
    fields |= gguf_metadata.tokenizer(model)
    kinds = dict.fromkeys(factors, "F32") | {name: p.kind for p in parts for name in p.names}
    with replacing(path) as temporary, temporary.open("wb") as out:
        out.write(
            _header(fields, {name: (x.shape, kinds[name]) for name, x in file.tensors.items()})
        )
        _pad(out)
        for numbers in factors.values():
            numbers.astype("<f4").tofile(out)
            _pad(out)
        for part in parts:
            for data in _data(file, part):
                data.tofile(out)
                _pad(out)
    types = {part.leaf_path: part.kind for part in parts}
    floats = [part for part in parts if part.kind[0] in "FB"]
    decoded = tuple(part.leaf_path for part in floats if layer_codes.is_coded(part.leaf))
    unrounded = tuple(part.leaf_path for part in parts if layer_codes.rounds_inputs(part.leaf))
    return Written(str(path), path.stat().st_size, types, decoded, unrounded)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A parameter: its path, weight map and leaf, and the names, shape and type of its tensors."""

    leaf_path: str
    weight_map: WeightMap
    leaf: Any
    names: list[str]
    shape: tuple[int, ...]
    kind: str


def _part(config: Any, leaf_path: str, weight_map: WeightMap, leaf: Any, half: bool) -> _Part:
    """The parameter with llama.cpp's names of its tensors, their shape, and the type they get."""
    gguf_names, turned = gguf_metadata.names(config), weight_map.fn is np.transpose
    shape = weight_map.shape[1:] if weight_map.stacked else weight_map.shape
    shape, fold = shape[::-1] if turned else shape, None
    if len(shape) == 2:
        fold = Fold(shape[:1], shape[1:], (-1, -2) if turned else (-2, -1))
    names = [gguf_names[name] for name in weight_map.names]
    return _Part(leaf_path, weight_map, leaf, names, shape, gguf_encoding.kind(leaf, fold, half))


def _skeleton(path: pathlib.Path, config: Any, factors: dict, parts: list[_Part]) -> gguf.Gguf:
    """The file as a reader sees it, with zeros for weights."""
    tensors = {name: Lazy(x.shape, x.dtype, lambda _, x=x: x) for name, x in factors.items()}
    for part in parts:
        zeros = np.broadcast_to(np.float32(0), part.shape)
        tensor = Lazy(part.shape, np.dtype("f4"), lambda _, x=zeros: x)
        tensors |= dict.fromkeys(part.names, tensor)
    return gguf.Gguf(path, gguf_metadata.fields(config), tensors)


def _data(file: gguf.Gguf, part: _Part) -> Iterator[np.ndarray]:
    """The numbers or bytes of each layer in the order of the file."""
    for name, layer in zip(part.names, layer_codes.layers(part.leaf, part.weight_map)):
        to_file_order = lambda w, name=name: part.weight_map.fn(
            gguf_llama.undone(file, name, Lazy(w.shape, w.dtype, lambda _: w)).load()
        )
        try:
            data = gguf_encoding.data(layer, part.kind)
        except ValueError as error:
            raise ValueError(f"{part.leaf_path}: {error}") from error
        if len(part.shape) == 1:
            yield data - to_file_order(np.zeros_like(data))  # a reader takes 1 from Gemma's gains
            continue
        order, fold = placed(to_file_order, *part.shape)
        rows = data.T if part.kind[0] in "FB" and fold.order == (-1, -2) else data
        yield np.ascontiguousarray(rows[np.argsort(order)])


def _header(fields: dict[str, bytes], tensors: dict[str, tuple[tuple[int, ...], str]]) -> bytes:
    """The file's header: its encoded fields, then each tensor's name, shape, type and offset."""
    parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(fields)), *fields.values()]
    offset = 0
    for name, (shape, kind) in tensors.items():
        parts += [gguf_metadata.text(name), struct.pack("<I", len(shape))]
        parts += [struct.pack(f"<{len(shape)}Q", *shape[::-1])]
        parts += [struct.pack("<IQ", gguf_encoding.TYPES[kind], offset)]
        offset += -(-gguf_encoding.nbytes(kind, shape) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return b"".join(parts)


def _pad(out: BinaryIO) -> None:
    """Writes zeros up to the next multiple of the alignment."""
    out.write(bytes(-out.tell() % ALIGNMENT_BYTES))
