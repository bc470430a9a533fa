"""Quantized checkpoints of safetensors: the tensors decoded, and the matrices with their codes."""

import dataclasses
from collections.abc import Callable

from ..core.lazy import Lazy
from . import bitsandbytes, compressed_tensors, fp8, gptq_awq, mlx, mxfp4
from .quantized_matrix import QuantizedMatrix, halves

# {quant_method: (its reader, the ends of the names of a matrix's tensors, the end of the name of
# the tensor that a dense checkpoint has in their place)}
METHODS: dict[str, tuple[Callable, tuple[str, ...], str]] = {
    "gptq": (gptq_awq.gptq, gptq_awq.ENDS, ".weight"),
    "awq": (gptq_awq.awq, gptq_awq.ENDS, ".weight"),
    "fp8": (fp8.fp8, fp8.ENDS, ".weight"),
    "fbgemm_fp8": (fp8.fp8, fp8.ENDS, ".weight"),
    "bitsandbytes": (bitsandbytes.bitsandbytes, bitsandbytes.ENDS, ".weight"),
    "mxfp4": (mxfp4.mxfp4, mxfp4.ENDS, ""),
    "mlx": (mlx.mlx, mlx.ENDS, ".weight"),
}


def method(hf: dict) -> tuple[str, dict] | None:
    """How a config.json says that weights are quantized: the method and its fields, or None.

    Example:
        >>> method({"quantization": {"bits": 4, "group_size": 64}})
        ('mlx', {'bits': 4, 'group_size': 64})
        >>> method({"model_type": "llama"})
    """
    text = hf.get("text_config")
    for holder in (hf, text if isinstance(text, dict) else {}):
        config = holder.get("quantization_config")
        if config and (not isinstance(config, dict) or "quant_method" in config):
            return str(config["quant_method"]) if isinstance(config, dict) else "", config
        if isinstance(holder.get("quantization"), dict):
            return "mlx", holder["quantization"]
        if config:
            return "", config
    return None


def read(
    tensors: dict[str, Lazy], name: str, config: dict, turned: bool
) -> tuple[dict[str, Lazy], dict[str, QuantizedMatrix]]:
    """(all tensors as lazy ones that are decoded when read, the quantized ones as matrices).

    `tensors` are those of the checkpoint by name, `name` and `config` what `method` says. `turned`
    is for models whose dense linears are (in, out), as GPT-2's.

    Raises:
        ValueError: a method or an option that is not read, or tensors that do not belong together.
    """
    if name not in METHODS:
        dense, matrices = compressed_tensors.read(tensors, config)
        end = ".weight"
    else:
        reader, ends, end = METHODS[name]
        matrices = reader(tensors, config)
        joint = "" if name == "mxfp4" else "."
        parts = {f"{matrix.name}{joint}{part}" for matrix in matrices.values() for part in ends}
        dense = {name: tensor for name, tensor in tensors.items() if name not in parts}
    turn = lambda matrix: dataclasses.replace(matrix, turned=matrix.turned or turned)
    coded = {f"{stem}{end}": turn(matrix) for stem, matrix in matrices.items()}
    decoded = {name: matrix.tensor() for name, matrix in coded.items()}
    return dense | decoded, coded | halves(dense)
