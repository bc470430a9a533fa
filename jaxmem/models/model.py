"""Model: a configuration, its tensors, a tokenizer, and `apply`."""

import dataclasses
import functools
import json
import os
import pathlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ..architectures.family_modules import family_module
from ..core import lazy
from ..core.leaf import is_encoded
from ..kv_cache.page_pool import PagePool
from ..kv_cache.quantized import QuantizedCache
from .processor_files import Processor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from .generation import Generation

RECORD = "jaxmem.json"
PARAMS = "params.jm"
FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A language model or an encoder of texts, images or sounds, such as `jm.models.load` gives.

    `tensors` is a plain nested dict. Its leaves are lazy (still in the file), arrays, abstract
    (shapes only) or encoded. `encode` and `budget` take it, and hold one layer of a lazy leaf at a
    time. `params` is the same dict with every lazy leaf read. `source` says where it came from,
    `chat_template` is the Jinja text that makes messages a prompt, for `chat`; None without one.
    `processor` makes pixels of images, or samples or spectrograms of sounds, for a model that reads
    them. `hf_files` has the JSON files of the Hugging Face folder that the model was read from, by
    name; `jm.interop.to_hf` writes them again.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> model = jm.models.load("llama-8b")
        >>> model.params["layers"]["mlp"]["down"]["kernel"].shape
        (32, 14336, 4096)
        >>> ids = jax.ShapeDtypeStruct((1, 512), jnp.int32)
        >>> jax.eval_shape(model.apply, model.params, ids).shape
        (1, 512, 128256)
    """

    config: Any
    tensors: dict
    tokenizer: "Tokenizer | None"
    source: str
    chat_template: str | None = dataclasses.field(default=None, kw_only=True)
    processor: Processor | None = dataclasses.field(default=None, kw_only=True)
    hf_files: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    @functools.cached_property
    def params(self) -> dict:
        """The tensors as JAX arrays, read once; abstract and encoded leaves do not change."""
        read = lambda x: jax.device_put(x.load() if lazy.is_lazy(x) else x)
        dense = lambda x: lazy.is_lazy(x) or isinstance(x, np.ndarray)
        arrays = lambda x: read(x) if dense(x) else x
        with jax.ensure_compile_time_eval():  # inside a jit, too, they are kept
            return jax.tree.map(arrays, self.tensors, is_leaf=_is_leaf)

    def apply(self, params: dict, *args: Any, **kwargs: Any) -> Any:
        """Runs the model with `params`, dense or encoded.

        `apply(params, ids)`, with ids (B, T), gives logits (B, T, vocab) in f32; with `cache=` it
        gives (logits, cache), and with a pool of `jm.Pages` (logits, pool). For an encoder
        `apply(params, ids, mask)` gives hidden states (B, T, width), or the logits of its head; a
        third array has the segment types. An encoder of images takes pixels (B, channels, height,
        width), two towers `apply(params, ids, pixels, mask)`, of which ids or pixels may be None.
        An encoder of sounds takes samples (B, S), and a mask of those that are no padding. For an
        encoder-decoder `apply(params, source, ids, mask)` gives the logits (B, T, vocab) of its
        decoder's ids, with a mask of the source's real tokens; without ids the decoder reads the
        source, too. A source of sound is spectrograms (B, mels, frames). Works under every JAX
        transformation.

        Raises:
            ValueError: there are more tokens than the model has positions; ids that are not traced
                are outside the vocabulary; they are no rows of integers.
            TypeError: the ids are no array.
        """
        self._check_ids(*args, is_call="method" not in kwargs)
        forward = self._forward
        if any(map(is_encoded, jax.tree.leaves(params, is_leaf=is_encoded))):
            from ..core.lifting import lift, lift_inference

            kinds = dict | QuantizedCache | PagePool
            has_cache = any(isinstance(x, kinds) for x in (*args, *kwargs.values()))
            forward = lift_inference(forward) if has_cache else lift(forward)
        return forward(params, *args, **kwargs)

    def _forward(self, params: dict, *args: Any, **kwargs: Any) -> Any:
        """`apply` for dense params."""
        return family(self.config).module(self.config).apply({"params": params}, *args, **kwargs)

    def _check_ids(self, *args: Any, is_call: bool = True) -> None:
        """Refuses what are no ids, and those outside the vocabulary, which a look-up would clip.

        Traced ids may have any value. Another method than the call (`is_call`) has other arguments.
        """
        arrays = args[: 2 if self.config.family == "seq2seq" else 1] if self.config.vocab else ()
        for ids in arrays:
            sound = getattr(self.config, "mels", 0) and np.ndim(ids) == 3  # spectrograms
            if ids is None or isinstance(ids, dict) or sound:
                continue
            if is_call:
                _check_are_ids(ids)
            if _is_known(ids):
                check_in_vocabulary(np.asarray(ids), self.config.vocab)
        kinds = getattr(self.config, "types", 0)
        if kinds and len(args) == 3 and args[2] is not None and _is_known(args[2]):
            check_in_vocabulary(np.asarray(args[2]), kinds, "segment types")

    def chat(self, messages: Any, **options: Any) -> "Generation":
        """Generates the answer to messages: `jm.models.chat(self, messages, **options)`.

        Raises:
            ValueError: the model has no chat template, tokenizer or weights.
        """
        from .chat_messages import chat

        return chat(self, messages, **options)

    def save(self, path: str | os.PathLike, params: dict | None = None) -> None:
        """Writes a directory that `load` reads: configuration, tokenizer, template and `params`.

        `params` are this model's tensors encoded, or None for the tensors themselves. The directory
        appears whole or not at all, and replaces only a directory that `save` wrote. Several
        processes write it together, in a file system that they share.

        Raises:
            ValueError: `path` exists and was not written by `save`.
        """
        from ..io.multihost import replacing_together

        path = pathlib.Path(path)
        if path.exists() and not (path / RECORD).exists():
            raise ValueError(f"{path} exists and was not written by jaxmem; choose another place")
        with replacing_together(path, self.source.encode(), replace_directory=True) as new:
            self._write(new, self.params if params is None else params)

    def _write(self, folder: pathlib.Path, params: dict) -> None:
        """Writes the files of `save` into an empty folder."""
        from ..io import checkpoint

        checkpoint.save(folder / PARAMS, params)
        if jax.process_index() > 0:
            return
        if self.tokenizer is not None:
            (folder / "tokenizer.json").write_text(self.tokenizer.to_str(), encoding="utf-8")
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        record = {"format": FORMAT, "source": self.source, "config": self.config.to_dict()}
        if self.processor is not None:
            record["processor"] = dataclasses.asdict(self.processor)
        record |= {"hf_files": self.hf_files} if self.hf_files else {}
        (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def family(config: Any) -> ModuleType:
    """The Python module of a configuration's family, with `Config`, `module` and `weights`."""
    return family_module(config.family)


