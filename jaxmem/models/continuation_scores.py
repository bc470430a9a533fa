"""log p(continuation | context): a context is read once for all of its continuations.

Contexts of nearly one length are read together, and their keys and values kept up to where the
shortest of them ends; each continuation is then read with what is left of its context, so that all
rows of a batch stand at one position. Contexts with one continuation are read with it. Lengths are
rounded up, so that few programs compile.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.leaf import is_encoded
from .model import Model, check_in_vocabulary
from .next_token_logits import CACHE_STEP, rows_of
from .text_models import context as most_tokens
from .text_models import reads_source, vocabulary

_MOST_LOGITS = 2**26  # in one batch: 256 MiB in float32
_LEAST_SHARED = 4  # tokens of a context that are worth a program of their own
_MOST_READ_AGAIN = 4  # tokens of a context that each of its continuations may read again


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
        self._cache, self._dtype = model.config.cache, leaves[0].dtype
        # A state would take in the padding after a context.
        by_token = getattr(model.config, "by_token", False)
        self._shares = self._cache is not None and not by_token
        self._shares = self._shares and not getattr(model.config, "recurrence", None)
        apply = model.apply
        self._read = jax.jit(lambda params, ids, cache: apply(params, ids, cache, 0)[1])
        self._rows = jax.jit(lambda params, ids, targets: _score(apply(params, ids), targets))

        def after(params, ids, targets, cache, which, position):
            logits, _ = apply(params, ids, rows_of(cache, which), position)
            return _score(logits, targets)

        self._after = jax.jit(after)

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
        groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for context, continuation in dict.fromkeys(pairs):
            groups.setdefault(context, []).append(continuation)
        found: dict[tuple, ContinuationScore] = {}

        def tell():
            if progress:
                progress(len(found), sum(map(len, groups.values())))

        shared = {c: few for c, few in groups.items() if self._is_shared(c, few)}
        for batch in self._batches(shared):
            found |= dict(zip(batch, self._shared(batch)))
            tell()
        alone = [(c, one) for c, few in groups.items() if c not in shared for one in few]
        alone.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        for few in _chunks(alone, self._most_rows):
            found |= dict(zip(few, self._alone(few)))
            tell()
        return [found[pair] for pair in pairs]

    def _is_shared(self, context: tuple, continuations: list[tuple]) -> bool:
        enough = len(continuations) > 1 and len(context) > _LEAST_SHARED
        longest = max(map(len, continuations))
        room = len(context) + _rounded(longest + _MOST_READ_AGAIN)
        return self._shares and enough and room <= self.most

    def _batches(self, groups: dict[tuple, list[tuple]]) -> Iterator[list[tuple]]:
        """Lists of (context, continuation), whose contexts are of nearly one length."""
        batch: list[tuple] = []
        for context in sorted(groups, key=lambda c: (len(c), c)):
            pairs = [(context, continuation) for continuation in sorted(groups[context], key=len)]
            first = batch[0][0] if batch else context
            longest = max(len(c) for _, c in batch + pairs) + _MOST_READ_AGAIN
            far = len(context) - len(first) > _MOST_READ_AGAIN - 1
            if batch and (far or len(batch) + len(pairs) > self._most_rows(longest)):
                yield batch
                batch = []
            rows = self._most_rows(max(len(c) for _, c in pairs) + _MOST_READ_AGAIN)
            while len(pairs) > rows:
                yield pairs[:rows]
                pairs = pairs[rows:]
            batch += pairs
        if batch:
            yield batch

    def _most_rows(self, longest: int) -> int:
        """Rows of a batch whose logits fit: a power of two."""
        rows = max(1, min(self.batch, _MOST_LOGITS // (self.vocab * _rounded(longest))))
        return 1 << (rows.bit_length() - 1)

    def _shared(self, pairs: list[tuple]) -> list[ContinuationScore]:
        """The scores of continuations, each read from where the shortest context ends."""
        contexts = list(dict.fromkeys(context for context, _ in pairs))
        before = min(map(len, contexts)) - 1
        texts = [(*context[before:], *c[:-1]) for context, c in pairs]
        targets = [(*_nothing(context[before:]), *c) for context, c in pairs]
        width = _rounded(max(map(len, texts)))
        ids, targets = _padded(texts, targets, _power_of_two(len(pairs)), width)
        prefixes = [context[:before] for context in contexts]
        length = min(_rounded(before), self.most)
        prefix, _ = _padded(prefixes, prefixes, _power_of_two(len(contexts)), length)
        which = np.zeros(len(ids), np.int32)
        which[: len(pairs)] = [contexts.index(context) for context, _ in pairs]
        room = max(length, before + width)
        room = min(room + -room % CACHE_STEP, max(self.most, room))
        cache = self._cache(len(prefix), room, self._dtype)
        cache = self._read(self.params, prefix, cache)
        return _taken(self._after(self.params, ids, targets, cache, which, before), pairs)

    def _alone(self, pairs: list[tuple]) -> list[ContinuationScore]:
        """The scores of rows that hold a context and its continuation."""
        texts = [(*context, *continuation[:-1]) for context, continuation in pairs]
        targets = [(*_nothing(context), *continuation) for context, continuation in pairs]
        longest = max(map(len, texts))
        width = min(_rounded(longest), self.most)
        rows = self._most_rows(longest) if len(pairs) > 1 else 1
        scores = self._rows(self.params, *_padded(texts, targets, rows, width))
        return _taken(scores, pairs)

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


def _score(logits: Array, targets: Array) -> tuple[Array, Array]:
    """(log-probabilities (B,) summed over targets (B, T), whether all are most probable (B,)).

    `logits` are (B, T, vocab); a target of -1 is none.
    """
    logits, real = logits.astype(jnp.float32), targets >= 0
    at = jnp.maximum(targets, 0)[..., None]
    chosen = jnp.take_along_axis(logits, at, axis=-1)[..., 0]
    logprobs = jnp.where(real, chosen - jax.nn.logsumexp(logits, axis=-1), 0)
    greedy = jnp.where(real, logits.argmax(-1) == targets, True)
    return logprobs.sum(-1), greedy.all(-1)


def _padded(
    texts: Sequence[tuple], targets: Sequence[tuple], rows: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, targets), (rows, width) int32: ids are padded with 0, targets with -1."""
    ids, wanted = np.zeros((rows, width), np.int32), np.full((rows, width), -1, np.int32)
    for i, (text, target) in enumerate(zip(texts, targets)):
        ids[i, : len(text)], wanted[i, : len(target)] = text, target
    return ids, wanted


def _nothing(context: tuple) -> tuple[int, ...]:
    """The targets at tokens of a context, without its last: none."""
    return (-1,) * (len(context) - 1)


def _taken(scores: tuple[Array, Array], pairs: list[tuple]) -> list[ContinuationScore]:
    logprobs, greedy = map(np.asarray, scores)
    return [
        ContinuationScore(float(logprobs[i]), bool(greedy[i]), len(continuation))
        for i, (_, continuation) in enumerate(pairs)
    ]


def _chunks(pairs: list[tuple], most_rows: Callable[[int], int]) -> Iterator[list[tuple]]:
    """Pairs, sorted by length, in batches; how many are in one depends on the longest."""
    while pairs:
        count = most_rows(sum(map(len, pairs[-1])))
        yield pairs[-count:]
        pairs = pairs[:-count]


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _rounded(length: int) -> int:
    """The least of 8, 16, 24, 32, 48, 64, 96, 128, ... that is no less than `length`."""
    power = max(8, _power_of_two(length))
    return power * 3 // 4 if length <= power * 3 // 4 and power > 16 else power
