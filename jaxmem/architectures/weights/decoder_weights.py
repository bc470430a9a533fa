"""Which tensors of a Hugging Face checkpoint make each parameter of a decoder."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..configs.segments import feed_forward_kind, has_attention, has_recurrence, segments
from .decoder_names import FUSED_GATE_UP, FUSED_QKV, NAMES
from .latent_weights import latent_maps
from .layer_maps import Rows, linear_maps, norm_maps, norm_parts, stack_map
from .mixture_weights import mixture_maps
from .recurrent_names import RECURRENT_NAMES
from .recurrent_weights import channel_mixing_maps, mixer_maps
from .weight_map import WeightMap


def weights(config: Any) -> dict[str, WeightMap]:
    """The tensors of a Hugging Face checkpoint that each parameter is read from.

    Example:
        >>> from jaxmem.architectures import llama
        >>> config = llama.Config(
        ...     vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8
        ... )
        >>> llama.weights(config)["layers/attn/k/kernel"].shape
        (2, 32, 16)
    """
    c, names = config, _names(config)
    width = c.embed_width or c.width
    maps = {"embed/embedding": WeightMap((f"{names['embed']}.weight",), (c.vocab, width))}
    if c.embed_width and "embed_in" not in names:
        raise ValueError(
            f"embed_width is {c.embed_width}, for which the tensors of {c.tensor_names!r} have no "
            "names"
        )
    for path, sizes in {"embed_in": (width, c.width), "embed_out": (c.width, width)}.items():
        if c.embed_width:
            maps[f"{path}/kernel"] = WeightMap((f"{names[path]}.weight",), sizes, np.transpose)
    if c.positions == "learned":
        rows = c.context + c.position_offset
        table = (f"{names['positions']}.weight",)
        maps["positions/embedding"] = WeightMap(table, (rows, c.width))
    for path in ("embed_norm",) * c.embed_norm + ("final_norm",) * c.final_norm:
        for part, tensor in norm_parts(c, c.norm_bias):
            maps[f"{path}/{part}"] = WeightMap((f"{names[path]}.{tensor}",), (c.width,))
    for segment in segments(c):
        for path, weight_map in _layer(c, names, segment.kind).items():
            name = path.replace("layers", segment.name, 1)
            maps[name] = weight_map.layers(segment.start, segment.length)
    if not c.tied:
        head = (f"{names['head']}.weight",)
        maps["head/kernel"] = WeightMap(head, (width, c.vocab), np.transpose)
        if c.head_bias:
            maps["head/bias"] = WeightMap((f"{names['head']}.bias",), (c.vocab,))
    return maps


def _layer(c: Any, names: dict[str, str], kind: str) -> dict[str, WeightMap]:
    """The parameters of layers of a kind, as if every layer were of it."""
    part = feed_forward_kind(kind)
    maps = _layer_norms(c, names, part != "alone")
    if has_attention(kind):
        maps |= (latent_maps if c.latent else _attention)(c, names)
    if has_recurrence(kind):
        maps |= mixer_maps(c, names)
    if part == "alone":
        return maps
    parts = {"dense": _feed_forward, "experts": mixture_maps, "mixing": channel_mixing_maps}
    return maps | parts[part](c, names)


def _names(c: Any) -> dict[str, str]:
    """The names of a configuration's modules."""
    known = NAMES | RECURRENT_NAMES
    if c.tensor_names not in known:
        raise ValueError(f"tensor_names is {c.tensor_names!r}, expected one of {', '.join(known)}")
    return known["gemma" if c.tensor_names == "llama" and c.post_norms else c.tensor_names]


def _attention(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The projections and norms of attention."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    maps: dict[str, WeightMap] = {}
    for part, size in {"q": q, "k": kv, "v": kv}.items():
        turn = _taken_from_qkv(c, part)
        maps |= linear_maps(c, names, f"attn/{part}", c.width, size, c.qkv_bias, turn)
    if c.output_gate:
        turn = _taken_from_qkv(c, "gate")
        maps |= linear_maps(c, names, "attn/gate", c.width, q, c.qkv_bias, turn)
    maps |= linear_maps(c, names, "attn/out", q, c.width, c.out_bias)
    if c.sinks:
        maps["layers/attn/sinks"] = stack_map(c, names, "attn/sinks", "", (c.heads,))
    if c.qk_norm and c.qk_norm_over != "rotated":
        for part, heads in {"q": c.heads, "k": c.kv_heads}.items():
            shape = {
                "head": (c.head_dim,),
                "heads": (heads, c.head_dim),
                "all": (heads * c.head_dim,),
            }[c.qk_norm_over]
            if c.tensor_names == "stablelm":
                maps |= _norms_of_heads(c, names, f"attn/{part}_norm", shape)
            else:
                maps |= norm_maps(c, names, f"attn/{part}_norm", shape, c.qk_norm_bias)
    return maps


def _norms_of_heads(
    c: Any, names: dict[str, str], path: str, shape: tuple[int, int]
) -> dict[str, WeightMap]:
    """The gains of a norm (heads, h), of which each head has a tensor."""
    stems = [names["layer"].format(i) + names[path] for i in range(c.layers)]
    tensors = tuple(f"{stem}.norms.{head}.weight" for stem in stems for head in range(shape[0]))
    shape = (c.layers, *shape)
    return {f"layers/{path}/scale": WeightMap(tensors, shape, stacked=True, parts=shape[1])}


def _feed_forward(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The matrices of the MLP."""
    maps: dict[str, WeightMap] = {}
    fused = c.tensor_names in FUSED_GATE_UP
    for i, part in enumerate(("gate", "up")):
        if part == "up" or c.gated:
            turn = Rows(i * c.ffn, c.ffn) if fused else np.transpose
            maps |= linear_maps(c, names, f"mlp/{part}", c.width, c.ffn, c.mlp_bias, turn)
    return maps | linear_maps(c, names, "mlp/down", c.ffn, c.width, c.mlp_bias)


def _layer_norms(c: Any, names: dict[str, str], has_mlp: bool) -> dict[str, WeightMap]:
    """The norms of a layer, which may have no feed-forward part."""
    first = c.pre_norms or c.sum_norms
    paths = ["attn_norm"] * first + ["mlp_norm"] * (first and has_mlp and not c.shared_norm)
    paths += ["attn_post_norm", "mlp_post_norm"] * c.post_norms
    maps: dict[str, WeightMap] = {}
    for path in paths:
        maps |= norm_maps(c, names, path, (c.width,), c.norm_bias)
    return maps


def _taken_from_qkv(c: Any, part: str) -> Callable[[np.ndarray], np.ndarray]:
    """What takes queries, keys, values or gates from a tensor, which may hold several of them."""
    if c.output_gate and part in ("q", "gate"):  # alternating heads of one tensor
        return Rows(c.head_dim * (part == "gate"), c.head_dim, c.heads)
    if c.tensor_names not in FUSED_QKV:
        return np.transpose
    order, blocks = FUSED_QKV[c.tensor_names]
    blocks = blocks or c.kv_heads
    rows = {"q": c.heads * c.head_dim, "k": c.kv_heads * c.head_dim, "v": c.kv_heads * c.head_dim}
    if any(n % blocks for n in rows.values()):
        raise ValueError(f"{c.heads} heads of {c.head_dim} do not divide into {blocks} blocks")
    before = sum(rows[x] for x in order[: order.index(part)])
    return Rows(before // blocks, rows[part] // blocks, blocks)