def check_in_vocabulary(ids: np.ndarray, vocab: int, what: str = "token ids") -> None:
    """Refuses token ids that a model of `vocab` tokens does not have, or other rows of a table.

    Raises:
        ValueError: an id is negative, or not below `vocab`.

    Example:
        >>> import numpy as np
        >>> check_in_vocabulary(np.array([3, 64]), 64)
        Traceback (most recent call last):
        ValueError: the token ids reach from 3 to 64, expected 0 to below 64
    """
    if ids.size and (ids.min() < 0 or ids.max() >= vocab):
        raise ValueError(
            f"the {what} reach from {ids.min()} to {ids.max()}, expected 0 to below {vocab}"
        )


def _is_known(ids: Any) -> bool:
    """Whether the values of an array can be read: it is not traced, and all of it is here."""
    traced = isinstance(ids, jax.core.Tracer | jax.ShapeDtypeStruct)
    return not traced and getattr(ids, "is_fully_addressable", True)


def _check_are_ids(ids: Any) -> None:
    """Refuses what is no array (batch, tokens) of integers."""
    if not hasattr(ids, "dtype"):
        raise TypeError(
            f"the ids are a {type(ids).__name__}, expected an array of integers (batch, tokens)"
        )
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"the ids are {ids.dtype} of shape {ids.shape}, expected integers (batch, tokens)"
        )


def _is_leaf(x: Any) -> bool:
    return lazy.is_lazy(x) or is_encoded(x)
