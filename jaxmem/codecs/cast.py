"""Cast: the weight in a narrower float dtype, converted where it is used."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import shown
from ..core.codec import PaddedEncoder
from ..core.leaf import Encoded, divided_shape, is_encoded


@dataclasses.dataclass(frozen=True)
class Cast:
    """Rounds to the nearest value of a float `dtype`: bfloat16, float16 or an 8-bit float.

    Error: half a unit in the last place, which is |w| · 2^-8 for bfloat16 and |w| · 2^-11 for
    float16 (2^-25 for its subnormal numbers). Micikevicius et al., 2018 (float16), 2022 (8-bit
    floats).

    Raises:
        ValueError: `dtype` is not a float dtype.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> jm.nbytes(Cast("bfloat16").encode(jnp.ones((8, 8))))
        128
        >>> Cast("float16").encode(jnp.array([[1e-6, 1.1]])).decode()[0].tolist()
        [1.0132789611816406e-06, 1.099609375]
    """

    dtype: str
    independent_rows: ClassVar[bool] = True

    def __post_init__(self):
        try:
            dtype = jnp.dtype("none" if self.dtype is None else self.dtype)  # not NumPy's default
        except TypeError as error:
            message = f"Cast takes a float type, such as 'bfloat16', got {shown(self.dtype)}"
            raise TypeError(message) from error
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"Cast takes a float type, got {self.dtype}")
        object.__setattr__(self, "dtype", dtype.name)

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "CastArray":
        if is_encoded(w):
            return w.map(self.encode)
        return CastArray(jnp.asarray(w).astype(self.dtype), jnp.dtype(w.dtype))

    def padded_encoder(self):
        shaped = lambda values, fold: fold.unfold(values[..., : fold.n, : fold.k])
        cut = lambda leaf, fold: dataclasses.replace(leaf, values=shaped(leaf.values, fold))
        return PaddedEncoder(lambda matrix, _: self.encode(matrix), cut)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CastArray(Encoded):
    """An array in a narrower dtype than the array that it stands for."""

    values: Array
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    shape = property(lambda self: self.values.shape)
    stack = property(lambda self: self.values.shape[:-2])

    def decode(self):
        return self.values.astype(self.dtype)

    def astype(self, dtype):
        return dataclasses.replace(self, dtype=jnp.dtype(dtype))

    def dot(self, x, dims, preferred_element_type=None, precision=None):
        w = self.values.astype(x.dtype)  # fuses into the product on an accelerator
        y = lax.dot_general(x, w, dims, precision, preferred_element_type=jnp.float32)
        return y.astype(preferred_element_type or jnp.promote_types(x.dtype, self.dtype))

    def shard_shape(self, axis, parts):
        return dataclasses.replace(self, values=divided_shape(self.values, axis, parts))

    def take(self, rows):
        return self.values[rows].astype(self.dtype)

    def transpose(self, axes):
        return dataclasses.replace(self, values=self.values.transpose(axes))

    def reshape(self, shape):
        return dataclasses.replace(self, values=self.values.reshape(shape))
