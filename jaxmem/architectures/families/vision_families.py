"""The config.json of an encoder of images, as the fields of an encoder's Config."""

from typing import Any

from ...io.json_fields import JsonFields
from .hf_fields import encoder_activation
from .ignored_hf_options import MOST_LAYERS


def _vit(fields: JsonFields, head: str) -> dict[str, Any]:
    fields.ignore("encoder_stride")  # of the decoder of masked images
    sizes = {"ffn": fields.integer("intermediate_size"), "tensor_names": "vit"}
    return read_tower(fields, 1e-12) | read_patches(fields) | sizes | {"head": head}


def _dinov2(fields: JsonFields, head: str) -> dict[str, Any]:
    fields.ignore("layerscale_value", "drop_path_rate", "use_mask_token")  # training only
    fields.ignore("apply_layernorm", "reshape_hidden_states")  # of a backbone, as are the next
    fields.ignore("out_features", "out_indices", "stage_names")
    config = read_tower(fields, 1e-6) | read_patches(fields, resized=True)
    ffn = int(config["width"] * fields.number("mlp_ratio", 4, above=0))
    gated = fields.boolean("use_swiglu_ffn", False)
    gates = {"ffn": (int(ffn * 2 / 3) + 7) // 8 * 8, "gated": True, "activation": "silu"}
    config |= {"ffn": ffn} | (gates if gated else {})
    names = "dinov2_gated" if gated else "dinov2"
    return config | {
        "layer_scale": True,
        "head": head,
        "head_both": head == "sequence",
        "tensor_names": names,
    }


def read_tower(fields: JsonFields, eps: float, activation: str = "gelu") -> dict[str, Any]:
    """The fields of layers with norms before each part, without the MLP's size.

    `eps` and `activation` are what a missing field means.
    """
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if width % heads:
        fields.refuse("num_attention_heads", f"a divisor of {width}")
    return {
        "vocab": 0,
        "types": 0,
        "width": width,
        "heads": heads,
        "layers": fields.integer("num_hidden_layers", most=MOST_LAYERS),
        "eps": fields.number("layer_norm_eps", eps, above=0, below=1),
        "activation": encoder_activation(fields, "hidden_act", activation),
        "qkv_bias": fields.boolean("qkv_bias", True),
        "pre_norms": True,
        "embed_norm": False,
    }


def read_patches(fields: JsonFields, resized: bool = False, **patches: bool) -> dict[str, Any]:
    """The field `patches`; `patches` are more fields of it than config.json says.

    An image size is one number, or height and width.
    """
    size, sides = fields.integers("patch_size") or (16,), fields.integers("image_size") or (224,)
    if len(set(size)) != 1 or size[0] < 1:
        fields.refuse("patch_size", "one side of a square, of at least 1 pixel")
    if len(sides) > 2 or min(sides) < size[0]:
        fields.refuse("image_size", f"one or two sizes of at least patch_size, {size[0]}")
    channels = fields.integer("num_channels", 3)
    sizes = {"height": sides[0], "width": sides[-1], "size": size[0], "channels": channels}
    return {"patches": sizes | {"resized": resized} | patches}


VISION_FAMILIES = {"vit": _vit, "dinov2": _dinov2}
