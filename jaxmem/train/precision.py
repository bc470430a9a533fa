"""Precision: the dtypes that params have, that a function computes in, and that it returns."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core.arguments import FLOAT_TYPE, check_fields, takes
from ..core.leaf import is_dense_float, is_encoded

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Precision:
    """The dtypes of mixed precision, as in jmp (DeepMind, 2020); None leaves numbers as they are.

    - params: of the weights that an optimizer changes.
    - compute: of weights and inputs where the model runs.
    - output: of what it returns, such as a loss.

    With compute float16, differentiate a scaled loss: see `scaled`.

    Raises:
        TypeError: a field is no dtype of floating-point numbers.

    Example:
        >>> half = Precision(compute=jnp.float16)
        >>> half.cast_to_compute({"w": jnp.ones(2), "ids": jnp.arange(2)})["w"].dtype.name
        'float16'
    """

    params: DTypeLike | None = jnp.float32
    compute: DTypeLike | None = jnp.bfloat16
    output: DTypeLike | None = jnp.float32

    def __post_init__(self):
        check_fields(self, params=FLOAT_TYPE, compute=FLOAT_TYPE, output=FLOAT_TYPE)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, None if value is None else jnp.dtype(value))

    def cast_to_param(self, tree: T) -> T:
        """The tree with its floats in the dtype of params."""
        return _cast(tree, self.params)

    def cast_to_compute(self, tree: T) -> T:
        """The tree with its floats in the dtype that is computed in."""
        return _cast(tree, self.compute)

    def cast_to_output(self, tree: T) -> T:
        """The tree with its floats in the dtype of outputs."""
        return _cast(tree, self.output)


@takes()
def in_precision(fn: Callable, precision: Precision) -> Callable:
    """`fn` with the floats of its arguments cast to `compute`, and those of its result to `output`.

    Gradients for an argument have the argument's own dtype, so those for float32 params are
    float32. Encoded leaves keep their bytes, and stand for weights of the dtype. Integers, booleans
    and random keys stay.

    Example:
        >>> import jax
        >>> model = lambda w, x: jnp.square(x @ w).mean()
        >>> loss = in_precision(model, Precision(compute=jnp.bfloat16))
        >>> value, slope = jax.value_and_grad(loss)(jnp.eye(4), jnp.ones((2, 4)))
        >>> float(value), value.dtype.name, slope.dtype.name
        (1.0, 'float32', 'float32')
    """

    @functools.wraps(fn)
    def run(*args, **kwargs):
        args, kwargs = precision.cast_to_compute((args, kwargs))
        return precision.cast_to_output(fn(*args, **kwargs))

    return run


def _cast(tree, dtype):
    if dtype is None:
        return tree
    is_number = lambda x: is_encoded(x) or is_dense_float(x)
    cast = lambda x: x.astype(dtype) if is_number(x) else x
    return jax.tree.map(cast, tree, is_leaf=is_encoded)
