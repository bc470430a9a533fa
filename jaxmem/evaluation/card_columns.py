"""columns_of, row_of: a card's columns of one row, from its scores and those of the dense row."""

from collections.abc import Mapping, Sequence
from typing import Any

from .card_explanations import explained_columns
from .confidence import Estimate, spearman
from .confidence_calibration import calibration_of
from .group_fairness import group_gaps
from .paired_answers import answer_flips
from .ranking_scores import overlap
from .task import Task
from .task_scores import TaskScores
from .token_divergence import TokenDivergence

COLUMNS = (
    "space", "time", "loss", "tasks", "calibration", "robustness", "attribution", "fairness",
    "privacy",
)  # fmt: skip


def columns_of(
    tasks: Sequence[Task],
    noisy_tasks: Sequence[Task],
    dense: Mapping[str, TaskScores],
    found: Mapping[str, TaskScores],
    divergence: TokenDivergence | None,
) -> dict[str, dict[str, Any]]:
    """{column: {name: value}}; a column that nothing was measured for is left out."""
    columns: dict[str, dict[str, Any]] = {name: {} for name in COLUMNS}
    if divergence is not None:
        columns["loss"] = divergence.summary()
        if divergence.seconds_per_token is not None:
            columns["time"] = {"seconds_per_token": divergence.seconds_per_token}
    for task in noisy_tasks:
        columns["robustness"][task.name] = _compared(task, dense[task.name], found[task.name])
    for task in tasks:
        before, after = dense[task.name], found[task.name]
        columns["tasks"][task.name] = _compared(task, before, after)
        if not after.items:
            continue
        if task.kind in ("choice", "probe") and not task.group:
            columns["calibration"][task.name] = vars(calibration_of(after.items))
        if task.group and task.kind == "choice":
            columns["fairness"][task.name] = _fairness(before, after)
    return {name: column for name, column in columns.items() if column}


def row_of(
    columns: dict[str, dict[str, Any]],
    dense_words: Mapping[str, TaskScores],
    words: Mapping[str, TaskScores],
    more: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """The columns of a row in their order, with what is said of words and what is in `more`."""
    for kind, found in words.items():
        for key, said in explained_columns(dense_words[kind], found, kind).items():
            columns[key] = {**columns.get(key, {}), **said}
    both = {key: {**columns.get(key, {}), **more.get(key, {})} for key in COLUMNS}
    return {key: column for key, column in both.items() if column}


def _compared(task: Task, before: TaskScores, after: TaskScores) -> dict[str, Any]:
    """The score with its interval, and what changed against the dense model."""
    result: dict[str, Any] = {"metric": task.metric, "items": len(after.items)}
    result["skipped"] = after.skipped
    if not after.items:
        return result
    scores = [item["score"] for item in after.items]
    if task.kind == "pairs":
        targets = [item["target"] for item in after.items]
        change = [abs(a["score"] - b["score"]) for a, b in zip(before.items, after.items)]
        return result | {"score": spearman(scores, targets), "cosine_change": Estimate.of(change)}
    result["score"] = Estimate.of(scores)
    flips = answer_flips(before.items, after.items)
    result |= {"changed": flips.changed, "difference": flips.difference}
    if task.kind in ("choice", "probe"):
        names = ("right_to_wrong", "wrong_to_right", "p_value", "total_variation")
        result |= {name: getattr(flips, name) for name in names}
    if task.kind == "retrieval":
        pairs = zip(before.items, after.items)
        result["overlap"] = Estimate.of([overlap(b["answer"], a["answer"]) for a, b in pairs])
    return result


def _fairness(before: TaskScores, after: TaskScores) -> dict[str, Any]:
    """Groups with five items or more; nothing of them where there are none."""
    try:
        gaps = group_gaps(before.items, after.items)
    except ValueError as error:
        return {"refused": str(error)}
    groups = {n: {"score": s, "changed": f.changed} for n, (s, f) in gaps.groups.items()}
    kept = {name: getattr(gaps, name) for name in ("score", "changed", "worst", "gap", "small")}
    return kept | {"groups": groups}
