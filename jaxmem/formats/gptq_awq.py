"""GPTQ and AWQ: integers in words of 32 bits, as GPTQModel, AutoGPTQ and AutoAWQ write them.

Each module has `qweight`, `qzeros` and `scales` (groups, n); a weight is (code − zero) · scale.
GPTQ packs codes of 2, 3, 4 or 8 bits along the inputs: `qweight` is (k · bits / 32, n). Its zero
points, (groups, n · bits / 32), are one less than what they stand for, unless the format is
gptq_v2. `g_idx` (k) has the group of each input. AWQ packs 4 bits along the outputs, (k, n / 8);
the eight nibbles of a word are outputs 0, 2, 4, 6, 1, 3, 5 and 7. Frantar et al., 2022; Lin et al.,
2023.
"""

import numpy as np

from ..core.lazy import Lazy
from ..io.json_fields import JsonFields
from .quantized_matrix import FLOATS, WORDS, IntegerMatrix, check_tensor, group_order, unpacked

ENDS = ("qweight", "qzeros", "scales", "g_idx")
_BITS = (2, 3, 4, 8)
_NIBBLES = [0, 4, 1, 5, 2, 6, 3, 7]  # the nibble of an AWQ word that holds output 0, 1, 2, ...


def gptq(tensors: dict[str, Lazy], config: dict) -> dict[str, IntegerMatrix]:
    """The matrices of a GPTQ checkpoint by the names of their modules.

    Raises:
        ValueError: an option is not computed here (Marlin's order of words, rotations, adapters,
            bits that differ between modules), or tensors do not belong together.
    """
    fields = JsonFields(config, "quantization_config.")
    bits, size = fields.integer("bits"), fields.integer("group_size", -1, least=-1)
    form = fields.text("checkpoint_format", None) or fields.text("format", "gptq")
    if bits not in _BITS:
        fields.refuse("bits", f"one of {', '.join(map(str, _BITS))}")
    if form not in ("gptq", "gptq_v2"):
        name = "checkpoint_format" if "checkpoint_format" in fields else "format"
        fields.refuse(name, "gptq or gptq_v2", "; convert it with the tool that wrote it")
    fields.expect("is_marlin_format", False)
    for name in ("dynamic", "rotation", "adapter"):
        if config.get(name):
            fields.refuse(name, "none", ", which is what is computed here")
    stems = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    return {stem: _gptq_matrix(tensors, stem, bits, size, form == "gptq") for stem in stems}


def awq(tensors: dict[str, Lazy], config: dict) -> dict[str, IntegerMatrix]:
    """The matrices of an AWQ checkpoint by the names of their modules.

    Raises:
        ValueError: its words are in another order than "gemm", or tensors do not belong together.
    """
    fields = JsonFields(config, "quantization_config.")
    fields.expect("bits" if "bits" in fields else "w_bit", 4)
    size = fields.integer("group_size" if "group_size" in fields else "q_group_size", -1, least=-1)
    if fields.text("version", "gemm").lower() != "gemm":
        fields.refuse("version", "gemm", ", whose order of words is read here")
    stems = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    return {stem: _awq_matrix(tensors, stem, size) for stem in stems}


def _gptq_matrix(
    tensors: dict[str, Lazy], stem: str, bits: int, size: int, one_less: bool
) -> IntegerMatrix:
    """The matrix of one module; the shapes and types of its tensors are checked."""
    rows, n = _two_axes(tensors[f"{stem}.qweight"], stem)
    words = check_tensor(tensors, f"{stem}.qweight", (rows, n), *WORDS)
    k = rows * 32 // bits
    group = size if 0 < size < k else k
    groups, order = -(-k // group), None
    scale = check_tensor(tensors, f"{stem}.scales", (groups, n), *FLOATS)
    zero = check_tensor(tensors, f"{stem}.qzeros", (groups, -(-n * bits // 32)), *WORDS)
    if f"{stem}.g_idx" in tensors:
        g_idx = check_tensor(tensors, f"{stem}.g_idx", (k,), *WORDS, "int64").load()
        order = group_order(g_idx, group, f"{stem}.g_idx")
    place = slice(None) if order is None else order
    codes = lambda: np.ascontiguousarray(unpacked(words.load().T, bits, k)[:, place])

    def zeros():
        """(n, groups); one less than 0 is stored as the largest code."""
        return (unpacked(zero.load(), bits, n).T + one_less) & np.uint8(2**bits - 1)

    return IntegerMatrix(
        stem, (n, k), bits, group, codes, lambda: scale.load().T, zeros, order=order
    )


def _awq_matrix(tensors: dict[str, Lazy], stem: str, size: int) -> IntegerMatrix:
    """The matrix of one module; the shapes and types of its tensors are checked."""
    k, columns = _two_axes(tensors[f"{stem}.qweight"], stem)
    words, n = check_tensor(tensors, f"{stem}.qweight", (k, columns), *WORDS), columns * 8
    group = size if 0 < size < k else k
    groups = -(-k // group)
    scale = check_tensor(tensors, f"{stem}.scales", (groups, n), *FLOATS)
    zero = check_tensor(tensors, f"{stem}.qzeros", (groups, columns), *WORDS)
    codes, zeros = (lambda words=words: _nibbles(words.load()).T for words in (words, zero))
    return IntegerMatrix(stem, (n, k), 4, group, codes, lambda: scale.load().T, zeros)


def _nibbles(words: np.ndarray) -> np.ndarray:
    """The codes (k, n) of AWQ's words (k, n / 8).

    Example:
        >>> _nibbles(np.array([[0x75316420]], np.int32))
        array([[0, 1, 2, 3, 4, 5, 6, 7]], dtype=uint8)
    """
    k, columns = words.shape
    return unpacked(words, 4, columns * 8).reshape(k, columns, 8)[..., _NIBBLES].reshape(k, -1)


def _two_axes(tensor: Lazy, stem: str) -> tuple[int, int]:
    """The shape of a tensor of two axes."""
    if len(tensor.shape) != 2 or min(tensor.shape) < 1:
        raise ValueError(f"{stem}.qweight has shape {tuple(tensor.shape)}, expected two axes")
    return tuple(tensor.shape)
