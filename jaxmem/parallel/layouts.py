"""Layouts: rules for `shardings` that divide the weights of our models over the axes of a mesh.

A layout is a function of a model's configuration and a mesh that returns {regex: PartitionSpec}. A
rule leaves out an axis that does not divide the weight, or would split a head. Weights are stacked
(layers, in, out). The rules are data: print them, change them, put your own rules before them.
"""

from collections.abc import Callable
from typing import Any

from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from ..core import arguments
from .axes import ROWS

Rules = dict[str, P]
_CONFIG = arguments.Kind(
    "the config of a model of jm.models", lambda x: hasattr(x, "heads") and hasattr(x, "family")
)
_TOWERS = ("text", "image")


@arguments.takes(config=_CONFIG)
def data(config: Any, mesh: Mesh | AbstractMesh) -> Rules:
    """No rules: every device holds all weights, and its own rows of the batch."""
    return {}


@arguments.takes(config=_CONFIG)
def fsdp(config: Any, mesh: Mesh | AbstractMesh) -> Rules:
    """Weights, gradients and optimizer state over `fsdp`; weights are gathered layer by layer.

    Weights are divided along their outputs, where an encoding has no groups. Rajbhandari et al.,
    2020 (ZeRO stage 3).

    Example:
        >>> import jaxmem as jm
        >>> config = jm.models.load("llama-8b").config
        >>> fsdp(config, jm.mesh(fsdp=8))[".*layers/attn/k/kernel"]
        P(None, None, 'fsdp')
    """
    return _rules(config, mesh, ("fsdp",))


@arguments.takes(config=_CONFIG)
def tensor(config: Any, mesh: Mesh | AbstractMesh) -> Rules:
    """Heads and hidden units over `tensor`; activations are summed over devices twice a layer.

    GPT-2 has its queries, keys and values in one weight, whose shards are not whole heads: the
    compiler moves them. Shoeybi et al., 2019 (Megatron).
    """
    return _rules(config, mesh, ("tensor",))


@arguments.takes(config=_CONFIG)
def fsdp_tensor(config: Any, mesh: Mesh | AbstractMesh) -> Rules:
    """Heads and hidden units over `tensor`, and each device's share of them over `fsdp`.

    Example:
        >>> import jaxmem as jm
        >>> config = jm.models.load("smollm2-135m").config  # 9 heads, 3 key/value heads
        >>> rules = fsdp_tensor(config, jm.mesh(fsdp=2, tensor=3))
        >>> rules[".*layers/mlp/up/kernel"], rules[".*layers/mlp/down/kernel"]
        (P(None, None, ('tensor', 'fsdp')), P(None, 'tensor', 'fsdp'))
    """
    return _rules(config, mesh, ("tensor", "fsdp"))


@arguments.takes(config=_CONFIG)
def sequence(config: Any, mesh: Mesh | AbstractMesh) -> Rules:
    """The layout `fsdp_tensor` with weights also over `sequence`, the axis of positions."""
    return _rules(config, mesh, ("tensor", "fsdp", "sequence"))


@arguments.takes()
def expert(pattern: str, *, stacked: bool = True) -> Rules:
    """Stacks of experts (layers, experts, in, out) over `expert`.

    With `stacked=False` the stacks are (experts, in, out). Put this rule before the rules of the
    other weights: `expert(".*experts/.*") | fsdp(config, mesh)`. Lepikhin et al., 2020 (GShard).

    Example:
        >>> expert(".*experts/.*")
        {'.*experts/.*': P(None, 'expert')}
    """
    return {pattern: P(None, "expert") if stacked else P("expert")}


@arguments.takes(rules=arguments.SPECS)
def adapters(rules: Rules) -> Rules:
    """Rules for LoRA pairs: u and m are divided like the outputs of the weight, v like the inputs.

    Example:
        >>> adapters({".*up/kernel": P(None, "tensor", "fsdp")})
        {'.*up/kernel/[um]': P(None, 'fsdp'), '.*up/kernel/v': P(None, None, 'tensor')}
    """
    out: Rules = {}
    for pattern, spec in rules.items():
        if pattern.endswith("kernel") and len(spec) >= 3:
            *stack, inputs, outputs = spec
            out[f"{pattern}/[um]"] = P(*stack, outputs)
            out[f"{pattern}/v"] = P(*stack, None, inputs)
    return out


@arguments.takes(config=_CONFIG, batch=arguments.POSITIVE)
def cache(config: Any, mesh: Mesh | AbstractMesh, batch: int) -> Rules:
    """A KV cache (layers, batch, heads, ...): heads over `tensor`, rows over `data` and `fsdp`."""
    heads = 1 if getattr(config, "latent", None) else getattr(config, "kv_heads", config.heads)
    rows = _over(mesh, ROWS, batch)
    of_heads = P(None, rows, _over(mesh, ("tensor",), heads))
    recurrence = getattr(config, "recurrence", None)
    if recurrence is None:
        return {".*": of_heads}
    states = {".*": P(None, rows)}  # whole on every device of `tensor`
    return states if recurrence.replaces_attention else {"k|v": of_heads} | states


