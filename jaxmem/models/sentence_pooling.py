"""Pooling: one vector for each text, from an encoder's hidden states, as a folder's files say."""

import dataclasses
import json
import os
import pathlib
from typing import Any

from jax import Array

from ..architectures.layers.pooling import pooled, unit
from ..core.arguments import check_fields, takes
from ..io.json_fields import JsonFields, read_object

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
        vectors = pooled(hidden, mask, self.mode)
        return unit(vectors) if self.normalized else vectors


@takes()
def read_pooling(folder: str | os.PathLike) -> Pooling:
    """The pooling that `modules.json` in a folder of sentence-transformers names.

    `1_Pooling/config.json` says the mode, and `sentence_bert_config.json` the length of a text.

    Raises:
        ValueError: a file is missing or malformed, or names a module or a mode that is not
            computed here; the message names it. A dense layer has weights, so that a model that
            `jm.models.load` reads from the folder gives vectors itself.

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
    files = sentence_files(folder)
    if MODULES not in files:
        raise ValueError(f"{folder / MODULES} is missing")
    if DENSE in module_folders(files):
        raise ValueError(
            f"{folder / MODULES} names {DENSE}, whose weights no pooling holds; the model that "
            "jm.models.load reads from the folder applies it"
        )
    return pooling_of(files, folder)


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


def module_folders(files: dict[str, Any]) -> dict[str, str]:
    """{kind: folder} of the modules that the files of `sentence_files` name."""
    return {entry["type"].rpartition(".")[2]: entry["path"] for entry in files.get(MODULES, ())}


def pooling_of(files: dict[str, Any], source: Any) -> Pooling:
    """The pooling that the files of `sentence_files` say; that of `Pooling()` if there are none.

    Raises:
        ValueError: they name a module or a mode that is not computed here, or lack one.
    """
    if MODULES not in files:
        return Pooling()
    kinds = module_folders(files)
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
    return Pooling(_mode(files[name], f"{source}: {name}"), PARTS[2] in kinds, length)


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
