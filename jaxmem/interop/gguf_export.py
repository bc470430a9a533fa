"""to_gguf: a decoder as one GGUF file that llama.cpp reads.

Codes are moved, never rounded again: weights that a block type can store exactly are written in it,
all others in f32 (or f16 on request).
"""

import os
import pathlib
from typing import Any, BinaryIO

from ..core.arguments import OPTIONAL_TREE, takes
from ..io.atomic import replacing
from ..models.model import Model
from . import gguf_layout, gguf_tensors, layer_codes
from .layer_codes import Written


@takes(params=OPTIONAL_TREE)
def to_gguf(
    path: str | os.PathLike,
    model: Model,
    params: Any = None,
    *,
    half: bool = False,
    tokenizer: bool = True,
) -> Written:
    """Writes `model` with `params` (default: its own) to the file `path`, one layer at a time.

    `Int` of up to 4 bits (3 with a zero point) becomes Q4_0, of 5 bits (4) Q5_0, of up to 8 bits
    (7) Q8_0; `Affine` of up to 4 bits becomes Q4_1, of 5 bits Q5_1; `KQuant` Q2_K to Q6_K. The
    length of a row and of a group must be multiples of 32 (of 256 for `KQuant`), and scales must be
    f16. The codes of a `Dynamic` weight are
    written, but its inputs are no longer rounded. `Cast` and 16-bit arrays become F16 and BF16.
    Other encoded weights are decoded; these and dense matrices are F32, or F16 with `half`. The
    result lists the type of each parameter; layers that are encoded differently are listed
    separately. The file has the whole tokenizer: the fields of the GGUF file that the model was
    read from, or made from its tokenizer (byte-level BPE with a split that llama.cpp names, or
    SentencePiece), and the chat template. With `tokenizer=False` the file has no vocabulary, and
    llama.cpp takes token ids from it, but no text. The file is complete or absent.

    Raises:
        ValueError: the model is no decoder, or no architecture of llama.cpp describes it; llama.cpp
            has no tokenizer that does what the model's does; `path` is a directory; `params` are
            not those of the model, or are shapes.

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
    layout = gguf_layout.layout(model, params, half=half, tokenizer=tokenizer)
    with replacing(path) as temporary, temporary.open("wb") as out:
        out.write(layout.header)
        _pad(out)
        for numbers in layout.divisors.values():
            numbers.astype("<f4").tofile(out)
            _pad(out)
        for matrices in gguf_tensors.data(layout.tensors.values()):
            for matrix in matrices:
                matrix.tofile(out)
            _pad(out)
    rounds = layer_codes.rounds_inputs
    unrounded = tuple(path for path, leaf in layout.leaves.items() if rounds(leaf))
    return Written(str(path), path.stat().st_size, layout.types, layout.decoded, unrounded)


def _pad(out: BinaryIO) -> None:
    """Writes zeros up to the next multiple of the alignment."""
    out.write(bytes(gguf_layout.padded(out.tell()) - out.tell()))