def _rules(c: Any, mesh: Mesh | AbstractMesh, names: tuple[str, ...]) -> Rules:
    """Rules for each weight of the family, over those of the mesh axes `names` that divide it."""
    if c.family == "two_towers":
        towers = {name: _one_stack_rules(getattr(c, name), mesh, names) for name in _TOWERS}
        return {
            f".*{name}/{pattern.removeprefix('.*')}": spec
            for name, rules in towers.items()
            for pattern, spec in rules.items()
        }
    of_family = _encoder_decoder_rules if c.family == "seq2seq" else _one_stack_rules
    return of_family(c, mesh, names)


def _one_stack_rules(c: Any, mesh: Mesh | AbstractMesh, names: tuple[str, ...]) -> Rules:
    """`_rules` of a model with one stack of layers."""
    mixture, latent = getattr(c, "mixture", None), getattr(c, "latent", None)
    recurrence = getattr(c, "recurrence", None)
    several = mixture is not None and any(mixture.dense) and not all(mixture.dense)
    several |= getattr(c, "bare_start", False)
    several |= recurrence is not None and len(set(recurrence.layers)) > 1
    layers = r".*layers_\d+" if several else ".*layers"
    over = lambda size, heads=None: _over(mesh, names, size, heads)
    inside, outside = _divided(c)
    part = lambda name: f"{layers}/{'mlp' if name in ('gate', 'up', 'down') else 'attn'}/{name}"
    biased = {"q", "k", "v"} if getattr(c, "qkv_bias", True) else set()
    biased -= {"q"} if latent else set()
    biased |= {"qkv", "gate", "up"} if getattr(c, "mlp_bias", True) else set()
    rules: Rules = {}
    stack = () if getattr(c, "shared", False) else (None,)  # the axis of layers
    for name, (size, heads) in outside.items():
        rules[f"{part(name)}/kernel"] = P(*stack, None, over(size, heads))
        if name in biased:
            rules[f"{part(name)}/bias"] = P(*stack, over(size, heads))
    for name, (size, heads) in inside.items():
        rules[f"{part(name)}/kernel"] = P(*stack, *_summed(mesh, names, size, c.width, heads))
    if recurrence:
        rules |= _recurrence_rules(c, mesh, names, f"{layers}/mixer")
    if mixture:
        rules |= _mixture_rules(c, mesh, names, f"{layers}/mlp")
    if latent:
        of_heads = P(None, _over(mesh, names[:1] if names[0] == "tensor" else (), c.heads))
        rules |= {f"{layers}/attn/{name}": of_heads for name in ("k_up", "v_up")}
    return rules | _input_rules(c, over)


def _input_rules(c: Any, over: Callable[[int], Any]) -> Rules:
    """Rules for the embedding, the head and the positions; `over` gives the axes of a size."""
    if getattr(c, "patches", None):
        return {".*patches/kernel": P(None, over(c.width))}
    if getattr(c, "waves", None):
        return {".*waves/proj/kernel": P(None, over(c.width))}
    rows, embed_width = over(c.vocab), getattr(c, "embed_width", 0) or c.width
    rules = {".*embed/embedding": P(rows) if rows else P(None, over(embed_width))}
    if not getattr(c, "tied", True):
        rules[".*head/kernel"] = P(None, rows) if rows else P(over(embed_width))
    if getattr(c, "positions", "learned") == "learned":
        usual = c.context + getattr(c, "position_offset", 0)
        rules[".*positions/embedding"] = P(over(getattr(c, "position_rows", usual)))
    return rules


def _divided(c: Any) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """{weight: (length, heads) of its divided axis}: of inputs, and of outputs."""
    inside, outside = {"out": (c.heads * c.head_dim, c.heads)}, {}
    inside["down"] = outside["up"] = (c.ffn, None)
    recurrence, latent = getattr(c, "recurrence", None), getattr(c, "latent", None)
    if c.family in ("llama", "decoder"):
        kv = (c.kv_heads * c.head_dim, c.kv_heads)
        outside |= {"gate": (c.ffn, None), "q": inside["out"], "k": kv, "v": kv}
        if latent:
            inside["out"] = (c.heads * latent.value_dim, c.heads)
            outside = {name: outside[name] for name in ("up", "gate")}
            outside["q_up" if latent.q_rank else "q"] = (c.heads * c.head_dim, c.heads)
        if getattr(c, "mixture", None) and not any(c.mixture.dense):
            inside.pop("down")
            outside = {k: size for k, size in outside.items() if k not in ("up", "gate")}
    elif c.family in ("bert", "encoder"):
        outside |= dict.fromkeys("qkv", inside["out"]) | {"gate": (c.ffn, None)}
    else:
        outside["qkv"] = (3 * c.heads * c.head_dim, None)
    if recurrence and recurrence.replaces_attention:
        inside.pop("out")
        outside = {k: size for k, size in outside.items() if k not in ("q", "k", "v")}
    if recurrence and recurrence.alone:
        inside, outside = {}, {}
    return inside, {k: size for k, size in outside.items() if k != "gate" or c.gated}


