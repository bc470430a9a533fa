"""Parts of a config.json that many families share: sizes, activation, windows."""

from collections.abc import Callable
from typing import Any

from ...io.json_fields import JsonFields
from .ignored_hf_options import MOST_LAYERS
from .rope_scaling import read_rope

_FULL, _LOCAL = "full_attention", "sliding_attention"

NAMES = {  # Config's field: the words of most families
    "vocab": "vocab_size",
    "width": "hidden_size",
    "ffn": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "context": "max_position_embeddings",
    "eps": "rms_norm_eps",
}
GPT_NAMES = NAMES | {
    "width": "n_embd",
    "ffn": "n_inner",
    "layers": "n_layer",
    "heads": "n_head",
    "context": "n_positions",
    "eps": "layer_norm_epsilon",
    "kv_heads": "",
    "head_dim": "",
}

_ACTIVATIONS: dict[str, dict[str, Any]] = {
    "silu": {},
    "swish": {},
    "gelu": {"activation": "gelu"},
    "gelu_python": {"activation": "gelu"},
    "gelu_new": {"gelu": True},
    "gelu_fast": {"gelu": True},
    "gelu_pytorch_tanh": {"gelu": True},
    "quick_gelu": {"activation": "quick_gelu"},
    "relu": {"activation": "relu"},
    "relu2": {"activation": "relu2"},
}


def read_sizes(
    fields: JsonFields, names: dict[str, str] = NAMES, usual_ffn: bool = False, **renamed: str
) -> dict[str, Any]:
    """The sizes of Config; a field whose name is "" is not read, and has the usual value.

    The usual value is `heads` for `kv_heads`, and width / heads for `head_dim`. With `usual_ffn`,
    or if the names are a GPT's, a config.json may leave out `ffn`, which then is 4 * width.
    """
    usual_ffn, names = usual_ffn or names is GPT_NAMES, names | renamed
    width, heads = fields.integer(names["width"]), fields.integer(names["heads"])
    if not names["head_dim"] and width % heads:
        fields.refuse(names["heads"], f"a divisor of {width}")

    def size(field: str, *usual: int) -> int:
        return fields.integer(names[field], *usual) if names[field] else usual[0]

    return {
        "vocab": size("vocab"),
        "width": width,
        "ffn": size("ffn", *((4 * width,) if usual_ffn else ())),
        "layers": fields.integer(names["layers"], most=MOST_LAYERS),
        "heads": heads,
        "kv_heads": size("kv_heads", heads),
        "head_dim": size("head_dim", width // heads),
        "context": size("context", 2048),
        "eps": fields.number(names["eps"], 1e-6, above=0, below=1),
    }


def read_rotary(fields: JsonFields, names: dict[str, str] | None = None, **rope: Any) -> dict:
    """The sizes and rotary fields; `names` renames sizes, `rope` are options of `read_rope`."""
    sizes = read_sizes(fields, **(names or {}))
    return sizes | read_rope(fields, sizes["head_dim"], sizes["context"], **rope)


def read_activation(fields: JsonFields, name: str = "hidden_act", usual: str = "silu") -> dict:
    """The fields of Config that say the activation."""
    return _ACTIVATIONS[fields.text(name, usual, among=_ACTIVATIONS)]


def read_windows(
    fields: JsonFields, layers: int, is_local: Callable[[int], bool], slides: bool = True
) -> dict[str, Any]:
    """The fields `local` and `window` of Config; {} if every layer has full attention.

    `is_local` says which layers are local where `layer_types` does not. Without `slides` none is.
    """
    size = fields.integer("sliding_window", 0, least=0)
    types = fields.texts("layer_types")
    if types and (len(types) != layers or not set(types) <= {_FULL, _LOCAL}):
        fields.refuse("layer_types", f"{_FULL} or {_LOCAL} for each of {layers} layers")
    if not size or not slides:
        if slides and _LOCAL in types:
            fields.refuse("sliding_window", f"a size, as layer_types names {_LOCAL}")
        return {}
    local = [t == _LOCAL for t in types] if types else map(is_local, range(layers))
    return {"local": tuple(local), "window": size}


def every(layer: int) -> bool:
    """All layers are local."""
    return True


def all_but_each(count: int) -> Callable[[int], bool]:
    """All layers are local but layers `count - 1`, `2 * count - 1`, ..."""
    return lambda layer: (layer + 1) % count != 0


def layer_pattern(fields: JsonFields, usual: int) -> Callable[[int], bool]:
    """Which layers are local where `layer_types` does not say it: all but every n-th."""
    if "layer_types" in fields:
        fields.ignore("sliding_window_pattern", "_sliding_window_pattern")
        return every
    usual = fields.integer("_sliding_window_pattern", usual)
    return all_but_each(fields.integer("sliding_window_pattern", usual))


def read_unrotated(fields: JsonFields, layers: int) -> tuple[bool, ...]:
    """The layers without rotary positions: `no_rope_layers` has 1 for those that have them."""
    interval = fields.integer("no_rope_layer_interval", 4)
    usual = [int((i + 1) % interval > 0) for i in range(layers)]
    rotated = fields.integers("no_rope_layers") or usual
    if len(rotated) != layers or not set(rotated) <= {0, 1}:
        fields.refuse("no_rope_layers", f"0 or 1 for each of {layers} layers")
    return tuple(not x for x in rotated)


LAYER_NORM = {"norm": "layer", "norm_bias": True}
BIASED = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}


def encoder_activation(fields: JsonFields, name: str, usual: str = "gelu") -> str:
    """The activation of an encoder in the words of `activate`."""
    words = _ACTIVATIONS[fields.text(name, usual, among=_ACTIVATIONS)]
    return words.get("activation", "gelu_tanh" if words.get("gelu") else "silu")
