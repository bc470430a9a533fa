"""A file format as a target of `fit`: the forms that it holds exactly, the bytes around them."""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import jax

from ..codecs import Affine, Cast, Int
from ..core.byte_counts import nbytes as count_bytes
from ..core.fold import matrix_shape
from ..core.leaf import is_dense_float
from ..core.paths import is_whole, paths
from ..core.usage import summed_axes
from ..interop import compressed_tensors_layout, gguf_layout
from ..models.model import Model
from ..solvers import KQuant
from ..solvers.k_quant import SUPER_BLOCK
from .budgeting import Unreachable
from .candidates import is_matrix
from .encoding import encode

FileTarget = Literal["gguf", "compressed-tensors"]
FILE_TARGETS: tuple[FileTarget, ...] = get_args(FileTarget)

# The forms of each format that one budget chooses among. An embedding of compressed-tensors is not
# quantized, but may be of 16 bits; its integers have no zero points, as in W4A16 and W8A16, since
# transformers does not open packed ones with them.
FORMS: Mapping[FileTarget, tuple[Any, ...]] = {
    "gguf": (
        *map(KQuant, (2, 3, 4, 5, 6)),
        *(Int(bits, group=32) for bits in (4, 5, 8)),
        *(Affine(bits, group=32) for bits in (4, 5)),
    ),
    "compressed-tensors": (
        *(Int(4, group=group) for group in (32, 64, 128)),
        Int(8),
        Cast("float16"),
    ),
}


@dataclasses.dataclass(frozen=True)
class TargetForms:
    """What a budget needs to know of a target.

    `candidates` are the forms that the file of a model holds exactly, {regex: codecs}. `overhead`
    is the bytes that the file takes beyond what `jm.nbytes` counts of the encoded params: its
    header, the vocabulary and other texts, and what norms take more in f32.
    """

    target: FileTarget
    candidates: dict[str, tuple]
    overhead: int

    @contextlib.contextmanager
    def whole_file(self, nbytes: int) -> Iterator[int]:
        """What of `nbytes`, the bytes of a whole file, the params may take.

        Raises:
            Unreachable: what the block raises, with the bytes of whole files in its message.
        """
        try:
            yield max(nbytes - self.overhead, 0)
        except Unreachable as error:
            least = error.least + self.overhead
            raise Unreachable(
                f"{nbytes} bytes cannot hold it as {self.target}; the smallest file takes {least}",
                least,
            ) from error


def target_forms(model: Model, target: FileTarget, ways: Mapping, nbytes: int) -> TargetForms:
    """The forms of the model's matrices that a file for `target` holds without decoding them.

    Matrices that the format stores as one tensor, and so in one form, have one candidate: the
    largest that fits if each weight of the model takes its share of `nbytes`, or the smallest.

    Args:
        model: a dense model; its tensors may be lazy.
        target: the format.
        ways: how the model uses each weight, from `jm.uses`.
        nbytes: the bytes of the whole file.

    Raises:
        ValueError: the format cannot hold the model, or none of its weights.
    """
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    params = jax.tree.map(shape, model.tensors, is_leaf=is_whole)
    leaves = dict(zip(paths(params), jax.tree.leaves(params)))
    layout = _layout(model, params, target)
    candidates = {}
    for path, leaf in leaves.items():
        if is_dense_float(leaf) and is_matrix(leaf, path, ways):
            axes = summed_axes(path, ways, leaves)
            whole = matrix_shape(leaf, axes)[-1] % SUPER_BLOCK == 0
            forms = (c for c in FORMS[target] if whole or not isinstance(c, KQuant))
            exact = (c for c in forms if layout.holds(path, _encoded(c, axes, leaf)))
            candidates[path] = tuple(exact)
    candidates = {path: codecs for path, codecs in candidates.items() if codecs}
    if not candidates:
        rows = "rows of a multiple of 32 weights" if target == "gguf" else "groups that divide rows"
        raise ValueError(f"{target} holds no weight of {model.source} in few bits: it wants {rows}")
    share = nbytes / sum(math.prod(leaf.shape) for leaf in leaves.values())
    for together in layout.together:
        for path in set(together) & set(candidates):
            bytes_of = lambda codec, path=path: (
                count_bytes(_encoded(codec, summed_axes(path, ways, leaves), leaves[path]))
                / math.prod(leaves[path].shape)
            )
            by_size = sorted(candidates[path], key=bytes_of)
            candidates[path] = ([c for c in by_size if bytes_of(c) <= share] or by_size[:1])[-1:]
    plan = {path: codecs[0] for path, codecs in candidates.items()}
    encoded = encode(params, plan, uses=ways)
    return TargetForms(
        target,
        {re.escape(path): tuple(codecs) for path, codecs in candidates.items()},
        file_nbytes(model, encoded, target) - count_bytes(encoded) + layout.slack,
    )


def file_nbytes(model: Model, params: Any, target: FileTarget) -> int:
    """Bytes of the file, or the files, that an export of the encoded params writes.

    Raises:
        ValueError: the format cannot hold the model.
    """
    if target == "gguf":
        return gguf_layout.layout(model, params, half=False, shapes=True).nbytes
    return compressed_tensors_layout.layout(model, params, packed=True, shapes=True).nbytes


def _layout(model: Model, params: Any, target: FileTarget) -> Any:
    """The layout of a file of abstract params; its vocabulary is left out, to save time."""
    if target == "gguf":
        return gguf_layout.layout(model, params, half=False, tokenizer=False, shapes=True)
    return compressed_tensors_layout.layout(model, params, packed=True, shapes=True)


@functools.lru_cache(maxsize=2**10)  # many weights have one shape
def _encoded(codec: Any, axes: tuple[int, ...], leaf: jax.ShapeDtypeStruct) -> Any:
    """The abstract leaf that a codec makes of a weight."""
    return jax.eval_shape(lambda w: codec.encode(w, axes), leaf)
