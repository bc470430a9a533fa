"""Encoded: a weight held in another form, which still says what it stands for."""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
from jax import Array
from jax.typing import DTypeLike


class Encoded(abc.ABC):
    """Stands for an array of `shape` and `dtype`; holds fewer bytes.

    A subclass is a frozen dataclass registered as a pytree, so `jit`, sharding, `optax` and
    `orbax` see its arrays and nothing else. Stacked layers are leading axes of those arrays; a
    static field never mentions them, and so `vmap` and `scan` slice a stack with no code here.

    There is no `__jax_array__` on purpose: a leaf that reaches JAX outside `lift` is an error,
    never a silent dense copy.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> leaf = jm.Int(8).encode(jnp.ones((16, 32)))
        >>> jm.is_encoded(leaf), leaf.shape, str(leaf.dtype)
        (True, (16, 32), 'float32')
    """

    shape: tuple[int, ...]
    dtype: Any
    recomputed: ClassVar[bool] = True  # a gradient decodes again; False: there is nothing to decode
    read_as_stored: ClassVar[bool] = False  # products take the numbers as they lie
    rounds_inputs: ClassVar[bool] = False  # products round what the weight multiplies
    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))

    @property
    def stack(self) -> tuple[int, ...]:
        """The leading axes that every array inside shares, and that may be sliced off."""
        return ()

    @abc.abstractmethod
    def decode(self) -> Array:
        """The array this stands for."""

    @abc.abstractmethod
    def astype(self, dtype: DTypeLike) -> Self:
        """The same bytes, standing for an array of another dtype."""

    @property
    def ends(self) -> tuple[int, ...]:
        """Where runs of layers end that are encoded alike, in a stack that is not; else empty."""
        return ()

    def layers(self, start: int, stop: int) -> Any:
        """Layers start to stop of a stack."""
        own, back = separate_shared(self)
        return back(jax.tree.map(lambda a: a[start:stop], own))

    def layer(self, i: int) -> Any:
        """Layer `i` of a stack, without its axis: a leaf, or an array where that is kept."""
        own, back = separate_shared(self)
        return back(jax.tree.map(lambda a: a[i], own))

    def map(self, fn: Callable[[Array], Any]) -> Self:
        """Applies `fn` to the float arrays inside: how one codec follows another."""
        raise TypeError(f"{type(self).__name__} holds no float weights: in a Chain it comes last")

    def shard_shape(self, axis: int, parts: int) -> Self:
        """The shapes of one of `parts` equal pieces along `axis`: how a device holds its share.

        What stands along the axis is divided in each array, the rest stays whole, as a scale that
        many share. NotImplemented: pieces would split a group, a packed byte or a block.

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
        own, back = separate_shared(self)
        return back(jax.tree.map(lambda a: divided_shape(a, axis, parts), own))

    # Faster ways than decode(). NotImplemented means: this way cannot, decode me.
    def dot(self, x: Array, dims, preferred_element_type=None, precision=None) -> Array:
        """`lax.dot_general(x, self, dims)`."""
        return NotImplemented

    def take(self, rows: Array) -> Array:
        """`self[rows]`, for an integer array of any shape."""
        return NotImplemented

    def transpose(self, axes: tuple[int, ...]) -> Self:
        """The leaf that stands for the transposed array."""
        return NotImplemented

    def reshape(self, shape: tuple[int, ...]) -> Self:
        """The leaf that stands for the reshaped array."""
        return NotImplemented


class Tied(Encoded):
    """A leaf some of whose arrays belong to all slices of its stack: layers that share a weight."""

    @abc.abstractmethod
    def separate_shared(self) -> tuple[Any, Callable[[Any], "Tied"]]:
        """(the arrays that have the stack's axes, how a slice of them is a leaf again)."""


def separate_shared(leaf: Any) -> tuple[Any, Callable[[Any], Any]]:
    """(what slicing a stack slices, how a slice is a leaf again): all arrays but those of `Tied`.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> leaf = jm.Shared(2).encode(jnp.ones((4, 16, 8)))
        >>> own, back = separate_shared(leaf)
        >>> jax.tree.map(jnp.shape, own), back(jax.tree.map(lambda a: a[0], own)).shape
        ([(4,)], (16, 8))
    """
    tied = lambda x: isinstance(x, Tied)
    parts, tree = jax.tree.flatten(leaf, is_leaf=tied)
    if not any(map(tied, parts)):
        return leaf, lambda leaf: leaf
    own, backs = zip(*(x.separate_shared() if tied(x) else (x, lambda x: x) for x in parts))
    return list(own), lambda own: tree.unflatten([b(x) for b, x in zip(backs, own)])


def is_encoded(x: Any) -> bool:
    """Whether `x` is an encoded leaf; made to be passed as `is_leaf`.

    Example:
        >>> import jaxmem as jm
        >>> jm.is_encoded(1.0)
        False
    """
    return isinstance(x, Encoded)


def decode(tree: Any) -> Any:
    """The tree with every encoded leaf replaced by the array it stands for.

    Inside `jit` this makes every weight dense at once: to run a model use `lift`.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> jm.decode({"w": jm.Int(8).encode(jnp.ones((4, 4))), "b": 2.0})["w"].shape
        (4, 4)
    """
    return jax.tree.map(lambda x: x.decode() if is_encoded(x) else x, tree, is_leaf=is_encoded)


def divided_shape(x: Any, axis: int, parts: int) -> Any:
    """The shape of an array or encoded leaf with `axis` divided; an axis of one stays as it is.

    NotImplemented where a leaf cannot be divided so.

    Example:
        >>> import jax.numpy as jnp
        >>> divided_shape(jnp.ones((4, 6)), -1, 3).shape
        (4, 2)
    """
    if x.shape[axis] == 1:
        return x
    if is_encoded(x):
        return x.shard_shape(axis, parts)
    sides = list(x.shape)
    sides[axis] //= parts
    return jax.ShapeDtypeStruct(tuple(sides), x.dtype)


def nbytes(tree: Any) -> int:
    """Bytes the arrays of `tree` take on a device, concrete or abstract.

    Counted in bits, since the `.nbytes` of a sub-byte array counts a whole byte an element.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> jm.nbytes(jax.ShapeDtypeStruct((8, 8), jnp.int4))
        32
    """
    arrays = jax.tree.leaves(tree)
    bits = (math.prod(x.shape) * jax.dtypes.itemsize_bits(x.dtype) for x in arrays)
    return sum(-(-b // 8) for b in bits)


def device_bytes(tree: Any) -> int:
    """Bytes on one device: of an array's shard, and nothing of what lies on the host."""
    total = 0
    for x in jax.tree.leaves(tree):
        place = getattr(x, "sharding", None)
        if getattr(place, "memory_kind", None) == "pinned_host":
            continue
        shape = place.shard_shape(x.shape) if place is not None else x.shape
        total += nbytes(jax.ShapeDtypeStruct(shape, x.dtype))
    return total
