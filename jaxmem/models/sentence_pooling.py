"""Pooling: one vector for each text, from an encoder's hidden states, as a folder's files say."""

import dataclasses
import json
import os
import pathlib

import jax.numpy as jnp
from jax import Array

from ..architectures.layers.encoder_head import mean_of_tokens
from ..core.arguments import check_fields, takes
from ..io.json_fields import JsonFields, read_object

MODES = {  # Pooling.mode: the field of 1_Pooling/config.json that switches it on
    "mean": "pooling_mode_mean_tokens",
    "first": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
}
_PARTS = ("Transformer", "Pooling", "Normalize")
_MOST_TOKENS = 2**20


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How hidden states become a vector (Reimers and Gurevych, 2019).

    `mode` is "mean" of the real tokens, "first" token, "max" of each number over the tokens, or
    "mean_sqrt_len", the sum over the square root of the number of tokens. With `normalized` the
    vector has length 1. Texts are cut at `length` tokens; 0 for the model's own limit.

    Example:
        >>> import jax.numpy as jnp
        >>> hidden, mask = jnp.array([[[3.0, 1.0], [5.0, 0.0]]]), jnp.array([[True, True]])
        >>> Pooling("max", normalized=False)(hidden, mask).tolist()
        [[5.0, 1.0]]

    Raises:
        ValueError: `mode` is none of these, or `length` is below 0.
        TypeError: a field has another type.
    """

    mode: str = "mean"
    normalized: bool = True
    length: int = 0

    def __post_init__(self):
        check_fields(self)
        if self.mode not in MODES or self.length < 0:
            raise ValueError(
                f"mode is {self.mode!r} and length {self.length}, expected one of "
                f"{', '.join(MODES)} and at least 0"
            )

    def __call__(self, hidden: Array, mask: Array) -> Array:
        """The vectors (B, d) f32 of hidden states (B, T, d); `mask` (B, T) has the real tokens."""
        hidden, real = hidden.astype(jnp.float32), mask[..., None]
        match self.mode:
            case "first":
                vectors = hidden[:, 0]
            case "max":
                vectors = jnp.where(real, hidden, -jnp.inf).max(1)
            case "mean_sqrt_len":
                count = jnp.maximum(mask.sum(1, dtype=jnp.float32), 1)[:, None]
                vectors = mean_of_tokens(hidden, mask) * jnp.sqrt(count)
            case _:
                vectors = mean_of_tokens(hidden, mask)
        if not self.normalized:
            return vectors
        return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


@takes()
def read_pooling(folder: str | os.PathLike) -> Pooling:
    """The pooling that `modules.json` in a folder of sentence-transformers names.

    `1_Pooling/config.json` says the mode, and `sentence_bert_config.json` the length of a text.

    Raises:
        ValueError: a file is missing or malformed, or names a module or a mode that is not
            computed here; the message names it.

    Example:
        >>> import json, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = pathlib.Path(name)
        ...     kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
        ...     modules = [{"path": path, "type": f"models.{kind}"} for path, kind in kinds]
        ...     _ = (folder / "modules.json").write_text(json.dumps(modules))
        ...     (folder / "1_Pooling").mkdir()
        ...     config = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True}
        ...     _ = (folder / "1_Pooling/config.json").write_text(json.dumps(config))
        ...     read_pooling(folder)
        Pooling(mode='first', normalized=False, length=0)
    """
    folder = pathlib.Path(folder)
    kinds = _modules(folder / "modules.json")
    if list(kinds)[:2] != ["Transformer", "Pooling"]:
        raise ValueError(f"{folder}/modules.json has {', '.join(kinds)}, expected {_PARTS[:2]}")
    mode = _mode(folder / kinds["Pooling"] / "config.json")
    sizes, length = folder / kinds["Transformer"] / "sentence_bert_config.json", 0
    if sizes.is_file():
        fields = JsonFields(read_object(sizes), f"{sizes}: ")
        length = fields.integer("max_seq_length", 0, most=_MOST_TOKENS)
        fields.expect("do_lower_case", False)
    return Pooling(mode, "Normalize" in kinds, length)


def _modules(path: pathlib.Path) -> dict[str, str]:
    """{the kind of a module: its folder}, in their order."""
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        entries = json.loads(path.read_bytes())
        kinds = {entry["type"].rpartition(".")[2]: entry["path"] for entry in entries}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no list of modules with a type and a path") from error
    others = [kind for kind in kinds if kind not in _PARTS]
    if others or len(kinds) != len(entries):
        raise ValueError(
            f"{path} names {', '.join(kinds)}, expected {', '.join(_PARTS)}, each at most once"
        )
    return kinds


def _mode(path: pathlib.Path) -> str:
    """The one mode that a configuration of pooling switches on."""
    fields = JsonFields(read_object(path), f"{path}: ")
    fields.ignore("word_embedding_dimension", "include_prompt")
    modes = [mode for mode, field in MODES.items() if fields.boolean(field, False)]
    fields.refuse_unread()
    if len(modes) != 1:
        raise ValueError(f"{path} switches on {modes}, expected one of {', '.join(MODES)}")
    return modes[0]