def _recurrence_rules(
    c: Any, mesh: Mesh | AbstractMesh, names: tuple[str, ...], path: str
) -> Rules:
    """Rules for the linears of a recurrence: its channels over `tensor`."""
    rules: Rules = {}
    for name, (inputs, outputs) in c.recurrence.linears(c.width).items():
        outward = name in ("out", "select")
        over = (None, _over(mesh, names, outputs))
        over = _summed(mesh, names, inputs, outputs) if outward else over
        rules[f"{path}/{name}/kernel"] = P(None, *over)
    return rules


def _summed(
    mesh: Mesh | AbstractMesh,
    names: tuple[str, ...],
    inputs: int,
    outputs: int,
    heads: int | None = None,
) -> tuple:
    """The spec of a kernel (in, out) whose inputs are over `tensor`, and outputs over the rest."""
    summed = _over(mesh, names[:1] if names[0] == "tensor" else (), inputs, heads)
    left = tuple(n for n in names if n != "tensor" or not summed)
    return summed, _over(mesh, left, outputs)


def _encoder_decoder_rules(c: Any, mesh: Mesh | AbstractMesh, names: tuple[str, ...]) -> Rules:
    """`_rules` of an encoder-decoder, whose two stacks may differ in heads and hidden units."""
    over = lambda size, heads=None: _over(mesh, names, size, heads)
    rules: Rules = {}
    for stack, part in (("encoder", c.of_encoder()), ("decoder", c)):
        of_heads, of_units = (part.heads * part.head_dim, part.heads), (part.ffn, None)
        outside = {f"attn/{x}": (*of_heads, part.qkv_bias) for x in "qkv"}
        outside |= {f"mlp/{x}": (*of_units, part.mlp_bias) for x in ("gate",) * c.gated + ("up",)}
        inside = {"attn/out": of_heads, "mlp/down": of_units}
        if stack == "decoder":
            outside |= {f"cross/{x}": outside[f"attn/{x}"] for x in "qkv"}
            inside["cross/out"] = of_heads
        for name, (size, heads, biased) in outside.items():
            rules[f".*{stack}/layers/{name}/kernel"] = P(None, None, over(size, heads))
            if biased and (name[-1] != "k" or c.key_bias):
                rules[f".*{stack}/layers/{name}/bias"] = P(None, over(size, heads))
        for name, (size, heads) in inside.items():
            over_both = _summed(mesh, names, size, c.width, heads)
            rules[f".*{stack}/layers/{name}/kernel"] = P(None, *over_both)
        if c.positions == "learned":
            rows = over(part.context + c.position_offset)
            rules[f".*{stack}/positions/embedding"] = P(rows)
    rows = over(c.vocab)
    rules[".*embed/embedding"] = P(rows) if rows else P(None, over(c.width))
    if not c.tied:
        rules[".*head/kernel"] = P(None, rows) if rows else P(over(c.width))
    return rules


def _mixture_rules(c: Any, mesh: Mesh | AbstractMesh, names: tuple[str, ...], path: str) -> Rules:
    """Rules for the experts of a layer, over `expert` too, and for the expert that all share."""
    m = c.mixture
    expert = _over(mesh, ("expert",), m.experts)
    rules = {f"{path}/experts/(gate|up)/kernel": P(None, expert, None, _over(mesh, names, m.ffn))}
    rules[f"{path}/experts/down/kernel"] = P(None, expert, None, _over(mesh, names, c.width))
    if m.expert_bias:
        rules[f"{path}/experts/.*/bias"] = P(None, expert)
    if m.shared_ffn:
        shared = _over(mesh, names, m.shared_ffn)
        rules[f"{path}/shared/(gate|up)/kernel"] = P(None, None, shared)
        rules[f"{path}/shared/down/kernel"] = P(None, None, _over(mesh, names, c.width))
    return rules


def _over(mesh: Mesh | AbstractMesh, names: tuple[str, ...], size: int, heads: int | None = None):
    """An entry of a spec: the axes of `names`, in order, that together divide `size`.

    `tensor` must divide the number of heads too.
    """
    over = []
    for name in names:
        n = mesh.shape[name]
        if n > 1 and size % n == 0 and (name != "tensor" or (heads or size) % n == 0):
            over, size = [*over, name], size // n
    return tuple(over) if len(over) > 1 else over[0] if over else None
