"""The config.json of two towers, as the fields of their Config."""

from collections.abc import Callable
from typing import Any

from ...io.json_fields import JsonFields
from .ignored_hf_options import refuse_unread_options
from .vision_families import read_patches, read_tower

# transformers takes these values where a config.json lacks the field.
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_BASE |= {"num_attention_heads": 12}
_CLIP_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
_CLIP_TEXT |= {"num_attention_heads": 8, "vocab_size": 49408, "max_position_embeddings": 77}
_CLIP_TEXT |= {"eos_token_id": 49407}
_CLIP_IMAGE = _BASE | {"patch_size": 32}
_SIGLIP_TEXT = _BASE | {"vocab_size": 32000, "max_position_embeddings": 64}
_OLD_END = 2  # stands in old files, where the end of a text is the token with the highest id


def from_hf(hf: dict) -> dict[str, Any]:
    """The fields of a `two_towers.Config` from a checkpoint's `config.json`.

    Raises:
        ValueError: `hf` has a value of the wrong type, or a model type or an option that
            two_towers.py does not compute.
    """
    fields = JsonFields(hf)
    kind = fields.text("model_type", among=TOWER_FAMILIES)
    fields.ignore("initializer_factor", "logit_scale_init_value", "tie_word_embeddings")
    config = TOWER_FAMILIES[kind](fields)
    refuse_unread_options(fields)
    return config


def _clip(fields: JsonFields) -> dict[str, Any]:
    text, image = _of_tower(fields, "text", _CLIP_TEXT), _of_tower(fields, "vision", _CLIP_IMAGE)
    width = fields.integer("projection_dim", 512)
    end = text.integer("eos_token_id", least=0)
    ended = {"pool": "highest"} if end == _OLD_END else {"pool": "end", "end": end}
    return {
        "text": _text(text, 1e-5, "quick_gelu") | ended | {"causal": True},
        "image": _image(image, 1e-5, "quick_gelu", bias=False) | {"embed_norm": True},
        "text_width": width,
        "image_width": width,
        "tensor_names": "clip",
    }


def _siglip(fields: JsonFields) -> dict[str, Any]:
    text, image = _of_tower(fields, "text", _SIGLIP_TEXT), _of_tower(fields, "vision", _BASE)
    image.expect("vision_use_head", True)
    usual = text.integer("hidden_size")
    width = text.integer("projection_size", usual)
    pooled = {"pool": "attention"}
    return {
        "text": _text(text, 1e-6, "gelu_pytorch_tanh") | {"pool": "last"},
        "image": _image(image, 1e-6, "gelu_pytorch_tanh", class_token=False) | pooled,
        "text_width": width,
        "projection_bias": True,
        "logit_bias": True,
        "tensor_names": "siglip",
    }


def _of_tower(fields: JsonFields, name: str, usual: dict[str, Any]) -> JsonFields:
    """The fields of one tower; those of an older object `..._config_dict` come before the others.

    `usual` is what missing fields mean.
    """
    data = dict(usual)
    for key in (f"{name}_config", f"{name}_config_dict"):
        part = fields.object(key)
        part.ignore(*part.data)  # `_finished` refuses what no reader knows
        data |= {k: x for k, x in part.data.items() if x is not None}
    tower = JsonFields(data, f"{name}_config.")
    tower.ignore("model_type", "projection_dim", "initializer_factor", "tie_word_embeddings")
    return tower


def _text(fields: JsonFields, eps: float, activation: str) -> dict[str, Any]:
    """The fields of a tower of texts."""
    return _finished(
        fields,
        read_tower(fields, eps, activation)
        | {
            "vocab": fields.integer("vocab_size"),
            "context": fields.integer("max_position_embeddings"),
            "tensor_names": "text_tower",
        },
    )


def _image(
    fields: JsonFields, eps: float, activation: str, bias: bool = True, class_token: bool = True
) -> dict[str, Any]:
    """The fields of a tower of images."""
    patches = read_patches(fields, bias=bias, class_token=class_token)
    tower = read_tower(fields, eps, activation) | patches
    return _finished(fields, tower | {"tensor_names": "image_tower"})


def _finished(fields: JsonFields, config: dict[str, Any]) -> dict[str, Any]:
    """`config` with the size of the MLP and the head; a field that nothing has read is refused."""
    ffn = fields.integer("intermediate_size")
    refuse_unread_options(fields)
    return config | {"ffn": ffn, "head": "vector"}


TOWER_FAMILIES: dict[str, Callable[[JsonFields], dict[str, Any]]] = {
    "clip": _clip,
    "siglip": _siglip,
}
