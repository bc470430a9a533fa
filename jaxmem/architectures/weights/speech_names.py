"""The names of the tensors of encoders of sounds, as encoder_names.py has those of texts."""

SPEECH_NAMES = {
    "wav2vec2": {
        "base": "wav2vec2.",
        "conv": "feature_extractor.conv_layers.{}.conv",
        "conv_norm": "feature_extractor.conv_layers.{}.layer_norm",
        "waves/norm": "feature_projection.layer_norm",
        "waves/proj": "feature_projection.projection",
        "positions": "encoder.pos_conv_embed.conv",
        "embed_norm": "encoder.layer_norm",
        "final_norm": "encoder.layer_norm",
        "layer": "encoder.layers.{}.",
        "attn/q": "attention.q_proj",
        "attn/k": "attention.k_proj",
        "attn/v": "attention.v_proj",
        "attn/out": "attention.out_proj",
        "attn_norm": "layer_norm",
        "mlp/up": "feed_forward.intermediate_dense",
        "mlp/down": "feed_forward.output_dense",
        "mlp_norm": "final_layer_norm",
        "tokens/out": "lm_head",
    }
}
