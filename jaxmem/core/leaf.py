"""Encoded: a weight in another form, with the shape and dtype of the array it stands for."""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import numpy as np
from flax.core.meta import AxisMetadata
from jax import Array, lax
from jax.typing import DTypeLike

from .arguments import OPTIONAL_TREE, takes
from .serialization import register

CODES_AND_PLACES = frozenset(
    {"codes", "planes", "bits", "places", "columns", "row", "column", "order"}
)


class Encoded(abc.ABC):
    """An encoded leaf: stands for an array of `shape` and `dtype` in fewer bytes.

    A subclass is a frozen dataclass registered as a pytree, so `jit`, sharding, `optax` and
    `orbax` see its arrays and nothing else. Stacked layers are leading axes of those arrays. No
    static field mentions these axes, so `vmap` and `scan` slice a stack with no code here.

    A leaf that JAX, NumPy or arithmetic meets outside `lift` is an error that says so, never a
    silent dense copy.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> leaf = jm.Int(8).encode(jnp.ones((16, 32)))
        >>> jm.is_encoded(leaf), leaf.shape, str(leaf.dtype)
        (True, (16, 32), 'float32')
    """

    shape: tuple[int, ...]
    dtype: Any
    recomputed: ClassVar[bool] = True  # whether a gradient decodes again, to keep no dense weight
    read_as_stored: ClassVar[bool] = False  # whether products read stored numbers undecoded
    decoded_once: ClassVar[bool] = True  # whether it may be decoded before a loop that reads it
    rounds_inputs: ClassVar[bool] = False  # whether products round the other operand
    integer_fields: ClassVar[frozenset[str]] = CODES_AND_PLACES  # fields that hold no floats
    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))

    def _refuse(self, *_: Any, **__: Any) -> Any:
        """Raises TypeError: stands for every use of the leaf as an array."""
        raise TypeError(
            f"{type(self).__name__} is encoded (a weight of shape {self.shape}), expected an "
            "array: call the function as jm.lift(fn)(params, ...), or decode with jm.decode(params)"
        )

    __jax_array__ = property(_refuse)  # JAX asks for it where it takes an argument for an array
    __array__ = __array_ufunc__ = __array_function__ = _refuse  # NumPy
    unbox = add_axis = remove_axis = replace_boxed = _refuse  # linen, where it reads a parameter
    __getitem__ = __iter__ = __neg__ = __abs__ = __float__ = __int__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __pow__ = __rpow__ = _refuse
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse
    __matmul__ = __rmatmul__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse

    def __getattr__(self, name: str) -> Any:
        """Raises AttributeError, which for an attribute of arrays, such as `T`, says what to do."""
        lift_it = ": call the function as jm.lift(fn)(params, ...)" if hasattr(Array, name) else ""
        raise AttributeError(f"{type(self).__name__} is encoded and has no {name!r}{lift_it}")

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        register(cls)

    @property
    def stack(self) -> tuple[int, ...]:
        """The leading axes that every array inside shares, and that may be sliced off."""
        return ()

    @abc.abstractmethod
    def decode(self) -> Array:
        """The array that this leaf stands for."""

    @abc.abstractmethod
    def astype(self, dtype: DTypeLike) -> Self:
        """The leaf with the same bytes that stands for an array of another dtype."""

    @property
    def ends(self) -> tuple[int, ...]:
        """Where each run of layers that are encoded alike ends; empty if all layers are alike."""
        return ()

    def layers(self, start: int, stop: int) -> Any:
        """Layers [start, stop) of a stack."""
        arrays, rebuild = separate_shared(self)
        return rebuild(jax.tree.map(lambda a: a[start:stop], arrays))

    def layer(self, i: int) -> Any:
        """Layer `i` of a stack, without the stack's axis: a leaf, or an array if kept."""
        arrays, rebuild = separate_shared(self)
        return rebuild(jax.tree.map(lambda a: a[i], arrays))

    def moved_layers(self) -> tuple[Any, Callable[[Any], Any]]:
        """(what a scan slices, a function from a slice to a layer), if no array has that axis.

        So a transposed leaf is scanned over its first axis. NotImplemented: the leaf is decoded.
        """
        return NotImplemented

    def map(self, fn: Callable[[Array], Any]) -> Self:
        """The leaf with `fn` applied to its float arrays; a `Chain` so encodes them again."""
        raise TypeError(f"{type(self).__name__} holds no float weights: in a Chain it comes last")

    def shard_shape(self, axis: int, parts: int) -> Self:
        """The leaf of shapes that one device holds, if `axis` is divided over `parts` devices.

        Each array is divided along the axis of it that `axis` stands for; an array that has no such
        axis, such as a scale that all shards share, is not. NotImplemented where a shard would
        split a group, a packed byte or a block.

        Example:
            >>> import jax.numpy as jnp, jaxmem as jm
            >>> leaf = jm.Int(4, group=16).encode(jnp.ones((32, 24)))  # codes, then scales
            >>> [x.shape for x in jax.tree.leaves(leaf.shard_shape(-2, 2))]
            [(12, 16), (1, 24)]
            >>> leaf.shard_shape(-2, 4)  # half a group
            NotImplemented
        """
        axis += self.ndim if axis < 0 else 0
        if axis >= len(self.stack):
            return NotImplemented
        arrays, rebuild = separate_shared(self)
        return rebuild(jax.tree.map(lambda a: divided_shape(a, axis, parts), arrays))

    def stop_gradient(self) -> Self:
        """The leaf with `lax.stop_gradient` of its arrays: no cotangent reaches them."""
        return jax.tree.map(lax.stop_gradient, self)

    # Faster ways than `decode`. Where a method returns NotImplemented, the leaf is decoded.
    def dot(self, x: Array, dims, preferred_element_type=None, precision=None) -> Array:
        """`lax.dot_general(x, self, dims)`."""
        return NotImplemented

    def convolve(self, x: Array, dimension_numbers: Any, **kwargs: Any) -> Array:
        """The convolution of `x` with the leaf as its kernel; `kwargs` are the primitive's."""
        return NotImplemented

    def take(self, rows: Array) -> Array:
        """`self[rows]`, for an integer array of any shape."""
        return NotImplemented

    def transpose(self, axes: tuple[int, ...]) -> Self:
        """The leaf that stands for the array with its axes transposed to `axes`."""
        return NotImplemented

    def reshape(self, shape: tuple[int, ...]) -> Self:
        """The leaf that stands for the reshaped array."""
        return NotImplemented


