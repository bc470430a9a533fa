"""InputMargin: by how many nats an answer is ahead, as a function of a text's input vectors.

What gradients explain: the value that `occlusion` measures by leaving words out, but of the vectors
that the model's embedding gives, so that it can be differentiated.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.leaf import decode, is_encoded
from ..core.paths import leaf_paths
from ..models.model import Model
from ..models.sentence_vectors import vectors_of_texts
from .looked_up import rows_at, table_path, with_vectors
from .path_gradients import integrated_gradients
from .probe import Probe
from .prompt_template import fill
from .task import Task
from .task_scores import encoded_pair

_NODES = 16  # of a piece of a path
_STEP = 16  # lengths are rounded up to a multiple, so that few programs compile


@dataclasses.dataclass(frozen=True, eq=False)
class AskedText:
    """`ids` (B, T) of a text's rows, and `targets` (B, T) of the choices, -1 where there is none.

    `words` (T,) has the number of the word that a token is of, -1 for all others, and `count` is
    how many words there are. `answer` is the row, or the class of a probe, whose margin is asked
    for.
    """

    ids: np.ndarray
    targets: np.ndarray
    real: np.ndarray
    words: np.ndarray
    count: int
    answer: int


class InputMargin:
    """The margin of one model; its programs compile once for texts of one rounded length.

    Args:
        model: a model of texts, with a tokenizer.
        probe: of an encoder: the classes that its vectors are of.
    """

    def __init__(self, model: Model, probe: Probe | None = None):
        self.model, self.path = model, table_path(model)
        self.vectors_of_texts, self.weights = None, None
        if probe is not None:
            self.vectors_of_texts, self.weights = vectors_of_texts(model), probe.weights
        self.margin = jax.jit(self._margin)
        self.gradient = jax.jit(jax.grad(self._margin))
        self.path_gradients = jax.jit(self._path_gradients)

    def table(self) -> np.ndarray:
        """The vectors (vocab, d) of all tokens, in float32."""
        leaves = jax.tree.leaves(self.model.params, is_leaf=is_encoded)
        leaf = leaves[leaf_paths(self.model.params).index(self.path)]
        return np.asarray(decode(leaf), np.float32)

    def vectors(self, text: AskedText) -> Array:
        """The vectors (T, d) of the text's tokens."""
        return rows_at(self.model.params, self.path, text.ids[0]).astype(jnp.float32)

    def baseline(self, text: AskedText) -> Array:
        """The vectors with that of the padding or the end of a text for each token of a word."""
        tokenizer, config = self.model.tokenizer, self.model.config
        ids = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
        ends = (*(i for i in ids if i is not None), *getattr(config, "eos", ()), 0)
        vector = rows_at(self.model.params, self.path, jnp.array(ends[:1])).astype(jnp.float32)
        return jnp.where(text.words[:, None] >= 0, vector, self.vectors(text))

    def arguments(self, text: AskedText) -> tuple:
        """What `margin` takes beside the vectors."""
        return self.model.params, text.ids, text.targets, text.real, text.words >= 0, text.answer

    def integrated(
        self, text: AskedText, *, missing: float = 0.02, pieces: int = 8
    ) -> tuple[np.ndarray, float, float]:
        """(the worth of each word, what all of them should add up to, what is missing of it).

        The path is cut into 1, 2, 4 ... up to `pieces` of 16 nodes each, until no more than the
        share `missing` is missing.
        """
        x, base = self.vectors(text), self.baseline(text)
        args = self.arguments(text)
        whole = float(self.margin(x, *args)) - float(self.margin(base, *args))
        count = 1
        while True:
            ends = [base + (x - base) * (i / count) for i in range(count + 1)]
            parts = [self.path_gradients(b, a, *args) for a, b in itertools.pairwise(ends)]
            worth = sum(np.asarray(part, np.float64).sum(-1) for part in parts)
            gap = whole - float(worth.sum())
            if abs(gap) <= missing * abs(whole) or count >= pieces:
                return by_word(worth, text.words, text.count), whole, gap
            count *= 2

    def _margin(self, x, params, ids, targets, real, replaced, answer) -> Array:
        rows = rows_at(params, self.path, ids)
        rows = jnp.where(replaced[:, None], x.astype(rows.dtype), rows)
        params = with_vectors(params, self.path, rows)
        if self.weights is None:
            logits = self.model.apply(params, ids).astype(jnp.float32)
            logprobs = jax.nn.log_softmax(logits)
            chosen = jnp.take_along_axis(logprobs, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
            scores = jnp.where(targets >= 0, chosen, 0).sum(-1)
        else:
            vector = self.vectors_of_texts(params, ids, real)[0].astype(jnp.float32)
            scores = vector @ self.weights[:-1] + self.weights[-1]
        others = jnp.where(jnp.arange(len(scores)) == answer, -jnp.inf, scores)
        return scores[answer] - others.max()

    def _path_gradients(self, x, base, *args) -> Array:
        return integrated_gradients(lambda x: self._margin(x, *args), x, base, steps=_NODES)


def asked_text(
    model: Model, task: Task, item: Mapping[str, Any], field: str, answer: int
) -> AskedText:
    """The rows of an item: its text with each choice, or the text alone where a probe is asked.

    Raises:
        ValueError: the prompt does not hold the field's text as it is.
    """
    prompt, text = fill(task.prompt, item), item[field]
    start = prompt.find(text)
    if start < 0:
        raise ValueError(f"{task.name}: the prompt {prompt!r} does not hold {text!r}")
    encoding = model.tokenizer.encode(prompt if task.kind == "probe" else prompt.rstrip())
    if task.kind == "probe":
        rows, targets = [encoding.ids], [[-1] * len(encoding.ids)]
    else:
        pairs = [
            encoded_pair(model, prompt, task.delimiter + choice)
            for choice in task.choice_texts(item)
        ]
        rows = [[*before, *after[:-1]] for before, after in pairs]
        targets = [[-1] * (len(before) - 1) + list(after) for before, after in pairs]
    width = -(-max(map(len, rows)) // _STEP) * _STEP
    width = min(width, max(getattr(model.config, "context", 0) or width, *map(len, rows)))
    ids, wanted = np.zeros((len(rows), width), np.int32), np.full((len(rows), width), -1, np.int32)
    for i, (row, target) in enumerate(zip(rows, targets)):
        ids[i, : len(row)], wanted[i, : len(row)] = row, target
    real = np.arange(width) < np.array([len(row) for row in rows])[:, None]
    words = np.full(width, -1)
    for at, (first, last) in enumerate(encoding.offsets[: len(encoding.ids)]):
        letters = prompt[first:last].strip()
        if letters and first < start + len(text) and last > start:
            begins = first + prompt[first:last].index(letters) - start
            words[at] = text[: max(begins, 0)].count(" ")
    return AskedText(ids, wanted, real, words, len(text.split(" ")), answer)


def by_word(worth: np.ndarray, words: np.ndarray, count: int) -> np.ndarray:
    """The sums of the tokens' worth (T,) by word; a word without tokens is worth nothing.

    Example:
        >>> by_word(np.array([9.0, 1.0, 2.0, 3.0]), np.array([-1, 0, 0, 1]), 3).tolist()
        [3.0, 3.0, 0.0]
    """
    found = np.zeros(count)
    np.add.at(found, words[words >= 0], worth[words >= 0])
    return found
