"""Texts for models that predict hidden tokens: batches to train on, and a text held out."""

import numpy as np

from ..data import Batches, MaskedBatches
from ..models import Model
from ..planner.model_limits import predicts_hidden_tokens
from . import options

MASKS = ("[MASK]", "<mask>")  # what encoders call the token that hides another


def held_out_tokens(model: Model, path: str) -> np.ndarray:
    """The token ids (tokens,) of a held-out text, without special tokens.

    Raises:
        ValueError: the text is too short, or the model predicts no tokens or has no tokenizer.
    """
    text = options.read(path)
    if model.tokenizer is None or not predicts_hidden_tokens(model.config):
        return options.tokens(model, text)
    return np.asarray(model.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def hidden_in_part(model: Model, batches: Batches, seed: int) -> MaskedBatches:
    """Batches for an encoder, whose tokens are hidden in part by its tokenizer's mask token.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    ids = [model.tokenizer.token_to_id(text) for text in MASKS]
    mask_id = next((i for i in ids if i is not None), None)
    if mask_id is None:
        raise ValueError(f"the tokenizer of {model.source} has none of {', '.join(MASKS)}")
    special = [
        i for i, token in model.tokenizer.get_added_tokens_decoder().items() if token.special
    ]
    return MaskedBatches(batches, mask_id, model.config.vocab, never=special, seed=seed)