# Linen unboxes parameters that are `AxisMetadata` before it compares shapes: an encoded parameter
# outside `lift` is then refused by `unbox`, not for the shape of its codes.
AxisMetadata.register(Encoded)


class Tied(Encoded):
    """A leaf in which layers of the stack share a weight: some of its arrays have no stack axes."""

    @abc.abstractmethod
    def separate_shared(self) -> tuple[Any, Callable[[Any], "Tied"]]:
        """(the arrays that have the stack's axes, a function from slices of them to a leaf)."""


def separate_shared(leaf: Any) -> tuple[Any, Callable[[Any], Any]]:
    """(the arrays that have the stack's axes, a function from slices of them to a leaf).

    Without a `Tied` leaf inside, they are the leaf itself and the identity.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> leaf = jm.Shared(2).encode(jnp.ones((4, 16, 8)))
        >>> arrays, rebuild = separate_shared(leaf)
        >>> jax.tree.map(jnp.shape, arrays), rebuild(jax.tree.map(lambda a: a[0], arrays)).shape
        ([(4,)], (16, 8))
    """
    is_tied = lambda x: isinstance(x, Tied)
    parts, tree = jax.tree.flatten(leaf, is_leaf=is_tied)
    if not any(map(is_tied, parts)):
        return leaf, lambda leaf: leaf
    pairs = (x.separate_shared() if is_tied(x) else (x, lambda x: x) for x in parts)
    arrays, rebuilds = zip(*pairs)
    return list(arrays), lambda sliced: tree.unflatten([r(x) for r, x in zip(rebuilds, sliced)])


