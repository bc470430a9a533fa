"""The config.json of a network of convolutions, as the fields of its Config."""

from typing import Any

from ...io.json_fields import JsonFields
from .encoder_families import read_head, read_labels
from .hf_fields import encoder_activation
from .ignored_hf_options import refuse_unread_options


def from_hf(hf: dict) -> dict[str, Any]:
    """The fields of a Config from a checkpoint's `config.json`.

    Raises:
        ValueError: `hf` has a value of the wrong type, or a model type or an option that
            convolutional.py does not compute.
    """
    fields = JsonFields(hf)
    kind = fields.text("model_type", among=CONVOLUTIONAL_FAMILIES)
    head = read_head(fields)
    fields.ignore("out_features", "out_indices", "stage_names")  # of a backbone
    config = CONVOLUTIONAL_FAMILIES[kind](fields)
    config |= {"channels": fields.integer("num_channels", 3)}
    config |= {"labels": read_labels(fields)} if head == "sequence" else {}
    refuse_unread_options(fields)
    return config


def _resnet(fields: JsonFields) -> dict[str, Any]:
    return {
        "widths": fields.integers("hidden_sizes") or (256, 512, 1024, 2048),
        "depths": fields.integers("depths") or (3, 4, 6, 3),
        "stem": fields.integer("embedding_size", 64),
        "block": fields.text("layer_type", "bottleneck", ("basic", "bottleneck")),
        "activation": encoder_activation(fields, "hidden_act", "relu"),
        "first_stride": 1 + fields.boolean("downsample_in_first_stage", False),
        "early_stride": fields.boolean("downsample_in_bottleneck", False),
    }


def _convnext(fields: JsonFields) -> dict[str, Any]:
    fields.ignore("drop_path_rate", "image_size")
    widths = fields.integers("hidden_sizes") or (96, 192, 384, 768)
    fields.expect("num_stages", len(widths))
    return {
        "widths": widths,
        "depths": fields.integers("depths") or (3, 3, 9, 3),
        "stem": widths[0],
        "block": "depthwise",
        "activation": encoder_activation(fields, "hidden_act"),
        "eps": fields.number("layer_norm_eps", 1e-12, above=0, below=1),
        "patch": fields.integer("patch_size", 4),
        "layer_scale": fields.number("layer_scale_init_value", 1e-6) > 0,
    }


CONVOLUTIONAL_FAMILIES = {"resnet": _resnet, "convnext": _convnext}
