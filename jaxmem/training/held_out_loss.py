"""HeldOut: the loss of a text that is not trained on, by the program that training compiles."""

from typing import Any

import jax
import numpy as np

from ..data.masked_tokens import MaskedBatches
from ..models import Model
from ..models.model import check_in_vocabulary
from ..planner.model_limits import predicts_hidden_tokens
from ..planner.train_and_serve_steps import Built


class HeldOut:
    """Measures the mean loss of a text, cut into rows as long as those of training.

    Of a model that predicts hidden tokens, `training` says which ones are hidden: always the same.

    Raises:
        ValueError: the text is shorter than one micro-batch, or has ids the model does not know;
            or the model predicts hidden tokens, and `training` hides none.
    """

    def __init__(self, built: Built, ids: Any, model: Model, training: Any):
        self._loss, self._batches = jax.jit(built.loss), None
        if ids is None:
            return
        hides = predicts_hidden_tokens(model.config)
        if hides and not isinstance(training, MaskedBatches):
            raise ValueError(
                f"{model.source} predicts hidden tokens: a held-out text wants MaskedBatches"
            )
        recipe = built.recipe
        rows, ids = recipe.batch // recipe.micro, np.asarray(ids)
        count = len(ids) // (rows * recipe.seq)
        if ids.ndim != 1 or count == 0:
            raise ValueError(
                f"the held-out text has {ids.size} tokens, expected at least {rows} rows of "
                f"{recipe.seq}"
            )
        check_in_vocabulary(ids, model.config.vocab)
        batches = ids[: count * rows * recipe.seq].astype(np.int32)
        batches = batches.reshape(count, rows, recipe.seq)
        self._batches = [_one_text_a_row(x) if recipe.packed else x for x in batches]
        if hides:
            self._batches = [training.hidden(x, i) for i, x in enumerate(self._batches)]

    def __call__(self, *trained_and_frozen: Any) -> dict[str, float]:
        """{"held_out_loss": nats a token}; nothing without a text."""
        if self._batches is None:
            return {}
        losses = [float(self._loss(*trained_and_frozen, rows)) for rows in self._batches]
        return {"held_out_loss": sum(losses) / len(losses)}


def _one_text_a_row(ids: np.ndarray) -> dict[str, np.ndarray]:
    """A packed batch whose rows are one text each."""
    steps = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    return {"ids": ids, "segments": np.ones_like(ids), "positions": steps, "mask": steps > 0}
