"""What a config.json says of Llama 4's text models, in the words of Config."""

from ...io.json_fields import JsonFields
from .hf_fields import read_activation, read_sizes, read_unrotated
from .rope_scaling import read_rope

_FULL, _CHUNKED = "full_attention", "chunked_attention"


def read_llama4(fields: JsonFields) -> dict:
    """The fields of Config; local layers see chunks, and layers without positions see all."""
    sizes = read_sizes(fields, ffn="intermediate_size_mlp")
    layers, bias = sizes["layers"], fields.boolean("attention_bias", False)
    unrotated = read_unrotated(fields, layers)
    config = (
        sizes
        | read_rope(fields, sizes["head_dim"], sizes["context"])
        | read_activation(fields)
        | {"interleaved": True, "no_rope": unrotated, "qkv_bias": bias, "out_bias": bias}
        | {"qk_norm": fields.boolean("use_qk_norm", True), "qk_norm_over": "rotated"}
    )
    return config | _growth(fields) | _chunks(fields, unrotated) | _mixture(fields, layers)


def _growth(fields: JsonFields) -> dict:
    """The growth of queries with their position, in layers without rotary positions."""
    rate = fields.number("attn_scale", 0.1, above=0)
    context = fields.integer("floor_scale", 8192)
    if not fields.boolean("attn_temperature_tuning", True):
        return {}
    return {"query_growth": rate, "original_context": context, "growth_unrotated": True}


def _chunks(fields: JsonFields, unrotated: tuple[bool, ...]) -> dict:
    """The layers that see chunks, and their size."""
    size = fields.integer("attention_chunk_size", 0, least=0)
    usual = [_FULL if x or not size else _CHUNKED for x in unrotated]
    types = fields.texts("layer_types") or usual
    if len(types) != len(unrotated) or not set(types) <= {_FULL, _CHUNKED}:
        fields.refuse("layer_types", f"{_FULL} or {_CHUNKED} for each of {len(unrotated)} layers")
    local = tuple(x == _CHUNKED for x in types)
    return {"local": local, "window": size, "chunked": True} if any(local) else {}


def _mixture(fields: JsonFields, layers: int) -> dict:
    """The experts, and the layers without them."""
    step = fields.integer("interleave_moe_layer_step", 1)
    sparse = fields.integers("moe_layers")
    if "moe_layers" not in fields:
        sparse = tuple(range(step - 1, layers, step))
    fields.ignore("router_aux_loss_coef", "router_jitter_noise")
    ffn = fields.integer("intermediate_size")
    mixture = {
        "experts": fields.integer("num_local_experts", 16),
        "per_token": fields.integer("num_experts_per_tok", 1),
        "ffn": ffn,
        "shared_ffn": ffn,
        "scores": "sigmoid",
        "scales_inputs": True,
    }
    dense = tuple(i not in sparse for i in range(layers))
    if all(dense):
        return {}
    return {"mixture": mixture | ({"dense": dense} if any(dense) else {})}
