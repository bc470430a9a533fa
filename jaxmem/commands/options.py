"""Options that commands share, and the texts and inputs they name."""

import pathlib
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import Positional, arg

from ..models import Model

ModelName = Annotated[
    Positional[str], arg(metavar="MODEL", help="A name, file or directory; see `jaxmem --help`.")
]
Json = Annotated[bool, arg(help="Print one JSON object on stdout and nothing else.")]
Count = Annotated[int | None, arg(metavar="N")]
TextFile = Annotated[str | None, arg(metavar="FILE")]


def tokens(model: Model, text: str, windows: int | None = None) -> np.ndarray:
    """The ids of a text that has at least `windows` windows, or one; no special tokens are added.

    Raises:
        ValueError: the text is too short, or the model predicts no text or has no tokenizer.
    """
    if not hasattr(model.config, "cache"):
        raise ValueError(f"{model.source} is an encoder: it predicts no text")
    if model.tokenizer is None:
        raise ValueError(f"{model.source} has no tokenizer, which reading a text takes")
    ids = np.asarray(model.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    count = 1 if windows is None else windows
    if count < 1 or len(ids) < count * window(model):
        raise ValueError(
            f"{count} windows of {window(model)} tokens, expected at least 1 and no more than are "
            f"in the text of {len(ids)} tokens"
        )
    return ids


def read(path: str) -> str:
    """The text of a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not UTF-8.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no text file {path}")
    try:
        return pathlib.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def weights(model: Model) -> dict:
    """The model's params.

    Raises:
        ValueError: it has shapes only.
    """
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(model.tensors)):
        raise ValueError(f"{model.source}, expected a model with weights")
    return model.params


def window(model: Model) -> int:
    """Tokens in one window of a text: 1,024, or what the model's context holds."""
    return min(1024, model.config.context)


def inputs(model: Model, length: int = 8) -> tuple[Any, ...]:
    """Shapes of what `model.apply` takes after its params."""
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    encoder = model.config.family == "bert"
    return (ids, jax.ShapeDtypeStruct(ids.shape, jnp.bool_)) if encoder else (ids,)
