"""joints: where y = W₂ f(W₁ x) has f(x / s) = f(x) / s, so that s moves from W₁ to W₂.

A norm's gain and the matrices that read the norm; values and the matrix that reads the attention's
output, since attention only weighs values; the linear half of a gated unit and what reads it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ..core.lazy import combined, is_lazy
from ..core.leaf import is_encoded
from .model import Model


@dataclasses.dataclass(frozen=True)
class Joint:
    """Channels that `writers` have along their last axis, and the kernels that sum over them.

    A reader has `repeats` heads for each head of `width` channels that is written (grouped
    queries). A writer may have columns `before` these, as a product that gives q, k and v. A norm
    multiplies by its scale and `offset` (Gemma: 1).
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    width: int
    repeats: int = 1
    before: int = 0
    offset: float = 0.0

    @property
    def of_norm(self) -> bool:
        """Whether a norm writes it."""
        return self.writers[0].endswith("/scale")

    def narrow(self, x: np.ndarray, join: Any) -> np.ndarray:
        """Numbers (..., channels read) to one for each channel written, by `join(x, axis)`."""
        heads = x.reshape(*x.shape[:-1], -1, self.repeats, self.width)
        return join(heads, -2).reshape(*x.shape[:-1], -1)

    def wide(self, s: Any) -> Any:
        """One number for each channel read, of (..., channels written)."""
        heads = s.reshape(*s.shape[:-1], -1, 1, self.width).repeat(self.repeats, -2)
        return heads.reshape(*s.shape[:-1], -1)


def joints(config: Any) -> tuple[Joint, ...]:
    """Every joint of a model of the Llama family, GPT-2 or BERT.

    BERT's norms write the residual stream itself, and GELU is no linear function: only the values
    are left.

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.models.rescaling import joints
        >>> [j.readers[0] for j in joints(jm.models.load("llama-1b").config)]
        ['layers/attn/q/kernel', 'layers/attn/out/kernel', 'layers/mlp/gate/kernel', \
'layers/mlp/down/kernel']
    """
    c, at = config, "layers/"
    kernels = lambda *names: tuple(f"{at}{name}/kernel" for name in names)
    norm = lambda name: tuple(f"{at}{name}/{part}" for part in ("scale", "bias"))
    if c.family == "llama":
        values = (*kernels("attn/v"), f"{at}attn/v/bias") if c.qkv_bias else kernels("attn/v")
        gain = lambda name, *names: Joint(
            norm(name)[:1], kernels(*names), c.width, offset=c.norm_offset
        )
        found = (
            gain("attn_norm", "attn/q", "attn/k", "attn/v"),
            Joint(values, kernels("attn/out"), c.head_dim, c.heads // c.kv_heads),
            gain("mlp_norm", "mlp/gate", "mlp/up"),
            Joint(kernels("mlp/up"), kernels("mlp/down"), c.ffn),
        )
        head = Joint(("final_norm/scale",), ("head/kernel",), c.width, offset=c.norm_offset)
        return found if c.tied else (*found, head)
    if c.family == "gpt2":
        qkv = (*kernels("attn/qkv"), f"{at}attn/qkv/bias")
        return (
            Joint(norm("attn_norm"), kernels("attn/qkv"), c.width),
            Joint(qkv, kernels("attn/out"), c.width, before=2 * c.width),
            Joint(norm("mlp_norm"), kernels("mlp/up"), c.width),
        )
    if c.family == "bert":
        return (Joint((*kernels("attn/v"), f"{at}attn/v/bias"), kernels("attn/out"), c.width),)
    raise ValueError(f"the joints of a model of family {c.family!r} are not known")


def rescaled(model: Model, scales: Mapping[Joint, np.ndarray]) -> Model:
    """The same function, each joint's channels divided by s where written, times s where read.

    `scales` holds s > 0, (layers, channels) or (channels,). What was lazy stays so. Stats of the
    old model are not those of the new one: take them again.

    Raises:
        ValueError: the model is encoded.
    """
    check_dense(model)
    tree = model.tensors
    for joint, s in scales.items():
        stacked = s.ndim == 2
        ones = np.ones((*s.shape[:-1], joint.before), np.float32)
        over, times = np.concatenate([ones, s], -1), joint.wide(s)
        gain = lambda w, s, offset=joint.offset: (w + offset) / s - offset
        for path in joint.writers:
            move = gain if path.endswith("scale") else np.divide
            tree = replaced(tree, path, lambda w: combined(move, w, over, stacked=stacked))  # noqa: B023
        for path in joint.readers:
            rows = lambda w, s: w * s[:, None]
            tree = replaced(tree, path, lambda w: combined(rows, w, times, stacked=stacked))  # noqa: B023
    return dataclasses.replace(model, tensors=tree)


def check_dense(model: Model) -> None:
    """Raises ValueError if anything in the model is encoded."""
    if any(map(is_encoded, jax.tree.leaves(model.tensors, is_leaf=_is_leaf))):
        raise ValueError(f"{model.source} is encoded; rescale the dense model and encode that")


def find(tree: dict, path: str) -> Any:
    """The leaf at a path of names with slashes."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


def replaced(tree: dict, path: str, fn: Callable[[Any], Any]) -> dict:
    """The tree with `fn` of the leaf at `path` in its place."""
    name, _, rest = path.partition("/")
    return {**tree, name: replaced(tree[name], rest, fn) if rest else fn(tree[name])}


def _is_leaf(x):
    return is_lazy(x) or is_encoded(x)
