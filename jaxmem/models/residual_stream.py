"""Which kernels of a decoder read its residual stream, after which norm, and which write it."""

from typing import Any

from ..architectures.configs.segments import (
    Segment,
    feed_forward_kind,
    has_attention,
    has_recurrence,
)


def readers(config: Any, segment: Segment) -> dict[str, tuple[str, ...]]:
    """{the name of a norm: the paths of the kernels that read its output} in layers of a segment.

    Without norms before the blocks, their names stand for the stream itself.

    Raises:
        ValueError: the layers have a state, of whose parts nothing is known here.

    Example:
        >>> from jaxmem.architectures.decoder import Config, segments
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config = Config(**sizes, gated=False)
        >>> readers(config, segments(config)[0])["mlp_norm"]
        ('layers/mlp/up/kernel',)
    """
    if has_recurrence(segment.kind) or not has_attention(segment.kind):
        raise ValueError(f"{segment.name} has recurrence")
    c = config
    if c.latent:
        attention = ("q_down" if c.latent.q_rank else "q", "kv_down")
    else:
        attention = ("q", "k", "v") + ("gate",) * c.output_gate
    by_norm = {"attn_norm": [f"attn/{name}" for name in attention]}
    gates = ("gate", "up") if c.gated else ("up",)
    feed_forward = [f"mlp/{name}" for name in gates]
    if feed_forward_kind(segment.kind) == "experts":
        parts = ("experts",) + ("shared",) * bool(c.mixture.shared_ffn)
        feed_forward = ["mlp/router", *(f"mlp/{part}/{name}" for part in parts for name in gates)]
        feed_forward += ["mlp/shared_gate"] * c.mixture.shared_gate
    if c.shared_norm:
        by_norm["attn_norm"] += feed_forward
    else:
        by_norm["mlp_norm"] = feed_forward
    at = f"{segment.name}/"
    return {norm: tuple(f"{at}{x}/kernel" for x in names) for norm, names in by_norm.items()}


def writers(config: Any, segment: Segment) -> tuple[str, ...]:
    """The paths of the kernels, and of their biases, whose outputs are added to the stream.

    Example:
        >>> from jaxmem.architectures.decoder import Config, segments
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config = Config(**sizes, mlp_bias=True)
        >>> writers(config, segments(config)[0])[1:]
        ('layers/mlp/down/kernel', 'layers/mlp/down/bias')
    """
    c, m = config, config.mixture
    has_bias = {"attn/out": c.out_bias}
    if feed_forward_kind(segment.kind) == "experts":
        has_bias["mlp/experts/down"] = m.expert_bias
        has_bias |= {"mlp/shared/down": c.mlp_bias} if m.shared_ffn else {}
    else:
        has_bias["mlp/down"] = c.mlp_bias
    parts = {name: ("kernel",) + ("bias",) * bias for name, bias in has_bias.items()}
    return tuple(f"{segment.name}/{name}/{part}" for name in parts for part in parts[name])


def parameters_of_norm(config: Any, norm: str) -> tuple[str, ...]:
    """The parameters of the norm at a path: its gain and its bias, as far as it has them."""
    parts = ("scale",) * config.norm_gain + ("bias",) * config.norm_bias
    return tuple(f"{norm}/{part}" for part in parts)
