"""channel_links: pairs W₁, W₂ in y = W₂ f(W₁ x) with f(x / s) = f(x) / s, so that s can move to W₂.

W₁ is the gain of a norm and W₂ the matrices after the norm; or W₁ gives the values and W₂ is the
output projection, since attention only averages values; or W₁ is the linear half of a gated unit
and W₂ the down projection.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ..architectures.configs.segments import feed_forward_kind, segments
from ..core.lazy import combined, is_lazy
from ..core.leaf import is_encoded
from .model import Model
from .residual_stream import parameters_of_norm, readers


@dataclasses.dataclass(frozen=True)
class ChannelLink:
    """The channels between `writers`, which have them as their last axis, and `readers`.

    A reader is a kernel that sums over the channels. It has `repeats` heads for each written head
    of `width` channels (grouped queries). A writer has `before` other columns in front of the
    channels, if it also gives queries and keys. A norm multiplies by its scale plus `offset`
    (Gemma: 1).
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    width: int
    repeats: int = 1
    before: int = 0
    offset: float = 0.0

    @property
    def of_norm(self) -> bool:
        """Whether the writer is a norm."""
        return self.writers[0].endswith("/scale")

    def reduce_to_written(self, x: np.ndarray, join: Any) -> np.ndarray:
        """Reduces numbers (..., channels read) to (..., channels written) by `join(x, axis)`."""
        heads = x.reshape(*x.shape[:-1], -1, self.repeats, self.width)
        return join(heads, -2).reshape(*x.shape[:-1], -1)

    def expand_to_read(self, s: Any) -> Any:
        """Repeats numbers (..., channels written) to (..., channels read)."""
        heads = s.reshape(*s.shape[:-1], -1, 1, self.width).repeat(self.repeats, -2)
        return heads.reshape(*s.shape[:-1], -1)


def channel_links(config: Any) -> tuple[ChannelLink, ...]:
    """All links of a decoder, GPT-2 or BERT.

    BERT has links of values only: its norms write the residual stream, and GELU is not linear. A
    decoder has the links of its mechanisms: none of a norm without a gain, of values that are cut
    or made of latents, or of experts' gated units.

    Raises:
        ValueError: the family is another one, or a decoder has layers with a state.

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.models.rescaling import channel_links
        >>> [j.readers[0] for j in channel_links(jm.models.load("llama-1b").config)]
        ['layers/attn/q/kernel', 'layers/attn/out/kernel', 'layers/mlp/gate/kernel', \
'layers/mlp/down/kernel']
    """
    c, at = config, "layers/"
    kernels = lambda *names: tuple(f"{at}{name}/kernel" for name in names)
    norm = lambda name: tuple(f"{at}{name}/{part}" for part in ("scale", "bias"))
    if c.family in ("llama", "decoder"):
        return tuple(_links_of_a_decoder(c))
    if c.family == "gpt2":
        qkv = (*kernels("attn/qkv"), f"{at}attn/qkv/bias")
        return (
            ChannelLink(norm("attn_norm"), kernels("attn/qkv"), c.width),
            ChannelLink(qkv, kernels("attn/out"), c.width, before=2 * c.width),
            ChannelLink(norm("mlp_norm"), kernels("mlp/up"), c.width),
        )
    if c.family == "bert":
        return (
            ChannelLink((*kernels("attn/v"), f"{at}attn/v/bias"), kernels("attn/out"), c.width),
        )
    raise ValueError(f"the channel links of a model of family {c.family!r} are not known")


def _links_of_a_decoder(c: Any) -> Iterator[ChannelLink]:
    """The links of each segment's norms, values and gated units, and of the last norm."""
    if c.recurrence:
        raise ValueError("the channel links of a model that sets recurrence are not known")
    gain = lambda norm, kernels: ChannelLink(
        parameters_of_norm(c, norm), kernels, c.width, offset=c.norm_offset
    )
    has_gain = c.pre_norms and c.norm_gain
    for segment in segments(c):
        at, norms = f"{segment.name}/", readers(c, segment)
        both = lambda name, bias: tuple(
            f"{at}{name}/{part}"  # noqa: B023
            for part in ("kernel",) + ("bias",) * bias
        )
        if has_gain:
            yield gain(f"{at}attn_norm", norms["attn_norm"])
        if not c.latent and not c.clip_qkv:  # the cut of a value is not linear
            values, out = both("attn/v", c.qkv_bias), f"{at}attn/out/kernel"
            yield ChannelLink(values, (out,), c.head_dim, c.heads // c.kv_heads)
        if has_gain and "mlp_norm" in norms:
            yield gain(f"{at}mlp_norm", norms["mlp_norm"])
        if feed_forward_kind(segment.kind) == "dense" and c.gated:
            yield ChannelLink(both("mlp/up", c.mlp_bias), (f"{at}mlp/down/kernel",), c.ffn)
    if not c.tied and c.norm_gain and c.final_norm and not c.embed_width:
        yield gain("final_norm", ("head/kernel",))


def rescale(model: Model, scales: Mapping[ChannelLink, np.ndarray]) -> Model:
    """The same function, with each link's channels divided by s in W₁ and multiplied by s in W₂.

    `scales` maps a link to s > 0, (layers, channels) or (channels,). Lazy tensors stay lazy. Stats
    of the old model do not hold for the new one.

    Raises:
        ValueError: the model is encoded.
    """
    check_dense(model)
    tree = model.tensors
    for link, s in scales.items():
        stacked = s.ndim == 2
        ones = np.ones((*s.shape[:-1], link.before), np.float32)
        over, times = np.concatenate([ones, s], -1), link.expand_to_read(s)
        gain = lambda w, s, offset=link.offset: (w + offset) / s - offset
        for path in link.writers:
            move = gain if path.endswith("scale") else np.divide
            tree = replace_leaf(tree, path, lambda w: combined(move, w, over, stacked=stacked))  # noqa: B023
        for path in link.readers:
            rows = lambda w, s: w * s[:, None]
            tree = replace_leaf(tree, path, lambda w: combined(rows, w, times, stacked=stacked))  # noqa: B023
    return dataclasses.replace(model, tensors=tree)


def check_dense(model: Model) -> None:
    """Raises ValueError if a weight of the model is encoded."""
    if any(map(is_encoded, jax.tree.leaves(model.tensors, is_leaf=_is_leaf))):
        raise ValueError(f"{model.source} is encoded; rescale the dense model and encode that")


def leaf_at(tree: dict, path: str) -> Any:
    """The leaf at a path, such as "layers/attn/q/kernel"."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


def replace_leaf(tree: dict, path: str, fn: Callable[[Any], Any]) -> dict:
    """The tree with the leaf at `path` replaced by `fn(leaf)`."""
    name, _, rest = path.partition("/")
    return {**tree, name: replace_leaf(tree[name], rest, fn) if rest else fn(tree[name])}


def _is_leaf(x):
    return is_lazy(x) or is_encoded(x)
