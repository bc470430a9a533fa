"""The names of the tensors of encoders of images, as encoder_names.py has those of texts."""

_VIT = {
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
    | {"attn_norm": "norm1", "mlp_norm": "norm2"}
    | {"attn_scale": "layer_scale1.lambda1", "mlp_scale": "layer_scale2.lambda1"}
)
VISION_NAMES = {
    "vit": _VIT,
    "dinov2": _DINOV2 | {"mlp/up": "mlp.fc1", "mlp/down": "mlp.fc2"},
    "dinov2_gated": _DINOV2
    | {"mlp/gate": "mlp.weights_in", "mlp/up": "mlp.weights_in", "mlp/down": "mlp.weights_out"},
}
