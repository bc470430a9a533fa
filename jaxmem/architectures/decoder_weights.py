"""Which tensors of a Hugging Face checkpoint make each parameter of a decoder."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from .tensor_names import FUSED_GATE_UP, FUSED_QKV, NAMES
from .weight_map import WeightMap, same


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
    maps = {"embed/embedding": WeightMap((f"{names['embed']}.weight",), (c.vocab, c.width))}
    if c.positions == "learned":
        rows = c.context + c.position_offset
        table = (f"{names['positions']}.weight",)
        maps["positions/embedding"] = WeightMap(table, (rows, c.width))
    for path in ("embed_norm",) * c.embed_norm + ("final_norm",):
        for part, tensor in _norm_parts(c, c.norm_bias):
            maps[f"{path}/{part}"] = WeightMap((f"{names[path]}.{tensor}",), (c.width,))
    maps |= _attention(c, names) | _feed_forward(c, names) | _layer_norms(c, names)
    if not c.tied:
        head = (f"{names['head']}.weight",)
        maps["head/kernel"] = WeightMap(head, (c.width, c.vocab), np.transpose)
        if c.head_bias:
            maps["head/bias"] = WeightMap((f"{names['head']}.bias",), (c.vocab,))
    return maps


def _names(c: Any) -> dict[str, str]:
    """The names of a configuration's modules."""
    if c.tensor_names not in NAMES:
        raise ValueError(f"tensor_names is {c.tensor_names!r}, expected one of {', '.join(NAMES)}")
    return NAMES["gemma" if c.tensor_names == "llama" and c.post_norms else c.tensor_names]


def _attention(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The projections and norms of attention."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    maps: dict[str, WeightMap] = {}
    for part, size in {"q": q, "k": kv, "v": kv}.items():
        turn = _taken_from_qkv(c, part)
        maps |= _linear(c, names, f"attn/{part}", c.width, size, c.qkv_bias, turn)
    maps |= _linear(c, names, "attn/out", q, c.width, c.out_bias)
    if c.qk_norm:
        for part, heads in {"q": c.heads, "k": c.kv_heads}.items():
            shape = {
                "head": (c.head_dim,),
                "heads": (heads, c.head_dim),
                "all": (heads * c.head_dim,),
            }[c.qk_norm_over]
            if c.tensor_names == "stablelm":
                maps |= _norms_of_heads(c, names, f"attn/{part}_norm", shape)
            else:
                maps |= _norm(c, names, f"attn/{part}_norm", shape, c.qk_norm_bias)
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
            turn = _Rows(i * c.ffn, c.ffn) if fused else np.transpose
            maps |= _linear(c, names, f"mlp/{part}", c.width, c.ffn, c.mlp_bias, turn)
    return maps | _linear(c, names, "mlp/down", c.ffn, c.width, c.mlp_bias)


def _layer_norms(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The norms of a layer."""
    paths = ["attn_norm"] * c.pre_norms + ["mlp_norm"] * (c.pre_norms and not c.shared_norm)
    paths += ["attn_post_norm", "mlp_post_norm"] * c.post_norms
    maps: dict[str, WeightMap] = {}
    for path in paths:
        maps |= _norm(c, names, path, (c.width,), c.norm_bias)
    return maps


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Takes `count` rows of each block, from `start` on, and turns a matrix to (in, out)."""

    start: int
    count: int
    blocks: int = 1

    def __call__(self, w: np.ndarray) -> np.ndarray:
        rows = w.reshape(self.blocks, -1, *w.shape[1:])[:, self.start : self.start + self.count]
        return rows.reshape(-1, *w.shape[1:]).T


def _taken_from_qkv(c: Any, part: str) -> Callable[[np.ndarray], np.ndarray]:
    """What takes queries, keys or values from a tensor, which may hold all three."""
    if c.tensor_names not in FUSED_QKV:
        return np.transpose
    order, blocks = FUSED_QKV[c.tensor_names]
    blocks = blocks or c.kv_heads
    rows = {"q": c.heads * c.head_dim, "k": c.kv_heads * c.head_dim, "v": c.kv_heads * c.head_dim}
    if any(n % blocks for n in rows.values()):
        raise ValueError(f"{c.heads} heads of {c.head_dim} do not divide into {blocks} blocks")
    before = sum(rows[x] for x in order[: order.index(part)])
    return _Rows(before // blocks, rows[part] // blocks, blocks)


def _linear(
    c: Any,
    names: dict[str, str],
    path: str,
    inputs: int,
    outputs: int,
    bias: bool,
    turn: Callable[[np.ndarray], np.ndarray] = np.transpose,
) -> dict[str, WeightMap]:
    """The kernel of a linear in every layer, and its bias.

    Args:
        c: the configuration.
        names: its modules' names in the checkpoint.
        path: of the linear in a layer.
        inputs: columns of the tensor in the checkpoint.
        outputs: rows of it that are used.
        bias: whether there is one.
        turn: makes the kernel (in, out) of a tensor (out, in), and the bias of a vector.
    """
    maps = {f"layers/{path}/kernel": _stack(c, names, path, "weight", (inputs, outputs), turn)}
    if bias:
        of_bias = same if turn is np.transpose else turn
        maps[f"layers/{path}/bias"] = _stack(c, names, path, "bias", (outputs,), of_bias)
    return maps


def _norm(
    c: Any, names: dict[str, str], path: str, shape: tuple[int, ...], bias: bool
) -> dict[str, WeightMap]:
    """The gain and bias of a norm in every layer."""
    return {
        f"layers/{path}/{part}": _stack(c, names, path, tensor, shape)
        for part, tensor in _norm_parts(c, bias)
    }


def _norm_parts(c: Any, bias: bool) -> list[tuple[str, str]]:
    """(parameter, tensor) of a norm."""
    return [("scale", "weight")] * c.norm_gain + [("bias", "bias")] * bias


def _stack(
    c: Any,
    names: dict[str, str],
    path: str,
    tensor: str,
    shape: tuple[int, ...],
    fn: Callable[[np.ndarray], np.ndarray] = same,
) -> WeightMap:
    """One parameter of every layer.

    Args:
        c: the configuration.
        names: its modules' names in the checkpoint.
        path: of the module in a layer.
        tensor: "weight" or "bias".
        shape: of the parameter in one layer.
        fn: changes the layout of a tensor.
    """
    stems = (names["layer"].format(i) + names[path] for i in range(c.layers))
    return WeightMap(
        tuple(f"{stem}.{tensor}" for stem in stems), (c.layers, *shape), fn, stacked=True
    )
