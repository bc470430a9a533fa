"""Pooling: one vector for each text, from an encoder's hidden states, as a folder's files say."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax.numpy as jnp
from jax import Array

from ..architectures.layers.encoder_head import mean_of_tokens
from ..core.arguments import check_fields, takes
from ..io.json_fields import JsonFields, read_object
from .sentence_dense import DenseVector

MODES = {  # Pooling.mode: the field of 1_Pooling/config.json that switches it on
    "mean": "pooling_mode_mean_tokens",
    "first": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
}
CONFIG = "config.json"  # of each module, in its folder
MODULES, SIZES = "modules.json", "sentence_bert_config.json"
PARTS = ("Transformer", "Pooling", "Normalize")  # those without weights beside the model's
DENSE = "Dense"
_MOST_TOKENS = 2**20


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How hidden states become a vector (Reimers and Gurevych, 2019).

    `mode` is "mean" of the real tokens, "first" token, "max" of each number over the tokens, or
    "mean_sqrt_len", the sum over the square root of the number of tokens. With `normalized` the
    vector has length 1. Texts are cut at `length` tokens; 0 for the model's own limit. `dense`
    changes the vector before it is normalized.

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
    dense: DenseVector | None = None

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
        vectors = vectors if self.dense is None else self.dense(vectors)
        if not self.normalized:
            return vectors
        return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


@takes()
def read_pooling(folder: str | os.PathLike) -> Pooling:
    """The pooling that `modules.json` in a folder of sentence-transformers names.

    `1_Pooling/config.json` says the mode, and `sentence_bert_config.json` the length of a text. A
    layer such as `2_Dense` is read from its `model.safetensors`.

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
        Pooling(mode='first', normalized=False, length=0, dense=None)
    """
    folder = pathlib.Path(folder)
    files = sentence_files(folder)
    if MODULES not in files:
        raise ValueError(f"{folder / MODULES} is missing")
    return pooling_of(files, folder, folder)


def sentence_files(folder: pathlib.Path) -> dict[str, Any]:
    """{name: content} of the JSON files that say how a text becomes a vector; {} without them.

    Raises:
        ValueError: a file is malformed.
    """
    path = folder / MODULES
    if not path.is_file():
        return {}
    try:
        modules = json.loads(path.read_bytes())
        places = [entry["path"] for entry in modules if entry["type"] and entry["path"]]
        names = [f"{place}/{CONFIG}" for place in places if _inside(place)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no list of modules with a type and a path") from error
    objects = {x: read_object(folder / x) for x in (*names, SIZES) if (folder / x).is_file()}
    return {MODULES: modules} | objects


def pooling_of(files: dict[str, Any], source: Any, folder: pathlib.Path | None = None) -> Pooling:
    """The pooling that the files of `sentence_files` say; that of `Pooling()` if there are none.

    A dense layer's weights are read from the `folder` of the files.

    Raises:
        ValueError: they name a module or a mode that is not computed here, or lack one.
    """
    if MODULES not in files:
        return Pooling()
    kinds = {entry["type"].rpartition(".")[2]: entry["path"] for entry in files[MODULES]}
    order = [*PARTS[:2], DENSE, PARTS[2]]
    if [kind for kind in order if kind in kinds] != [
        entry["type"].rpartition(".")[2] for entry in files[MODULES]
    ]:
        raise ValueError(
            f"{source}: {MODULES} names {', '.join(kinds)}, expected {', '.join(order)}, each at "
            "most once and in this order"
        )
    if list(kinds)[:2] != ["Transformer", "Pooling"]:
        raise ValueError(f"{source}: {MODULES} has {', '.join(kinds)}, expected {PARTS[:2]}")
    name = f"{kinds['Pooling']}/{CONFIG}"
    if name not in files:
        raise ValueError(f"{source}: {name} is missing")
    sizes = JsonFields(files.get(SIZES, {}), f"{source}: {SIZES}: ")
    length = sizes.integer("max_seq_length", None, most=_MOST_TOKENS) or 0
    sizes.expect("do_lower_case", False)
    if DENSE in kinds and folder is None:
        raise ValueError(
            f"{source}: {MODULES} names {DENSE}, whose weights a model does not hold: give "
            "pooling=jm.models.read_pooling(folder)"
        )
    if DENSE in kinds and f"{kinds[DENSE]}/{CONFIG}" not in files:
        raise ValueError(f"{source}: {kinds[DENSE]}/{CONFIG} is missing")
    dense = DenseVector.read(folder / kinds[DENSE]) if DENSE in kinds and folder else None
    return Pooling(_mode(files[name], f"{source}: {name}"), PARTS[2] in kinds, length, dense)


def _inside(place: str) -> bool:
    """Whether a module's folder is one in the folder of modules.json."""
    return place == pathlib.PurePath(place).name


def _mode(config: dict, source: str) -> str:
    """The one mode that a configuration of pooling switches on."""
    fields = JsonFields(config, f"{source}: ")
    fields.ignore("word_embedding_dimension", "include_prompt")
    modes = [mode for mode, field in MODES.items() if fields.boolean(field, False)]
    fields.refuse_unread()
    if len(modes) != 1:
        raise ValueError(f"{source} switches on {modes}, expected one of {', '.join(MODES)}")
    return modes[0]
