"""Options that several commands have, and the texts that they name."""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal

import jax
import numpy as np
from tyro.conf import Positional, arg

from ..core.leaf import is_encoded
from ..core.paths import is_whole
from ..models import Model, load
from ..models.example_inputs import window
from ..models.text_models import vocabulary

ModelName = Annotated[
    Positional[str], arg(metavar="MODEL", help="A name, file or directory; see `jaxmem --help`.")
]
Count = Annotated[int | None, arg(metavar="N")]
TextFile = Annotated[str | None, arg(metavar="FILE")]


@dataclasses.dataclass(frozen=True)
class CommonOptions:
    """What every command takes."""

    _: dataclasses.KW_ONLY
    json: bool = False
    """Print one JSON object on stdout and nothing else."""
    no_cache: bool = False
    """Compile every program anew, and keep none on disk for the next run."""


@dataclasses.dataclass(frozen=True)
class SourceOptions(CommonOptions):
    """What a command takes that reads a model."""

    model: ModelName
    _: dataclasses.KW_ONLY
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The type of weights that are not encoded: that of the file if it is bfloat16 throughout, else
    float32, unless given."""
    encoded: bool = False
    """Keep the codes of a quantized file as they are, where there is a codec for them."""

    def load(self) -> Model:
        """The model that is named.

        Raises:
            ValueError: `--encoded` of a source without codes; what `jm.models.load` raises.
        """
        try:
            model = load(self.model, dtype=self.dtype, encoded=self.encoded)
        except ValueError as error:
            raise ValueError(str(error).replace("encoded=True", "--encoded")) from error
        if self.encoded and not any(
            map(is_encoded, jax.tree.leaves(model.tensors, is_leaf=is_whole))
        ):
            raise ValueError(
                f"--encoded: {self.model} holds no codes that can be kept; leave --encoded out"
            )
        return model


class Text(str):
    """A text with the path of the file that it was read from."""

    path: str = "the text"


def tokens(model: Model, text: str, windows: int | None = None) -> np.ndarray:
    """The token ids (tokens,) of a text of at least `windows` windows, or one; no special tokens.

    Raises:
        ValueError: the text is too short; the model predicts no text, or has no tokenizer.
    """
    vocabulary(model)  # refuses a model that predicts no text
    if model.tokenizer is None:
        raise ValueError(f"{model.source} has no tokenizer, which reading a text takes")
    ids = np.asarray(model.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    count = 1 if windows is None else windows
    if count < 1:
        raise ValueError(f"{count} windows, expected at least 1")
    if len(ids) < count * window(model):
        raise ValueError(
            f"{getattr(text, 'path', Text.path)} has {len(ids)} tokens, expected at least {count} "
            f"windows of {window(model)} tokens"
        )
    return ids


def read(path: str) -> Text:
    """The text of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no text file {path}")
    try:
        text = Text(pathlib.Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    text.path = path
    return text


def steps(tune: int | None, calibrate: Any, usual: int) -> int:
    """Steps of scale tuning, if there is a text to `calibrate`: `tune`, or `usual` if it is None.

    Raises:
        ValueError: `tune` is negative, or given without `calibrate`.

    Example:
        >>> steps(None, "a.txt", 64), steps(0, "a.txt", 64), steps(None, None, 64)
        (64, 0, 64)
    """
    if tune is not None and tune < 0:
        raise ValueError(f"--tune is {tune}, expected at least 0 steps")
    if tune is not None and not calibrate:
        raise ValueError(f"--tune {tune} wants a text to tune on; give --calibrate")
    return usual if tune is None else tune


def weights(model: Model) -> dict:
    """The model's params.

    Raises:
        ValueError: the model has shapes only.
    """
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(model.tensors)):
        raise ValueError(f"{model.source}, expected a model with weights")
    return model.params
