"""What `generate` is given, as rows of what the model reads: token ids, or spectrograms."""

import os
from typing import Any

import numpy as np
from jax import Array

from ..core.arguments import shown
from ..formats.wav import read_wav
from .model import Model, check_in_vocabulary
from .text_models import vocabulary


def prompt_rows(model: Model, prompt: Any) -> list[np.ndarray]:
    """The prompts as rows: token ids (tokens,) int32, or spectrograms (mels, frames) f32.

    Raises:
        ValueError: the model predicts no text, or has no tokenizer for a text; a prompt is empty,
            holds ids outside the vocabulary, or is a sound that the processor does not take.
        TypeError: a prompt is neither text nor integers, nor a sound where the model reads sounds.
    """
    vocab = vocabulary(model)
    if getattr(model.config, "reads", "text") == "text":
        return _tokens(model, prompt, vocab)
    return _spectrograms(model, prompt)


def whole_text(text: str) -> str:
    """The text, which JSON may have given half of a surrogate pair: no tokenizer takes that.

    Raises:
        ValueError: it has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a prompt has half of a surrogate pair: {error}") from error
    return text


def _spectrograms(model: Model, prompt: Any) -> list[np.ndarray]:
    """The sounds as rows (mels, frames) f32, of files, of samples, or already made."""
    is_file = isinstance(prompt, str | os.PathLike)
    if not is_file and (not np.iterable(prompt) or not len(prompt)):
        raise TypeError(f"prompt is {shown(prompt)}, expected WAV files, samples or spectrograms")
    if not is_file and not isinstance(prompt, list | tuple) and np.ndim(prompt) == 3:
        return list(np.asarray(prompt, np.float32))
    if model.processor is None:
        raise ValueError(f"{model.source} has no processor: expected (batch, mels, frames) floats")
    is_one = is_file or np.ndim(prompt[0]) == 0
    rows = []
    for sound in [prompt] if is_one and not _all_of(prompt, (str, os.PathLike)) else prompt:
        in_file = isinstance(sound, str | os.PathLike)
        samples, rate = read_wav(sound) if in_file else (np.asarray(sound), model.processor.rate)
        if not np.issubdtype(samples.dtype, np.floating):
            raise TypeError(f"a sound holds {samples.dtype}, expected a WAV file or floats")
        rows += list(model.processor([samples], rate=rate))
    return rows


def _tokens(model: Model, prompt: Any, vocab: int) -> list[np.ndarray]:
    """The prompts as rows of token ids, (tokens,) int32 each."""
    if isinstance(prompt, str):
        prompt = [prompt]
    if _all_of(prompt, str):
        if model.tokenizer is None:
            raise ValueError(f"{model.source} has no tokenizer: expected token ids, not text")
        prompt = [model.tokenizer.encode(whole_text(text)).ids for text in prompt]
    if not isinstance(prompt, list | tuple) and not np.ndim(prompt):
        raise TypeError(f"prompt is {shown(prompt)}, expected a text, or token ids (tokens,)")
    ragged = _all_of(prompt, (list, tuple, np.ndarray, Array))
    rows = [np.asarray(row) for row in prompt] if ragged else list(np.atleast_2d(prompt))
    if not rows or any(row.ndim != 1 or not row.size for row in rows):
        shapes = [row.shape for row in rows]
        raise ValueError(f"the prompts have shapes {shapes}, expected rows of ids, not empty")
    for row in rows:
        if not np.issubdtype(row.dtype, np.integer):
            raise TypeError(f"the prompt holds {row.dtype}, expected text or integer token ids")
        check_in_vocabulary(row, vocab)
    return [row.astype(np.int32) for row in rows]


def _all_of(prompt: Any, kind: Any) -> bool:
    """Whether the prompt is a list or tuple, not empty, whose members are all of a kind."""
    is_list = isinstance(prompt, list | tuple) and len(prompt) > 0
    return is_list and all(isinstance(row, kind) for row in prompt)
