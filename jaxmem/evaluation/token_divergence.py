"""token_divergence: for each token of a text, how far a model is from the dense one.

The quantities are those that `--kl-divergence` of llama.cpp prints: NLL of both, KL(dense ‖ model),
the change of the right token's probability, and whether both have the same most probable token. Its
windows are half read and half scored; here all but the first token of a window are scored.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from ..models.example_inputs import window as window_of
from ..models.model import Model
from ..models.text_models import reads_source, vocabulary
from .confidence import Estimate
from .perplexity_kl import peak_of, token_scores, windows_of
from .position_divergence import kl_by_position

_SCORE = jax.jit(token_scores)
_MOST_KEPT = 2**29  # bytes


@dataclasses.dataclass(frozen=True, eq=False)
class TokenDivergence:
    """`nll`, `dense_nll` and `kl` in nats and `same_top`, (tokens,); sizes in bytes.

    A text's windows of `window` tokens stand one after the other, without their first tokens.
    `seconds_per_token` is the median of forward passes of windows, `peak` of the compiled one.
    """

    nll: np.ndarray
    dense_nll: np.ndarray
    kl: np.ndarray
    same_top: np.ndarray
    window: int
    seconds_per_token: float | None = None
    peak: int | None = None

    def summary(self) -> dict[str, Any]:
        """Means with their 95 % intervals, and quantiles, as plain data."""
        change = self.nll - self.dense_nll
        delta = np.exp(-self.nll) - np.exp(-self.dense_nll)
        return {
            "tokens": len(self.kl),
            "perplexity": Estimate.of(self.nll).exp(),
            "dense_perplexity": Estimate.of(self.dense_nll).exp(),
            "perplexity_ratio": Estimate.of(change).exp(),
            "kl": Estimate.of(self.kl),
            "kl_by_position": kl_by_position(self.kl, self.window),
            "kl_quantiles": _quantiles(self.kl, (0, 1, 5, 10, 50, 99, 99.9, 100)),
            "delta_p": Estimate.of(delta),
            "delta_p_rms": float(np.sqrt((delta**2).mean())),
            "delta_p_quantiles": _quantiles(delta, (0, 1, 5, 25, 50, 75, 95, 99, 100)),
            "same_top": Estimate.of(self.same_top, 0.0, 1.0),
        }

    def short_summary(self) -> dict[str, Any]:
        """The quantities of `summary` that a text among others is told by."""
        s = self.summary()
        names = ("tokens", "perplexity", "dense_perplexity", "perplexity_ratio", "kl", "same_top")
        return {name: s[name] for name in names}

    def block(self) -> str:
        """The lines that llama.cpp prints, with 95 % intervals in the place of standard errors."""
        s = self.summary()
        at = lambda name, q: s[f"{name}_quantiles"][f"{q:g}"]
        correlation = np.corrcoef(self.nll, self.dense_nll)[0, 1] if len(self.nll) > 1 else 1.0
        lines = [
            "====== Perplexity statistics ======",
            f"Mean PPL(Q)                   : {s['perplexity']}",
            f"Mean PPL(base)                : {s['dense_perplexity']}",
            f"Cor(ln(PPL(Q)), ln(PPL(base))): {correlation:.2%}",
            f"Mean PPL(Q)/PPL(base)         : {s['perplexity_ratio']}",
            "====== KL divergence statistics ======",
            f"Mean    KLD: {s['kl']}",
            f"Maximum KLD: {at('kl', 100):.6f}",
            *(f"{q:>5.1f}%  KLD: {at('kl', q):.6f}" for q in (99.9, 99)),
            f"Median  KLD: {at('kl', 50):.6f}",
            *(f"{q:>5.1f}%  KLD: {at('kl', q):.6f}" for q in (10, 5, 1)),
            f"Minimum KLD: {at('kl', 0):.6f}",
            "====== Token probability statistics ======",
            f"Mean    Δp: {s['delta_p']}",
            f"Maximum Δp: {at('delta_p', 100):.3%}",
            *(f"{q:>5.1f}%  Δp: {at('delta_p', q):.3%}" for q in (99, 95, 75)),
            f"Median  Δp: {at('delta_p', 50):.3%}",
            *(f"{q:>5.1f}%  Δp: {at('delta_p', q):.3%}" for q in (25, 5, 1)),
            f"Minimum Δp: {at('delta_p', 0):.3%}",
            f"RMS Δp    : {s['delta_p_rms']:.3%}",
            f"Same top p: {s['same_top']}",
        ]
        return "\n".join(lines)


def joined_divergence(parts: Sequence[TokenDivergence]) -> TokenDivergence:
    """The divergence of several texts in windows of one length, as of one text.

    Example:
        >>> one = TokenDivergence(*np.eye(4)[:3], np.ones(4, bool), window=5)
        >>> len(joined_divergence([one, one]).kl)
        8
    """
    arrays = ("nll", "dense_nll", "kl", "same_top")
    whole = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
    return dataclasses.replace(parts[0], **whole)


class KeptLogits:
    """`forward`, whose logits of the first texts are kept: as many as 512 MiB hold.

    Several models are compared with one reference so that it runs once.
    """

    def __init__(self, forward: Callable):
        self.forward, self.kept = forward, {}

    def __call__(self, params: Any, ids: np.ndarray) -> Array:
        """The logits (B, T, vocab) of ids (B, T), always of the same params."""
        key = ids.tobytes()
        if key in self.kept:
            return self.kept[key]
        logits = self.forward(params, ids)
        if logits.nbytes * (len(self.kept) + 1) <= _MOST_KEPT:
            self.kept[key] = logits
        return logits


def token_divergence(
    model: Model,
    reference: Model,
    ids: Any,
    *,
    params: Any = None,
    window: int | None = None,
    windows: int | None = None,
    programs: tuple[Any, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TokenDivergence:
    """The distance of a model from a dense `reference` on a text of token ids (tokens,).

    Args:
        model: the model.
        reference: the dense one, of the same vocabulary.
        ids: the text.
        params: the model's weights, dense or encoded; None for `model.params`.
        window: tokens in a window; None for 1,024, or the context if it is less.
        windows: how many from the start of the text; None for all.
        programs: `jax.jit` of both models' `apply`, which so need not compile again; the second
            may be `KeptLogits`.
        progress: `progress(done, windows)` is called after each window.

    Raises:
        ValueError: the vocabularies differ, the text is too short, or a model predicts no text.
    """
    same_vocabulary(model, reference)
    if reads_source(model):
        raise ValueError(f"{model.source} is an encoder-decoder: jaxmem eval compares those")
    text = windows_of(ids, window or window_of(model), windows).astype(np.int32)
    params = model.params if params is None else params
    forward, dense = programs or (jax.jit(model.apply), jax.jit(reference.apply))
    forward = forward.lower(params, text[:1]).compile()
    is_same = model is reference and params is reference.params
    found, seconds = [], []
    for number, row in enumerate(text):
        start = time.perf_counter()
        logits = target = jax.block_until_ready(dense(reference.params, row[None]))
        if not is_same:
            start = time.perf_counter()
            logits = jax.block_until_ready(forward(params, row[None]))
        seconds.append((time.perf_counter() - start) / len(row))
        found.append(jax.device_get(_SCORE(logits, target, row[None])))
        del logits, target
        if progress:
            progress(number + 1, len(text))
    joined = {k: np.concatenate([f[k][0] for f in found]).astype(np.float64) for k in found[0]}
    return TokenDivergence(
        nll=joined["perplexity"],
        dense_nll=joined["dense_perplexity"],
        kl=joined["kl"],
        same_top=joined["agreement"],
        window=text.shape[1],
        seconds_per_token=float(np.median(seconds[1:])) if len(seconds) > 1 else None,
        peak=peak_of(forward),
    )


def same_vocabulary(model: Model, reference: Model) -> None:
    """Refuses a reference whose tokens are not those of the model.

    Raises:
        ValueError: the vocabularies have other sizes or other tokens.
    """
    sizes = [vocabulary(m) for m in (model, reference)]
    words = [None if m.tokenizer is None else m.tokenizer.get_vocab() for m in (model, reference)]
    if sizes[0] != sizes[1] or (None not in words and words[0] != words[1]):
        raise ValueError(
            f"{model.source} has {sizes[0]} tokens and the reference {reference.source} "
            f"{sizes[1]}, or other ones: expected the same vocabulary"
        )


def _quantiles(x: np.ndarray, percent: tuple[float, ...]) -> dict[str, float]:
    return {f"{q:g}": float(np.percentile(x, q)) for q in percent}
