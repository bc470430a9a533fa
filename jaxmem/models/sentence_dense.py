"""DenseVector: the layer after the pooling of sentence-transformers, v ↦ f(v · W + b)."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..formats.safetensors import safetensors
from ..io.json_fields import JsonFields, read_object

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {  # by the last part of a class's name
    "Identity": lambda x: x,
    "Tanh": jnp.tanh,
    "ReLU": jax.nn.relu,
    "Sigmoid": jax.nn.sigmoid,
}
WEIGHTS = "model.safetensors"
_MOST = 2**20  # numbers of a vector


@dataclasses.dataclass(frozen=True, eq=False)
class DenseVector:
    """Maps vectors (B, d) to (B, m): a matrix, a bias, and an activation of `ACTIVATIONS`.

    Example:
        >>> DenseVector(np.eye(2, dtype=np.float32), np.ones(2, np.float32), "ReLU")(
        ...     jnp.array([[1.0, -3.0]])
        ... ).tolist()
        [[2.0, 0.0]]
    """

    kernel: np.ndarray  # (d, m) f32
    bias: np.ndarray | None  # (m,) f32
    activation: str

    def __call__(self, vectors: Array) -> Array:
        """The vectors (B, m) f32."""
        y = jnp.matmul(vectors, self.kernel, precision="highest")
        y = y if self.bias is None else y + self.bias[None]
        return ACTIVATIONS[self.activation](y)

    @classmethod
    def read(cls, folder: pathlib.Path) -> "DenseVector":
        """The layer of a folder such as `2_Dense`, with config.json and model.safetensors.

        Raises:
            ValueError: a file is missing or malformed; the tensors have other shapes than the
                configuration says, or its activation is none of `ACTIVATIONS`.
        """
        fields = JsonFields(read_object(folder / "config.json"), f"{folder / 'config.json'}: ")
        sizes = [fields.integer(f"{x}_features", most=_MOST) for x in ("in", "out")]
        has_bias = fields.boolean("bias", True)
        name = fields.text("activation_function", "torch.nn.modules.activation.Tanh")
        activation = name.rpartition(".")[2]
        if activation not in ACTIVATIONS:
            fields.refuse("activation_function", f"one that ends in {', '.join(ACTIVATIONS)}")
        fields.refuse_unread(r"module_input_name|module_output_name")
        path = folder / WEIGHTS
        if not path.is_file():
            raise ValueError(f"{path} is missing; a pickle, such as pytorch_model.bin, is not read")
        tensors = safetensors(path)
        shapes = {"linear.weight": tuple(reversed(sizes))}
        shapes |= {"linear.bias": (sizes[1],)} if has_bias else {}
        if (held := {x: tensor.shape for x, tensor in tensors.items()}) != shapes:
            raise ValueError(f"{path} holds tensors of {held}, expected {shapes}")
        arrays = {name: np.asarray(x.load(), np.float32) for name, x in tensors.items()}
        return cls(arrays["linear.weight"].T, arrays.get("linear.bias"), activation)
