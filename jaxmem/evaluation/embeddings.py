"""evaluate_embeddings: Spearman's rank correlation of cosines with people's similarity scores."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ..core.byte_counts import nbytes
from ..core.lifting import lift_inference
from ..models.model import Model, check_in_vocabulary
from ..models.sentence_pooling import Pooling, pooling_of
from ..models.sentence_vectors import vectors_of_texts
from .confidence import Estimate, spearman
from .result import Evaluation


def evaluate_embeddings(
    embed: Callable[[Any, Sequence[str]], Any],
    params: Any,
    pairs: Sequence[tuple[str, str]],
    scores: Sequence[float],
    *,
    reference: tuple[Callable[[Any, Sequence[str]], Any], Any] | None = None,
) -> Evaluation:
    """How well an encoder ranks sentence pairs (STS-B), and its cosine to a dense `reference`.

    `embed(params, sentences)` returns one vector per sentence, as a `sentence_embedder` does.
    In the result, `spearman` is the rank correlation of the pairs' cosines with `scores`. `cosine`
    is the mean cosine of each sentence's vector with the vector of the dense `(embed, params)`; it
    shows differences that do not change the ranks.

    Raises:
        ValueError: there are fewer than four pairs, or not as many scores as pairs; all scores or
            all cosines are equal; a vector is not finite.

    Example:
        >>> import numpy as np
        >>> embed = lambda params, sentences: np.array([[1.0, len(s)] for s in sentences])
        >>> pairs = [("a", "a"), ("a", "bb"), ("a", "ccc"), ("a", "dddd")]
        >>> evaluate_embeddings(embed, None, pairs, [5, 4, 2, 1]).spearman.mean > 0.999
        True
    """
    if len(pairs) != len(scores):
        raise ValueError(f"{len(pairs)} pairs have {len(scores)} scores, expected one each")
    sentences = [side for pair in pairs for side in pair]
    start = time.perf_counter()
    vectors = np.asarray(embed(params, sentences), np.float64)
    seconds = time.perf_counter() - start
    if not np.isfinite(vectors).all():
        raise ValueError("the embeddings are not all finite")
    result = Evaluation(
        tokens=len(sentences),
        resident=nbytes(params),
        seconds_per_token=seconds / len(sentences),
        spearman=spearman(_cosine(vectors[::2], vectors[1::2]), scores),
    )
    if reference:
        dense = np.asarray(reference[0](reference[1], sentences), np.float64)
        result = dataclasses.replace(result, cosine=Estimate.of(_cosine(vectors, dense), -1.0, 1.0))
    return result


def sentence_embedder(
    model: Any, *, batch: int = 64, length: int = 256, pooling: Pooling | None = None
) -> Callable:
    """`embed(params, sentences)` for an encoder: one vector of the hidden ones (Reimers, 2019).

    `pooling` is by default what the model's folder says, if it is one of sentence-transformers, and
    else their mean, of length 1. Its length of a text takes the place of `length`. The head of an
    encoder is not used. A model that holds the dense layer of its folder gives the vectors itself.

    Sentences are cut at `length` tokens, or at the model's context if that is shorter, sorted by
    length, and run `batch` at a time. Each batch is padded to a multiple of 16 tokens, so that few
    shapes are compiled.

    Raises:
        ValueError: the model is no encoder of texts, or has no tokenizer; its folder makes vectors
            in a way that is not computed here, such as by a dense layer; the tokenizer gives
            a token that the model does not have.
    """
    predicts_text = getattr(model.config, "cache", None) is not None
    if predicts_text or getattr(model.config, "reads", "text") != "text":
        raise ValueError(f"{model.source} is no encoder of texts: it gives no vectors of sentences")
    run = _compiled(model, pooling)
    if model.tokenizer is None:
        raise ValueError(f"{model.source} has no tokenizer, which reading sentences takes")
    pooling = pooling or pooling_of(model.hf_files, model.source)
    length, context = pooling.length or length, model.config.context

    def embed(params: Any, sentences: Sequence[str]) -> np.ndarray:
        model.tokenizer.no_padding()
        model.tokenizer.enable_truncation(min(length, context))
        ids = [encoding.ids for encoding in model.tokenizer.encode_batch(list(sentences))]
        check_in_vocabulary(np.concatenate(ids or [np.empty(0)]), model.config.vocab)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        vectors = [np.empty(0)] * len(ids)
        for group in (order[i : i + batch] for i in range(0, len(order), batch)):
            width = min(-(-max(len(ids[i]) for i in group) // 16) * 16, context)
            padded = np.zeros((batch, width), np.int32)
            mask = np.zeros((batch, width), bool)
            for row, i in enumerate(group):
                padded[row, : len(ids[i])], mask[row, : len(ids[i])] = ids[i], True
            for i, vector in zip(group, np.asarray(run(params, padded, mask))):
                vectors[i] = vector
        return np.stack(vectors)

    return embed


def _compiled(model: Any, pooling: Pooling | None) -> Callable:
    """`vectors_of_texts` under jit; models of one configuration share its programs."""
    run = vectors_of_texts(model, pooling)
    if type(model) is not Model:
        return jax.jit(lift_inference(run))
    if pooling is None and getattr(model.config, "head", "") != "vector":
        pooling = pooling_of(model.hf_files, model.source)
    return _of_config(model.config, pooling)


@functools.lru_cache(maxsize=8)
def _of_config(config: Any, pooling: Pooling | None) -> Callable:
    return jax.jit(lift_inference(vectors_of_texts(Model(config, {}, None, ""), pooling)))


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine of each row of `a` with the row of `b`."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(norms, 1e-30)
