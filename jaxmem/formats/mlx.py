"""MLX: scale · code + bias, codes packed along the inputs of a module, as mlx-lm writes them.

`weight` (n, k · bits / 32) has words of 32 bits, `scales` and `biases` are (n, k / group_size).
config.json says bits and group_size in `quantization`, and in it those of single modules.
"""

from ..core.lazy import Lazy
from ..io.json_fields import JsonFields
from .quantized_matrix import FLOATS, IntegerMatrix, check_tensor, unpacked

ENDS = ("weight", "scales", "biases")
_BITS = (2, 3, 4, 5, 6, 8)


def mlx(tensors: dict[str, Lazy], config: dict) -> dict[str, IntegerMatrix]:
    """The matrices of an MLX checkpoint by the names of their modules.

    Raises:
        ValueError: a mode that is not affine, experts in one tensor, or tensors that do not belong
            together.
    """
    stems = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    result = {}
    for stem in stems:
        own = config.get(stem)
        fields = JsonFields(config | own if isinstance(own, dict) else config, "quantization.")
        bits, group = fields.integer("bits", 4), fields.integer("group_size", 64)
        fields.expect("mode", "affine")
        if bits not in _BITS:
            fields.refuse("bits", f"one of {', '.join(map(str, _BITS))}")
        result[stem] = _matrix(tensors, stem, bits, group)
    return result


def _matrix(tensors: dict[str, Lazy], stem: str, bits: int, group: int) -> IntegerMatrix:
    """The matrix of one module; the shapes and types of its tensors are checked."""
    shape = tuple(tensors[f"{stem}.scales"].shape)
    if len(shape) == 3:
        raise ValueError(f"{stem} has all experts in one tensor, which is not read from MLX")
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"{stem}.scales has shape {shape}, expected two axes")
    n, k = shape[0], shape[1] * group
    words = check_tensor(tensors, f"{stem}.weight", (n, k * bits // 32), "uint32")
    scales, biases = (
        check_tensor(tensors, f"{stem}.{end}", shape, *FLOATS) for end in ("scales", "biases")
    )
    codes = lambda: unpacked(words.load(), bits, k)
    return IntegerMatrix(stem, (n, k), bits, group, codes, scales.load, low=biases.load)
