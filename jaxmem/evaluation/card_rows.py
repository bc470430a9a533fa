"""One row of a card: a model that tasks are asked of, and where its items are kept."""

import dataclasses
import functools
import hashlib
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..core.lazy import is_lazy
from ..core.leaf import decode, is_encoded
from ..models.compiled_forward import forward_of
from ..models.continuation_scores import ContinuationScorer
from ..models.model import Model
from .card_result import FLOOR
from .embeddings import sentence_embedder
from .item_files import read_items, write_items
from .origin import weights_sha256
from .probe import Probe
from .prompt_template import fill
from .task import Task
from .task_scores import AllTooLong, TaskScores, encoded_pair, fitted_probe, score_task
from .token_divergence import KeptLogits, TokenDivergence, token_divergence

_TOKEN_FIELDS = ("nll", "dense_nll", "kl", "same_top")


class Places:
    """Where items are kept, and what tells of the work."""

    def __init__(self, out: pathlib.Path | None, progress: Callable | None):
        self.out, self.progress, self.hashes = out, progress, {}
        self.known: dict[tuple[str, str], TaskScores] = {}

    def tell(self, what: str) -> Callable[[int, int], None] | None:
        return self.progress and (lambda done, parts: self.progress(what, done, parts))

    def path(self, row: str, task: str) -> pathlib.Path | None:
        return self.out and self.out / "items" / row.replace(" ", "_") / f"{task}.jsonl"

    def kept(self, row: str, task: str, key: str, measure: Callable[[], TaskScores]) -> TaskScores:
        """The scores that are there, or those that `measure` gives, which are written.

        A row of the same model as an earlier one has its scores.
        """
        path = self.path(row, task)
        found = read_items(path, key) if path else None
        if found:
            scores = TaskScores(task, tuple(found[1]), found[0]["skipped"])
        else:
            scores = self.known.get((task, key)) or measure()
        if path and not found:
            write_items(path, {"key": key, "skipped": scores.skipped}, scores.items)
        return self.known.setdefault((task, key), scores)