def is_encoded(x: Any) -> bool:
    """Whether `x` is an encoded leaf; for the argument `is_leaf` of `jax.tree.map`.

    Example:
        >>> import jaxmem as jm
        >>> jm.is_encoded(1.0)
        False
    """
    return isinstance(x, Encoded)


def is_array(x: Any) -> bool:
    """Whether `x` has a shape and a dtype: an array, a shape or a leaf, no int, string or function.

    Example:
        >>> import numpy as np
        >>> is_array(np.ones(3)), is_array(3), is_array("relu")
        (True, False, False)
    """
    return hasattr(x, "shape") and hasattr(x, "dtype")


def is_random_key(x: Any) -> bool:
    """Whether `x` is an array of typed random keys, such as those of NNX's Dropout.

    Example:
        >>> is_random_key(jax.random.key(0)), is_random_key(jax.random.PRNGKey(0))
        (True, False)
    """
    return is_array(x) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def is_dense_float(x: Any) -> bool:
    """Whether `x` is a weight that may be encoded: floats, concrete, abstract or lazy.

    Example:
        >>> import numpy as np
        >>> is_dense_float(np.ones(3)), is_dense_float(np.arange(3)), is_dense_float(2.0)
        (True, False, False)
    """
    return is_array(x) and not is_encoded(x) and jax.dtypes.issubdtype(x.dtype, np.floating)


@takes(tree=OPTIONAL_TREE)
def decode(tree: Any) -> Any:
    """The tree with every encoded leaf replaced by the array it stands for.

    Inside `jit` this makes every weight dense at once: to run a model use `lift`.

    Raises:
        TypeError: the codes of a leaf are floats, because codes were averaged or scaled.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> jm.decode({"w": jm.Int(8).encode(jnp.ones((4, 4))), "b": 2.0})["w"].shape
        (4, 4)
    """
    # One program, which compiles sooner than one for each of its ten or more operations.
    decode_leaf = lambda leaf: jax.jit(type(leaf).decode, inline=True)(with_integer_codes(leaf))
    return jax.tree.map(lambda x: decode_leaf(x) if is_encoded(x) else x, tree, is_leaf=is_encoded)


def with_integer_codes(leaf: Encoded, path: str = "") -> Encoded:
    """The leaf as it is.

    `jax.tree.map` and optax reach the arrays inside leaves, so an average of encoded trees is one
    of codes. It shows where the codes have become floats.

    Raises:
        TypeError: codes, or places of kept weights, are floats.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> leaf = jm.Int(8).encode(jnp.ones((4, 4)))
        >>> with_integer_codes(leaf) is leaf
        True
    """
    for field in dataclasses.fields(leaf) if dataclasses.is_dataclass(leaf) else ():
        value = getattr(leaf, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if is_encoded(part):
                with_integer_codes(part, path)
            elif field.name in leaf.integer_fields and is_dense_float(part):
                raise TypeError(
                    f"{path + ': ' if path else ''}the {field.name} of {type(leaf).__name__} are "
                    f"{part.dtype}, expected integers: codes were averaged or scaled as if they "
                    "were weights; do that with jm.decode(params), then encode the result"
                )
    return leaf


def divided_shape(x: Any, axis: int, parts: int) -> Any:
    """The shape of an array or encoded leaf with `axis` divided by `parts`; not an axis of size 1.

    NotImplemented where the leaf says that it cannot be divided so.

    Example:
        >>> import jax.numpy as jnp
        >>> divided_shape(jnp.ones((4, 6)), -1, 3).shape
        (4, 2)
    """
    if x.shape[axis] == 1:
        return x
    if is_encoded(x):
        return x.shard_shape(axis, parts)
    at = axis % x.ndim
    return jax.ShapeDtypeStruct((*x.shape[:at], x.shape[at] // parts, *x.shape[at + 1 :]), x.dtype)
