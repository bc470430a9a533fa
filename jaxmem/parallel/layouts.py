"""Layouts: which axes of a mesh the weights of our models lie over, as rules for `shardings`.

A function of a model's configuration and a mesh returns {regex: PartitionSpec}; where an axis does
not divide a weight, or a head would be split, the rule leaves it out. Weights are stacked
(layers, in, out). A layout is data: print it, change it, put rules of your own before its.
"""

from typing import Any

from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from .axes import ROWS

Rules = dict[str, P]


def data(config: Any, mesh: Mesh | AbstractMesh) -> Rules:
    """Every device holds all weights, and its own rows of the batch: no rules."""
    return {}


def fsdp(config: Any, mesh: Mesh | AbstractMesh) -> Rules:
    """Weights and what is kept of them over `fsdp`, gathered a layer at a time (ZeRO stage 3).

    Rajbhandari et al., 2020. Cut along the outputs, where an encoding has no groups.

    Example:
        >>> import jaxmem as jm
        >>> config = jm.models.load("llama-8b").config
        >>> fsdp(config, jm.mesh(fsdp=8))[".*layers/attn/k/kernel"]
        P(None, None, 'fsdp')
    """
    return _rules(config, mesh, ("fsdp",))


def tensor(config: Any, mesh: Mesh | AbstractMesh) -> Rules:
    """Heads and hidden units over `tensor`; sums cross devices twice a layer (Megatron).

    Shoeybi et al., 2019. GPT-2 has its queries, keys and values in one weight, whose pieces are
    not whole heads: the compiler moves them.
    """
    return _rules(config, mesh, ("tensor",))


def fsdp_tensor(config: Any, mesh: Mesh | AbstractMesh) -> Rules:
    """Both: heads and hidden units over `tensor`, each device's share of those over `fsdp`.

    Example:
        >>> import jaxmem as jm
        >>> config = jm.models.load("smollm2-135m").config  # 9 heads, 3 key/value heads
        >>> rules = fsdp_tensor(config, jm.mesh(fsdp=2, tensor=3))
        >>> rules[".*layers/mlp/up/kernel"], rules[".*layers/mlp/down/kernel"]
        (P(None, None, ('tensor', 'fsdp')), P(None, 'tensor', 'fsdp'))
    """
    return _rules(config, mesh, ("tensor", "fsdp"))


def sequence(config: Any, mesh: Mesh | AbstractMesh) -> Rules:
    """As `fsdp_tensor`, with weights over `sequence` too, over which the positions lie."""
    return _rules(config, mesh, ("tensor", "fsdp", "sequence"))


def expert(pattern: str, *, stacked: bool = True) -> Rules:
    """Stacks of experts (layers, experts, in, out) over `expert`; without layers: stacked=False.

    Put before a layout of the rest: `expert(".*experts/.*") | fsdp(config, mesh)`. Lepikhin et al.,
    2020 (GShard).

    Example:
        >>> expert(".*experts/.*")
        {'.*experts/.*': P(None, 'expert')}
    """
    return {pattern: P(None, "expert") if stacked else P("expert")}


def adapters(rules: Rules) -> Rules:
    """Pairs of `train.lora.adapters` as the weights of `rules` lie: u by outputs, v by inputs.

    Example:
        >>> adapters({".*up/kernel": P(None, "tensor", "fsdp")})
        {'.*up/kernel/u': P(None, 'fsdp'), '.*up/kernel/v': P(None, None, 'tensor')}
    """
    out: Rules = {}
    for pattern, spec in rules.items():
        if pattern.endswith("kernel") and len(spec) == 3:
            out[f"{pattern}/u"] = P(spec[0], spec[2])
            out[f"{pattern}/v"] = P(spec[0], None, spec[1])
    return out


def cache(config: Any, mesh: Mesh | AbstractMesh, batch: int) -> Rules:
    """A KV cache (layers, batch, heads, ...): heads over `tensor`, rows over `data` and `fsdp`."""
    heads = getattr(config, "kv_heads", config.heads)
    return {".*": P(None, _over(mesh, ROWS, batch), _over(mesh, ("tensor",), heads))}


def _rules(c: Any, mesh: Mesh | AbstractMesh, names: tuple[str, ...]) -> Rules:
    """What of `names` divides each weight of the family; an axis of length 1 is left out."""
    over = lambda size, heads=None: _over(mesh, names, size, heads)
    inside, outside = {"out": (c.heads * c.head_dim, c.heads)}, {}  # (length, heads) of what is cut
    inside["down"] = outside["up"] = (c.ffn, None)
    if c.family == "llama":
        kv = (c.kv_heads * c.head_dim, c.kv_heads)
        outside |= {"gate": (c.ffn, None), "q": inside["out"], "k": kv, "v": kv}
    elif c.family == "bert":
        outside |= dict.fromkeys("qkv", inside["out"])
    else:
        outside["qkv"] = (3 * c.heads * c.head_dim, None)
    part = lambda name: f".*layers/{'mlp' if name in ('gate', 'up', 'down') else 'attn'}/{name}"
    biased = {"q", "k", "v"} if getattr(c, "qkv_bias", False) else set()
    biased = biased if c.family == "llama" else set(outside)
    rules: Rules = {}
    for name, (size, heads) in outside.items():
        rules[f"{part(name)}/kernel"] = P(None, None, over(size, heads))
        if name in biased:
            rules[f"{part(name)}/bias"] = P(None, over(size, heads))
    for name, (size, heads) in inside.items():
        summed = _over(mesh, names[:1] if names[0] == "tensor" else (), size, heads)
        left = tuple(n for n in names if n != "tensor" or not summed)
        rules[f"{part(name)}/kernel"] = P(None, summed, _over(mesh, left, c.width))
    rows = over(c.vocab)
    rules[".*embed/embedding"] = P(rows) if rows else P(None, over(c.width))
    if c.family == "llama" and not c.tied:
        rules[".*head/kernel"] = P(None, rows) if rows else P(over(c.width))
    if c.family != "llama":
        rules[".*positions/embedding"] = P(over(c.context))
    return rules


def _over(mesh: Mesh | AbstractMesh, names: tuple[str, ...], size: int, heads: int | None = None):
    """Those of `names`, in order, that divide `size` together; `tensor` divides whole heads."""
    over = []
    for name in names:
        n = mesh.shape[name]
        if n > 1 and size % n == 0 and (name != "tensor" or (heads or size) % n == 0):
            over, size = [*over, name], size // n
    return tuple(over) if len(over) > 1 else over[0] if over else None