class AskedModel:
    """One row of the card: a model that tasks are asked of.

    `dense` is the model of the dense row, whose programs this row shares where it can.
    """

    def __init__(
        self, row: str, model: Model, dense: Model, probes: dict[str, Probe], places: Places
    ):
        self.row, self.model, self.probes, self.places = row, model, probes, places
        self.dense, self.predicts = dense, hasattr(model.config, "cache")
        self.load_seconds = _load_seconds(model)
        places.hashes[row] = weights_sha256(model.params)
        same = f"{places.hashes[row]} {model.config.to_dict()}"
        self.hash = hashlib.sha256(same.encode()).hexdigest()
        self.continued: TaskScores | None = None  # texts that it wrote
        self.forward = forward_of(model)
        self.logits = KeptLogits(self.forward)

    @functools.cached_property
    def answering(self) -> Model:
        """The model, with its weights decoded if so they run in the programs of the dense one."""
        return as_dense(self.model, self.dense)

    @functools.cached_property
    def scorer(self) -> ContinuationScorer | None:
        """What gives the loglikelihoods of texts; None for an encoder."""
        return ContinuationScorer(self.answering) if self.predicts else None

    @functools.cached_property
    def embed(self) -> Callable | None:
        """What gives the vectors of texts; None for a model that predicts text."""
        if self.predicts:
            return None
        run, params = sentence_embedder(self.answering), self.answering.params
        return lambda texts: run(params, texts)

    def forget(self) -> None:
        """Lets decoded weights go; they are decoded again if they are asked for."""
        for name in ("answering", "scorer", "embed"):
            vars(self).pop(name, None)

    def scores(self, task: Task) -> TaskScores:
        """Of a task; a probe is the one that was fitted on the dense model's vectors.

        There are none if all items are longer than the model's context.
        """
        probe = self.probe_of(task) if task.kind == "probe" else None

        def measure() -> TaskScores:
            try:
                return score_task(
                    task,
                    self.model,
                    scorer=self.scorer,
                    embed=self.embed,
                    probe=probe,
                    progress=self.places.tell(f"{self.row}: {task.name}"),
                )
            except AllTooLong:
                return TaskScores(task.name, (), len(task.items))

        return self.places.kept(self.row, task.name, f"{self.hash} {task.sha256}", measure)

    def probe_of(self, task: Task) -> Probe:
        """The probe that the first of the rows fitted on its vectors, or that is kept."""
        of = hashlib.sha256(repr((task.prompt, task.answer, task.train)).encode()).hexdigest()
        if of not in self.probes:
            self.probes[of] = self._probe(task, of)
        return self.probes[of]

    def _probe(self, task: Task, of: str) -> Probe:

        def measure() -> TaskScores:
            probe = fitted_probe(task, self.embed)
            rows = [{"item": i, "weights": row.tolist()} for i, row in enumerate(probe.weights)]
            labels = {"item": len(rows), "labels": list(probe.labels)}
            return TaskScores("probe", (*rows, labels))

        *rows, labels = self.column(f"probe.{task.name}", of, measure).items
        weights = np.array([row["weights"] for row in rows], np.float32)
        return Probe(weights, tuple(labels["labels"]))

    def ids(self, text: str) -> np.ndarray:
        """The token ids of a text (tokens,), without special ones."""
        return np.array(self.model.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def column(self, name: str, of: Any, measure: Callable[[], TaskScores]) -> TaskScores:
        """What is measured beside tasks, of this model's weights and of `of`; or what is kept."""
        return self.places.kept(self.row, f"columns/{name}", f"{self.hash} {of}", measure)

    def divergences(
        self, reference: "AskedModel", texts: Mapping[str, str], window: int, windows: int | None
    ) -> dict[str, TokenDivergence]:
        """That of each text's first windows; `windows` is the most of all texts together."""
        share = windows and max(1, windows // len(texts))
        divergence = functools.partial(self._divergence, reference, window=window, windows=share)
        return {name: divergence(text, name=name) for name, text in texts.items()}

    def _divergence(
        self,
        reference: "AskedModel",
        text: str,
        *,
        window: int,
        windows: int | None,
        name: str,
    ) -> TokenDivergence:
        ids = self.ids(text)
        windows = max(1, min(windows or len(ids), len(ids) // window))
        digest = hashlib.sha256(text.encode()).hexdigest()
        key = f"{self.hash} {reference.hash} {digest} {window} {windows}"
        path = self.places.path(self.row, f"columns/tokens{'.' * bool(name)}{name}")
        found = read_items(path, key) if path else None
        if found:
            header, lines = found
            arrays = {name: np.array([line[name] for line in lines]) for name in _TOKEN_FIELDS}
            return TokenDivergence(**arrays, window=window, **header["measured"])
        result = token_divergence(
            reference.model if self.hash == reference.hash else self.model,
            reference.model,
            ids,
            window=window,
            windows=windows,
            programs=(self.forward, reference.logits),
            progress=self.places.tell(f"{self.row}: text"),
        )
        if self.row == FLOOR:  # its weights are rounded, but not computed with in bfloat16
            result = dataclasses.replace(result, seconds_per_token=None, peak=None)
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
            logprobs = list(self.probe_of(task).logprobs(self.embed(texts)))
        else:
            requests, counts = [], []
            for item in items:
                texts, prompt = task.choice_texts(item), fill(task.prompt, item)
                counts.append(len(texts))
                requests += [encoded_pair(self.model, prompt, task.delimiter + t) for t in texts]
            scores = iter(self.scorer(requests))
            logprobs = [np.array([next(scores).logprob for _ in range(n)]) for n in counts]
        return np.array([x[answer] - np.delete(x, answer).max() for x in logprobs])


def as_dense(model: Model, dense: Model) -> Model:
    """The model with its weights decoded, if they then are arrays like those of `dense`.

    So both run in the same programs. A model whose products round their inputs stays as it is.
    """
    leaves = [x for x in jax.tree.leaves(model.params, is_leaf=is_encoded) if is_encoded(x)]
    if not leaves or model.config != dense.config or any(x.rounds_inputs for x in leaves):
        return model
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    if kinds(jax.eval_shape(decode, model.params)) != kinds(dense.params):
        return model
    return dataclasses.replace(model, tensors=jax.jit(decode)(model.params))


def _load_seconds(model: Model) -> float | None:
    """The seconds in which the weights are read from their file; None if they are in memory."""
    leaves = jax.tree.leaves(model.tensors, is_leaf=is_lazy)
    if "params" in vars(model) or not any(map(is_lazy, leaves)):
        return None
    start = time.perf_counter()
    jax.block_until_ready(model.params)
    return time.perf_counter() - start
