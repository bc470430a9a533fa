"""Bottleneck: y + up · gelu(down · y + bias), y what a frozen weight makes (Houlsby et al., 2019).

The model is not changed: a leaf in the place of the weight computes it. So it stands before the
bias of that linear, which the bias here makes up for.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import KEY, POSITIVE, REGEX, TREE, takes
from ..core.fold import Fold
from ..core.leaf import Encoded
from ..core.lifting import dot_general
from ..core.paths import is_whole, match, paths
from .weight_layers import weight_fold


@takes(key=KEY, params=TREE, width=POSITIVE, where=REGEX)
def bottlenecks(
    key: Array, params: Any, width: int, where: str = r".*(attn/out|mlp/down)/kernel"
) -> dict[str, dict]:
    """{path: {"down", "up", "bias"}} in f32 for the weights whose whole path `where` matches.

    A weight (*stack, k, n) gets down (*stack, width, n) of variance 1/n, up (*stack, n, width) of
    zeros, and bias (*stack, width), so that it changes nothing at first. Houlsby et al. put them
    after the output of attention and after that of the MLP.

    `attach` takes them like pairs. Such a leaf is no matrix: it cannot be decoded, merged, or
    written by `to_peft`, which refuse it.

    Raises:
        ValueError: `where` matches no weight, or `width` is below 1.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> params, x = {"mlp/down/kernel": jnp.ones((64, 32))}, jnp.ones((2, 64))
        >>> small = bottlenecks(jax.random.key(0), params, 4)
        >>> small["mlp/down/kernel"]["down"].shape
        (4, 32)
        >>> run = jm.lift(lambda params, x: x @ params["mlp/down/kernel"])
        >>> float(run(jm.adapters.attach(params, small), x)[0, 0])
        64.0
    """
    names = paths(params)
    leaves = dict(zip(names, jax.tree.leaves(params, is_leaf=is_whole)))
    made = {}
    for i, path in enumerate(match(names, {where: True})):
        stack, fold = weight_fold(leaves[path])
        down = jax.random.normal(jax.random.fold_in(key, i), (*stack, width, fold.n), jnp.float32)
        zeros = lambda *size, stack=stack: jnp.zeros((*stack, *size), jnp.float32)
        made[path] = {
            "down": down * fold.n**-0.5,
            "up": zeros(fold.n, width),
            "bias": zeros(width),
        }
    return made


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BottleneckArray(Encoded):
    """A weight whose products y become y + up · gelu(down · y + bias); it is no matrix."""

    base: Any
    down: Array  # (*stack, width, n)
    up: Array  # (*stack, n, width)
    bias: Array  # (*stack, width)
    fold: Fold = dataclasses.field(metadata=dict(static=True))

    shape = property(lambda self: self.base.shape)
    dtype = property(lambda self: self.base.dtype)
    stack = property(lambda self: self.shape[: self.bias.ndim - 1])
    rounds_inputs = property(lambda self: self.base.rounds_inputs)

    def decode(self):
        raise NotImplementedError(
            "a bottleneck adapter is no matrix and cannot be decoded or merged: the model uses "
            f"this weight of shape {self.shape} other than in a product over its inputs, or the "
            "call wants its numbers; expected products only"
        )

    def astype(self, dtype):
        return dataclasses.replace(self, base=self.base.astype(dtype))

    def dot(self, x, dims, preferred_element_type=None, precision=None):
        (x_sum, w_sum), (_, w_batch) = dims
        outputs = len(self.fold.kept)
        matrix_axis = [a + self.ndim for a in self.fold.full_order(self.ndim)]
        first = self.ndim - len(self.fold.summed)
        w_free = [matrix_axis[a] for a in range(self.ndim) if a not in (*w_sum, *w_batch)]
        summed = sorted(matrix_axis[a] for a in w_sum) == list(range(first, self.ndim))
        if self.stack or w_batch or not summed or w_free != list(range(outputs)):
            self.decode()  # refuses
        options = dict(precision=precision, preferred_element_type=jnp.float32)
        y = dot_general(x, self.base, dims, **options)
        free = y.shape[: x.ndim - len(x_sum)]
        rows = y.reshape(math.prod(free), self.fold.n).astype(x.dtype)
        product = lambda a, w: dot_general(
            a, w.astype(x.dtype), (((1,), (1,)), ((), ())), **options
        )
        inner = jax.nn.gelu(product(rows, self.down) + self.bias[None].astype(jnp.float32))
        y = y + product(inner.astype(x.dtype), self.up).reshape(y.shape)
        return y.astype(preferred_element_type or jnp.promote_types(x.dtype, self.dtype))

    def transpose(self, axes):
        base = self.base.transpose(axes)
        if base is NotImplemented:
            return base
        return dataclasses.replace(self, base=base, fold=self.fold.permuted(axes))
