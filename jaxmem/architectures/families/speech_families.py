"""The config.json of an encoder of sounds, as the fields of an encoder's Config."""

from typing import Any

from ...io.json_fields import JsonFields
from .hf_fields import encoder_activation
from .vision_families import read_tower

# Only training, another head, or a quantizer of targets reads these fields.
_TRAINING = ("apply_spec_augment", "layerdrop", "num_negatives", "contrastive_logits_temperature")
_TRAINING += ("diversity_loss_weight", "ctc_loss_reduction", "ctc_zero_infinity", "codevector_dim")
_TRAINING += ("num_codevector_groups", "num_codevectors_per_group", "proj_codevector_dim")
_MASKED = ("mask_time_", "mask_feature_", "mask_channel_")  # options of training begin so
_OTHER_HEADS = ("classifier_proj_size", "tdnn_dilation", "tdnn_dim", "tdnn_kernel")
_OTHER_HEADS += ("xvector_output_dim", "adapter_kernel_size", "adapter_stride")
_OTHER_HEADS += ("num_adapter_layers", "output_hidden_size")
_CHANNELS, _WINDOWS, _STRIDES = (512,) * 7, (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


def _wav2vec2(fields: JsonFields, head: str) -> dict[str, Any]:
    if head not in ("", "tokens"):
        fields.refuse("architectures", "a Wav2Vec2ForCTC or a Wav2Vec2Model")
    fields.ignore(*_TRAINING, *_OTHER_HEADS)
    fields.ignore(*(name for name in fields.data if name.startswith(_MASKED)))
    fields.expect("add_adapter", False)
    fields.expect("adapter_attn_dim", None)
    fields.expect("use_weighted_layer_sum", False)
    pre_norms = fields.boolean("do_stable_layer_norm", False)
    width = fields.integer("hidden_size")
    groups = fields.integer("num_conv_pos_embedding_groups", 16)
    if width % groups:
        fields.refuse("num_conv_pos_embedding_groups", f"a divisor of {width}")
    labels = fields.integer("vocab_size", 32)
    return read_tower(fields, 1e-5) | {
        "ffn": fields.integer("intermediate_size"),
        "waves": _waves(fields, groups),
        "positions": "none",
        "pre_norms": pre_norms,
        "embed_norm": not pre_norms,
        "head": head,
        "tensor_names": "wav2vec2",
        **({"labels": labels} if head else {}),
    }


def _waves(fields: JsonFields, groups: int) -> dict[str, Any]:
    """The convolutions, of which config.json lists channels, windows and strides."""
    channels = fields.integers("conv_dim") or _CHANNELS
    windows = fields.integers("conv_kernel") or _WINDOWS
    strides = fields.integers("conv_stride") or _STRIDES
    fields.expect("num_feat_extract_layers", len(channels))
    for name, sizes in {"conv_kernel": windows, "conv_stride": strides}.items():
        if len(sizes) != len(channels) or min(sizes) < 1:
            fields.refuse(name, f"{len(channels)} sizes of at least 1, as conv_dim has")
    return dict(
        channels=channels,
        windows=windows,
        strides=strides,
        bias=fields.boolean("conv_bias", False),
        norm=fields.text("feat_extract_norm", "group", ("group", "layer")),
        activation=encoder_activation(fields, "feat_extract_activation"),
        position_window=fields.integer("num_conv_pos_embeddings", 128),
        position_groups=groups,
    )


SPEECH_FAMILIES = {"wav2vec2": _wav2vec2}
