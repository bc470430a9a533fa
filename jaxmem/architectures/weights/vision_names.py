"""The names of the tensors of encoders of images and of towers; encoder_names.py has the others."""

_VIT = {
    "base": "vit.",
    "patches": "embeddings.patch_embeddings.projection",
    "class_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "layer": "encoder.layer.{}.",
    "attn/q": "attention.attention.query",
    "attn/k": "attention.attention.key",
    "attn/v": "attention.attention.value",
    "attn/out": "attention.output.dense",
    "attn_norm": "layernorm_before",
    "mlp_norm": "layernorm_after",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "final_norm": "layernorm",
    "sequence/out": "classifier",
}
_DINOV2 = (
    _VIT
    | {"base": "dinov2."}
    | {"attn_norm": "norm1", "mlp_norm": "norm2"}
    | {"attn_scale": "layer_scale1.lambda1", "mlp_scale": "layer_scale2.lambda1"}
)
_LAYER = {
    "attn/q": "self_attn.q_proj",
    "attn/k": "self_attn.k_proj",
    "attn/v": "self_attn.v_proj",
    "attn/out": "self_attn.out_proj",
    "attn_norm": "layer_norm1",
    "mlp_norm": "layer_norm2",
    "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2",
}
_IN_POOL = "vision_model.head."
VISION_NAMES = {
    "text_tower": _LAYER
    | {
        "layer": "text_model.encoder.layers.{}.",
        "embed": "text_model.embeddings.token_embedding",
        "positions": "text_model.embeddings.position_embedding",
        "final_norm": "text_model.final_layer_norm",
    },
    "image_tower": _LAYER
    | {
        "layer": "vision_model.encoder.layers.{}.",
        "patches": "vision_model.embeddings.patch_embedding",
        "class_token": "vision_model.embeddings.class_embedding",
        "positions": "vision_model.embeddings.position_embedding.weight",
        "embed_norm": "vision_model.pre_layrnorm",
        "final_norm": "vision_model.post_layernorm",
        "pool/probe": f"{_IN_POOL}probe",
        "pool/qkv": f"{_IN_POOL}attention.in_proj",
        "pool/out": f"{_IN_POOL}attention.out_proj",
        "pool/norm": f"{_IN_POOL}layernorm",
        "pool/mlp/up": f"{_IN_POOL}mlp.fc1",
        "pool/mlp/down": f"{_IN_POOL}mlp.fc2",
    },
    "vit": _VIT,
    "dinov2": _DINOV2 | {"mlp/up": "mlp.fc1", "mlp/down": "mlp.fc2"},
    "dinov2_gated": _DINOV2
    | {"mlp/gate": "mlp.weights_in", "mlp/up": "mlp.weights_in", "mlp/down": "mlp.weights_out"},
}
