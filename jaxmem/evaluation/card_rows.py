"""One row of a card: a model that tasks are asked of, and where its items are kept."""

import hashlib
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..core.lazy import is_lazy
from ..models.continuation_scores import ContinuationScorer
from ..models.model import Model
from .card_result import DENSE
from .embeddings import sentence_embedder
from .item_files import read_items, write_items
from .origin import weights_sha256
from .probe import Probe
from .prompt_template import fill
from .task import Task
from .task_scores import TaskScores, encoded_pair, fitted_probe, score_task
from .token_divergence import TokenDivergence, token_divergence

_TOKEN_FIELDS = ("nll", "dense_nll", "kl", "same_top")


class Places:
    """Where items are kept, and what tells of the work."""

    def __init__(self, out: pathlib.Path | None, progress: Callable | None):
        self.out, self.progress, self.hashes = out, progress, {}

    def tell(self, what: str) -> Callable[[int, int], None] | None:
        return self.progress and (lambda done, parts: self.progress(what, done, parts))

    def path(self, row: str, task: str) -> pathlib.Path | None:
        return self.out and self.out / "items" / row.replace(" ", "_") / f"{task}.jsonl"

    def kept(self, row: str, task: str, key: str, measure: Callable[[], TaskScores]) -> TaskScores:
        """The scores that are there, or those that `measure` gives, which are written."""
        path = self.path(row, task)
        found = read_items(path, key) if path else None
        if found:
            return TaskScores(task, tuple(found[1]), found[0]["skipped"])
        scores = measure()
        if path:
            write_items(path, {"key": key, "skipped": scores.skipped}, scores.items)
        return scores


class AskedModel:
    """One row of the card: a model that tasks are asked of."""

    def __init__(self, row: str, model: Model, probes: dict[str, Probe], places: Places):
        self.row, self.model, self.probes, self.places = row, model, probes, places
        self.load_seconds = _load_seconds(model)
        self.hash = places.hashes[row] = weights_sha256(model.params)
        self.scorer = self.embed = None
        self.continued: TaskScores | None = None  # texts that it wrote
        self.forward = jax.jit(model.apply)
        if hasattr(model.config, "cache"):
            self.scorer = ContinuationScorer(model)
        else:
            embed = sentence_embedder(model)
            self.embed = lambda texts: embed(model.params, texts)

    def scores(self, task: Task) -> TaskScores:
        """Of a task; a probe is the one that was fitted on the dense model's vectors."""
        plain = task.name.split(".")[0]
        if task.kind == "probe" and plain not in self.probes:
            self.probes[plain] = fitted_probe(task, self.embed)
        measure = lambda: score_task(
            task,
            self.model,
            scorer=self.scorer,
            embed=self.embed,
            probe=self.probes.get(plain),
            progress=self.places.tell(f"{self.row}: {task.name}"),
        )
        return self.places.kept(self.row, task.name, f"{self.hash} {task.sha256}", measure)

    def ids(self, text: str) -> np.ndarray:
        """The token ids of a text (tokens,), without special ones."""
        return np.array(self.model.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def column(self, name: str, of: Any, measure: Callable[[], TaskScores]) -> TaskScores:
        """What is measured beside tasks, of this model's weights and of `of`; or what is kept."""
        return self.places.kept(self.row, f"columns/{name}", f"{self.hash} {of}", measure)

    def divergence(
        self, reference: "AskedModel", text: str, window: int, windows: int | None
    ) -> TokenDivergence:
        """Of the text's first `windows` windows, or as many as it has."""
        ids = self.ids(text)
        windows = max(1, min(windows or len(ids), len(ids) // window))
        digest = hashlib.sha256(text.encode()).hexdigest()
        dense = self.places.hashes[DENSE]
        key = f"{self.hash} {dense} {digest} {window} {windows}"
        path = self.places.path(self.row, "columns/tokens")
        found = read_items(path, key) if path else None
        if found:
            header, lines = found
            arrays = {name: np.array([line[name] for line in lines]) for name in _TOKEN_FIELDS}
            return TokenDivergence(**arrays, window=window, **header["measured"])
        result = token_divergence(
            self.model,
            reference.model,
            ids,
            window=window,
            windows=windows,
            programs=(self.forward, reference.forward),
            progress=self.places.tell(f"{self.row}: text"),
        )
        if path:
            columns = zip(*(getattr(result, name).tolist() for name in _TOKEN_FIELDS))
            lines = [{"item": i, **dict(zip(_TOKEN_FIELDS, x))} for i, x in enumerate(columns)]
            measured = {name: getattr(result, name) for name in ("seconds_per_token", "peak")}
            write_items(path, {"key": key, "measured": measured}, lines)
        return result

    def margins(self, task: Task, items: Sequence[Mapping], answer: int) -> np.ndarray:
        """By how many nats the answer is ahead of the next choice, (items,)."""
        if task.kind == "probe":
            texts = [fill(task.prompt, item) for item in items]
            logprobs = list(self.probes[task.name].logprobs(self.embed(texts)))
        else:
            requests, counts = [], []
            for item in items:
                texts, prompt = task.choice_texts(item), fill(task.prompt, item)
                counts.append(len(texts))
                requests += [encoded_pair(self.model, prompt, task.delimiter + t) for t in texts]
            scores = iter(self.scorer(requests))
            logprobs = [np.array([next(scores).logprob for _ in range(n)]) for n in counts]
        return np.array([x[answer] - np.delete(x, answer).max() for x in logprobs])


def _load_seconds(model: Model) -> float | None:
    """The seconds in which the weights are read from their file; None if they are in memory."""
    leaves = jax.tree.leaves(model.tensors, is_leaf=is_lazy)
    if "params" in vars(model) or not any(map(is_lazy, leaves)):
        return None
    start = time.perf_counter()
    jax.block_until_ready(model.params)
    return time.perf_counter() - start
