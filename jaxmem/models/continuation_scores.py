"""log p(continuation | context): a context is read once for all of its continuations.

Contexts of several lengths are read together and padded at their ends; a continuation goes on where
its own context ended, from the keys and values of that row. Contexts with one continuation are read
with it. Few shapes are used, so that few programs compile: models of one configuration share them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from ..core.leaf import is_encoded
from .continuation_programs import programs_of
from .model import Model, check_in_vocabulary
from .padded_shapes import padded_rows, padded_widths, rounded
from .text_models import context as most_tokens
from .text_models import reads_source, vocabulary

_MOST_LOGITS = 2**26  # in one batch: 256 MiB in float32
_MOST_TOKENS = 1024  # in one batch
_MOST_CACHED = 2**14  # tokens whose keys and values a batch holds
_ROOM_STEP = 64  # tokens after a context that its cache has room for, rounded up
_LEAST_SHARED = 4  # tokens of a context that are worth a program of their own
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
        self._cache, self._dtype = model.config.cache, leaves[0].dtype
        # A state would take in the padding after a context.
        by_token = getattr(model.config, "by_token", False)
        self._shares = self._cache is not None and not by_token
        self._shares = self._shares and not getattr(model.config, "recurrence", None)
        self._programs = programs_of(model)
        kind = (jax.tree.structure(self.params), self._dtype)
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
        groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for context, continuation in dict.fromkeys(pairs):
            groups.setdefault(context, []).append(continuation)
        shared = self._shared_groups(groups)
        alone = [(c, one) for c, few in groups.items() if c not in shared for one in few]
        found: dict[tuple, ContinuationScore] = {}
        for done in itertools.chain(self._shared(shared), self._alone(alone)):
            found |= done
            if progress:
                progress(len(found), sum(map(len, groups.values())))
        return [found[pair] for pair in pairs]

    def _shared_groups(self, groups: dict[tuple, list[tuple]]) -> dict[tuple, list[tuple]]:
        """The contexts that are read once, with their continuations."""
        enough = lambda context, few: len(few) > 1 and len(context) > _LEAST_SHARED
        found = {c: few for c, few in groups.items() if self._shares and enough(c, few)}
        longest = max((rounded(len(one)) for few in found.values() for one in few), default=0)
        return {c: few for c, few in found.items() if rounded(len(c)) + longest <= self.most}

    def _shared(self, groups: dict[tuple, list[tuple]]) -> Iterator[dict[tuple, ContinuationScore]]:
        """The scores of each batch of continuations."""
        if not groups:
            return
        after = [len(one) for few in groups.values() for one in few]
        room = -(-rounded(max(after)) // _ROOM_STEP) * _ROOM_STEP
        room = min(room, self.most - max(rounded(len(context)) for context in groups))
        before = [len(context) - 1 for context in groups]
        before = self._widths(("read", room), before, self.most - room)
        for length, contexts in _by_width(groups, before, lambda c: len(c) - 1):
            most = self._most_rows(length, logits=False, cached=length + room)
            for few in _chunks(contexts, most):
                prefix = [context[:-1] for context in few]
                count = self._rows(("read", room), len(few), length, most)
                ids, _ = _padded(prefix, prefix, count, length)
                cache = self._cache(count, length + room, self._dtype)
                cache = self._programs.read(self.params, ids, cache)
                alike = contexts if len(few) == most else few
                lengths = [len(one) for context in alike for one in groups[context]]
                shape = ("after", count, length, room)
                pairs = [(context, one) for context in few for one in groups[context]]
                widths = self._widths(shape, lengths, room)
                for width, own in _by_width(pairs, widths, lambda pair: len(pair[1])):
                    for batch in _chunks(own, self._most_rows(width, cached=length + room)):
                        yield self._continued(batch, few, cache, width, shape)

    def _continued(
        self, pairs: list[tuple], contexts: list[tuple], cache: Any, width: int, shape: tuple
    ) -> dict[tuple, ContinuationScore]:
        """The scores of continuations, each read from the last token of its context."""
        most = self._most_rows(width, cached=sum(shape[2:]))
        count = self._rows(shape, len(pairs), width, most)
        texts = [(context[-1], *continuation[:-1]) for context, continuation in pairs]
        ids, targets = _padded(texts, [one for _, one in pairs], count, width)
        which, starts = np.zeros((2, count), np.int32)
        at = {context: row for row, context in enumerate(contexts)}
        which[: len(pairs)] = [at[context] for context, _ in pairs]
        starts[: len(pairs)] = [len(context) - 1 for context, _ in pairs]
        return _taken(self._programs.after(self.params, ids, targets, cache, which, starts), pairs)

    def _alone(self, pairs: list[tuple]) -> Iterator[dict[tuple, ContinuationScore]]:
        """The scores of rows that hold a context and its continuation."""
        if not pairs:
            return
        length = lambda pair: sum(map(len, pair)) - 1
        widths = self._widths(("rows",), map(length, pairs), self.most)
        for width, own in _by_width(pairs, widths, length):
            most = self._most_rows(width)
            for few in _chunks(own, most):
                texts = [(*context, *one[:-1]) for context, one in few]
                targets = [(-1,) * (len(context) - 1) + one for context, one in few]
                count = self._rows(("rows",), len(few), width, most)
                yield _taken(
                    self._programs.whole(self.params, *_padded(texts, targets, count, width)), few
                )

    def _widths(self, kind: tuple, lengths: Iterable[int], most: int) -> list[int]:
        """The widths of the programs of a kind that texts are padded to."""
        compiled = {width for of, _, width in self._compiled if of == kind}
        return padded_widths(list(lengths), compiled, program=self._program, most=most)

    def _rows(self, kind: tuple, count: int, width: int, most: int) -> int:
        """The rows of a batch, whose program will be compiled."""
        compiled = {rows for of, rows, own in self._compiled if (of, own) == (kind, width)}
        rows = padded_rows(count, width, compiled, program=self._program, most=most)
        self._compiled.add((kind, rows, width))
        return rows

    def _most_rows(self, width: int, *, logits: bool = True, cached: int = 1) -> int:
        """Rows of a batch whose tokens, logits and cache are few enough: a power of two."""
        rows = min(self.batch, max(1, _MOST_TOKENS // width), max(1, _MOST_CACHED // cached))
        if logits:
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


def _padded(
    texts: Sequence[tuple], targets: Sequence[tuple], rows: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, targets), (rows, width) int32: ids are padded with 0, targets with -1."""
    ids, wanted = np.zeros((rows, width), np.int32), np.full((rows, width), -1, np.int32)
    for i, (text, target) in enumerate(zip(texts, targets)):
        ids[i, : len(text)], wanted[i, : len(target)] = text, target
    return ids, wanted


def _taken(scores: tuple[Array, Array], pairs: list[tuple]) -> dict[tuple, ContinuationScore]:
    logprobs, greedy = map(np.asarray, scores)
    return {
        pair: ContinuationScore(float(logprobs[i]), bool(greedy[i]), len(pair[1]))
        for i, pair in enumerate(pairs)
    }


def _by_width(
    texts: Iterable[tuple], widths: Sequence[int], length: Callable[[tuple], int]
) -> Iterator[tuple[int, list[tuple]]]:
    """(width, the texts whose first width that holds them it is)."""
    ordered, start = sorted(texts, key=lambda text: (length(text), text)), 0
    for width in widths:
        end = start
        while end < len(ordered) and length(ordered[end]) <= width:
            end += 1
        if end > start:
            yield width, ordered[start:end]
        start = end


def _chunks(texts: list[tuple], most: int) -> Iterator[list[tuple]]:
    for start in range(0, len(texts), most):
        yield texts[start : start + most]
