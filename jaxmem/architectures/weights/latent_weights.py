"""Which tensors of a Hugging Face checkpoint make the parameters of multi-latent attention."""

import dataclasses
from typing import Any

import numpy as np

from .layer_maps import linear_maps, norm_maps, stack_map
from .weight_map import WeightMap


def latent_maps(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The projections and norms of every layer; one tensor holds key and value matrices."""
    sizes, queries = c.latent, c.heads * c.head_dim
    if sizes.q_rank:
        maps = linear_maps(c, names, "attn/q_down", c.width, sizes.q_rank, c.qkv_bias)
        maps |= norm_maps(c, names, "attn/q_norm", (sizes.q_rank,), False)
        maps |= linear_maps(c, names, "attn/q_up", sizes.q_rank, queries, False)
    else:
        maps = linear_maps(c, names, "attn/q", c.width, queries, False)
    tokens = sizes.kv_rank + sizes.rope_dim
    maps |= linear_maps(c, names, "attn/kv_down", c.width, tokens, c.qkv_bias)
    maps |= norm_maps(c, names, "attn/kv_norm", (sizes.kv_rank,), False)
    values = c.heads * sizes.value_dim
    maps |= linear_maps(c, names, "attn/out", values, c.width, c.out_bias)
    keys = _Rows(c.heads, 0, sizes.nope_dim)
    values = _Rows(c.heads, sizes.nope_dim, sizes.nope_dim + sizes.value_dim, transposed=True)
    if names["attn/k_up"] != names["attn/v_up"]:  # a tensor each, (heads, in, out)
        keys = values = transposed
    shape = (c.heads, sizes.nope_dim, sizes.kv_rank)
    maps["layers/attn/k_up"] = stack_map(c, names, "attn/k_up", "weight", shape, keys)
    shape = (c.heads, sizes.kv_rank, sizes.value_dim)
    maps["layers/attn/v_up"] = stack_map(c, names, "attn/v_up", "weight", shape, values)
    return maps


def transposed(w: np.ndarray) -> np.ndarray:
    """Matrices (..., n, k) as (..., k, n)."""
    return w.swapaxes(-1, -2)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows [start, end) of each head of a tensor (heads * rows, in): (heads, rows, in)."""

    heads: int
    start: int
    end: int
    transposed: bool = False

    def __call__(self, w: np.ndarray) -> np.ndarray:
        rows = w.reshape(self.heads, -1, w.shape[-1])[:, self.start : self.end]
        return rows.swapaxes(1, 2) if self.transposed else rows

    def tensor_shape(self, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
        """The shape of the tensor of `size` numbers that holds an array of `shape`."""
        inputs = shape[1] if self.transposed else shape[2]
        return size // inputs, inputs
