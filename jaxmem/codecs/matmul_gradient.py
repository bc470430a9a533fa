"""differentiated_by: a fast product with the derivative of a plain one."""

import functools
from collections.abc import Callable

import jax
from jax import Array

Product = Callable[..., Array]


def differentiated_by(plain: Product) -> Callable[[Product], Product]:
    """A decorator: `product(x, leaf, precision)` has the derivative of `plain`.

    A product of integers or by a kernel has no derivative, or one that differs from the derivative
    with the decoded weight. `plain(x, leaf, precision=precision)` decodes the leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> @differentiated_by(lambda x, leaf, precision: x * leaf)
        ... def rounded_product(x, leaf, precision):
        ...     return jnp.round(x) * leaf
        >>> float(rounded_product(1.6, 3.0, None)), float(jax.grad(rounded_product)(1.6, 3.0, None))
        (6.0, 3.0)
    """

    def decorate(product):
        product = jax.custom_jvp(product, nondiff_argnums=(2,))

        @product.defjvp
        def jvp(precision, primals, tangents):
            linear = functools.partial(plain, precision=precision)
            return product(*primals, precision), jax.jvp(linear, primals, tangents)[1]

        return product

    return decorate
