"""log p(continuation | context): first tokens that texts share are read once for all of them.

Rows are trees of texts, in which a token attends to those that it goes on from. So the choices of a
context share it, sentences that begin alike share that part, and rows have little padding. Where a
layer has a state, and in modules of users, each text is a row. Few shapes are used, so that few
programs compile: models of one configuration share them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ..core.leaf import is_encoded
from .continuation_programs import programs_of
from .model import Model, check_in_vocabulary
from .padded_shapes import padded_rows, padded_widths
from .text_models import context as most_tokens
from .text_models import reads_source, vocabulary
from .text_trees import arrays_of, sums_of, trees_of

_MOST_LOGITS = 2**26  # in one batch: 256 MiB in float32
_MOST_TOKENS = 1024  # in one batch
_TREE_TOKENS = 256  # of a row with several texts
_COMPILATION = 7e10  # what a program costs, in tokens of a model with one weight: a core's 2 s


@dataclasses.dataclass(frozen=True)
class ContinuationScore:
    """`logprob` in nats, summed over `tokens`; `greedy` if each is the most probable one."""

    logprob: float
    greedy: bool
    tokens: int


class ContinuationScorer:
    """Scores continuations with one model; its programs are compiled once for all calls.

    Encoded params stay encoded.

    Args:
        model: a model with weights that predicts text.
        params: its weights, dense or encoded; None for `model.params`.
        batch: the most rows in a batch.

    Raises:
        ValueError: the model predicts no text, or has no weights.
        NotImplementedError: it is an encoder-decoder.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmem.architectures import llama
        >>> from jaxmem.models import Model
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config = llama.Config(**sizes)
        >>> init = jax.jit(llama.module(config).init)
        >>> params = init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        >>> scorer = ContinuationScorer(Model(config, params, None, "random"))
        >>> [score.tokens for score in scorer([([1, 2, 3, 4, 5], [6]), ([1, 2, 3, 4, 5], [7, 8])])]
        [1, 2]
    """

    def __init__(self, model: Model, params: Any = None, *, batch: int = 32):
        if reads_source(model):
            raise NotImplementedError(
                f"{model.source} is an encoder-decoder: its continuations are not scored here"
            )
        if batch < 1:
            raise ValueError(f"batch is {batch}, expected at least 1")
        self.vocab, self.most, self.batch = vocabulary(model), most_tokens(model), batch
        self.params = model.params if params is None else params
        leaves = jax.tree.leaves(self.params, is_leaf=is_encoded)
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(self.params)):
            raise ValueError(f"{model.source} has shapes only, expected a model with weights")
        self._grows = _has_trees(model)
        self._programs = programs_of(model)
        kind = (jax.tree.structure(self.params), leaves[0].dtype)
        self._compiled = self._programs.compiled[kind]
        weights = sum(leaf.size for leaf in leaves)
        self._program = int(min(max(_COMPILATION / weights, 16), 2**14))

    def __call__(
        self,
        requests: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[ContinuationScore]:
        """The score of each (context ids, continuation ids), in the order of the requests.

        `progress(done, requests)` is called after each batch.

        Raises:
            ValueError: a context or a continuation has no token, or ids outside the vocabulary;
                both together are longer than the model's context, of which the last token is
                not read.
        """
        pairs = [(tuple(map(int, a)), tuple(map(int, b))) for a, b in requests]
        for number, pair in enumerate(pairs):
            self._check(number, *pair)
        found: dict[tuple, ContinuationScore] = {}
        asked = list(dict.fromkeys(pairs))
        for scores in self._trees(asked) if self._grows else self._alone(asked):
            found |= scores
            if progress:
                progress(len(found), len(asked))
        return [found[pair] for pair in pairs]

    def _trees(self, pairs: list[tuple]) -> Iterator[dict[tuple, ContinuationScore]]:
        """The scores of each batch of rows, whose texts share their first tokens."""
        room = min(_TREE_TOKENS, self.most, max(64, _MOST_LOGITS // self.vocab))
        trees = trees_of(pairs, room=room, most=self.most)
        for few, rows, width in self._batches("trees", trees, lambda tree: tree.size):
            arrays = arrays_of(few, rows, width)
            scores = map(np.asarray, self._programs.tree(self.params, *arrays))
            yield {
                pair: ContinuationScore(logprob, greedy, len(pair[1]))
                for pair, logprob, greedy in sums_of(few, *scores)
            }

    def _alone(self, pairs: list[tuple]) -> Iterator[dict[tuple, ContinuationScore]]:
        """The scores of each batch of rows that hold a context and its continuation."""
        length = lambda pair: sum(map(len, pair)) - 1
        for few, rows, width in self._batches("rows", pairs, length):
            ids, targets = np.zeros((rows, width), np.int32), np.full((rows, width), -1, np.int32)
            for i, (context, one) in enumerate(few):
                text = (*context, *one)
                ids[i, : len(text) - 1] = text[:-1]
                targets[i, len(context) - 1 : len(text) - 1] = one
            scores = map(np.asarray, self._programs.whole(self.params, ids, targets))
            yield {
                pair: ContinuationScore(float(logprob), bool(greedy), len(pair[1]))
                for pair, logprob, greedy in zip(few, *scores)
            }

    def _batches(
        self, kind: str, texts: list, length: Callable[[Any], int]
    ) -> Iterator[tuple[list, int, int]]:
        """(some of the texts, the rows and the width of their program), the shorter texts first."""
        compiled = {width for of, _, width in self._compiled if of == kind}
        if not texts:
            return
        lengths = [length(text) for text in texts]
        widths = padded_widths(lengths, compiled, program=self._program, most=self.most)
        ordered = sorted(texts, key=length)
        for width in widths:
            own = [text for text in ordered if length(text) <= width]
            ordered = ordered[len(own) :]
            most = self._most_rows(width)
            for start in range(0, len(own), most):
                few = own[start : start + most]
                yield few, self._rows(kind, len(few), width, most), width

    def _rows(self, kind: str, count: int, width: int, most: int) -> int:
        """The rows of a batch, whose program will be compiled."""
        compiled = {rows for of, rows, own in self._compiled if (of, own) == (kind, width)}
        rows = padded_rows(count, width, compiled, program=self._program, most=most)
        self._compiled.add((kind, rows, width))
        return rows

    def _most_rows(self, width: int) -> int:
        """Rows of a batch whose tokens and logits are few enough: a power of two."""
        rows = min(self.batch, max(1, _MOST_TOKENS // width))
        rows = min(rows, max(1, _MOST_LOGITS // (self.vocab * width)))
        return 1 << (rows.bit_length() - 1)

    def _check(self, number: int, context: tuple, continuation: tuple) -> None:
        if not context or not continuation:
            raise ValueError(
                f"request {number} has {len(context)} tokens of context and {len(continuation)} "
                "of continuation, expected at least 1 of both"
            )
        if len(context) + len(continuation) - 1 > self.most:
            raise ValueError(
                f"request {number} has {len(context)} tokens of context and {len(continuation)} "
                f"of continuation, expected at most {self.most + 1} together"
            )
        check_in_vocabulary(np.array((*context, *continuation)), self.vocab)


def _has_trees(model: Model) -> bool:
    """Whether a row of the model may hold a tree of texts."""
    c = model.config
    by_length = getattr(c, "rope_dynamic", None) or getattr(c, "rope_long_factors", None)
    return type(model) is Model and getattr(c, "recurrence", None) is None and not by_length
