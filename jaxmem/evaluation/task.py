"""Task: items, the template that makes prompts of them, and the metric of the answers."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

from ..core.arguments import NAMES, check_fields, shown
from .prompt_template import fields_of, fill

METRICS = {  # of each kind; the first is the default
    "choice": ("acc", "acc_norm"),
    "generation": ("exact_match", "f1", "rouge_l", "chrf", "bleu", "wer"),
    "retrieval": ("ndcg@10",),
    "pairs": ("spearman",),
    "probe": ("acc",),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What a model is asked, item by item, and how its answers are scored.

    A template names fields of an item in braces. The kinds:

    - "choice": the text with the largest loglikelihood after the prompt is the answer ("acc"), or
      the largest for each of its characters ("acc_norm"). Without a prompt whole sentences are
      compared.
    - "generation": the text that a model writes after the prompt is compared with the answers.
    - "retrieval": documents are ordered by the cosine of their vectors with the prompt's.
    - "pairs": the cosine of two sentences, ranked as the scores that people gave (an encoder).
    - "probe": a logistic regression on the vectors of the texts, fitted on `train`.

    Args:
        name: of the task; letters, digits and `_.-`.
        kind: one of the above.
        items: a mapping of fields each.
        prompt: the template of a prompt, a query or a text.
        choices: the templates of the choices, or of the two sentences of a pair; or the name of the
            field that holds the list of choices.
        answer: the field of the right answer: the number or the text of a choice, a text or a list
            of them, the score of a pair, the label of a text; for "retrieval" the ids of the
            right documents, or their gains by id.
        metric: one of the kind's.
        group: the field whose values make groups, whose scores are compared.
        delimiter: between a prompt and a choice.
        documents: of "retrieval": texts by id.
        train: of "probe": the items that it is fitted on.
        max_new_tokens: of "generation".
        until: texts that end a generated answer.

    Raises:
        TypeError: a field has another type.
        ValueError: a field of the above cannot be; there are no items; an item has no such field,
            or an answer that is none of its choices. The message has the item's number.

    Example:
        >>> item = {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}
        >>> task = Task("sums", "choice", (item,), prompt="{question}", choices="choices")
        >>> task.choice_texts(item), task.metric
        (('3', '4'), 'acc')
    """

    name: str
    kind: str
    items: tuple[Mapping[str, Any], ...] = ()
    prompt: str = ""
    choices: tuple[str, ...] | str = ()
    answer: str = "answer"
    metric: str = ""
    group: str = ""
    delimiter: str = " "
    documents: Mapping[str, str] = dataclasses.field(default_factory=dict)
    train: tuple[Mapping[str, Any], ...] = ()
    max_new_tokens: int = 64
    until: tuple[str, ...] = ("\n",)

    def __post_init__(self):
        check_fields(self, until=NAMES)
        if not self.name or not set(self.name) <= LETTERS:
            raise ValueError(f"the task's name is {self.name!r}, expected letters, digits or _.-")
        if self.kind not in METRICS:
            raise ValueError(f"{self.name}: kind is {self.kind!r}, expected {', '.join(METRICS)}")
        set_field = functools.partial(object.__setattr__, self)
        for name in ("items", "train", "until"):
            set_field(name, tuple(getattr(self, name)))
        if not isinstance(self.choices, str):
            set_field("choices", tuple(self.choices))
        self._check_texts()
        set_field("metric", self.metric or METRICS[self.kind][0])
        if self.metric not in METRICS[self.kind]:
            wanted = ", ".join(METRICS[self.kind])
            raise ValueError(f"{self.name}: metric is {self.metric!r}, expected {wanted}")
        if not self.items:
            raise ValueError(f"{self.name} has no items, expected at least one")
        self._check_kind()
        for number, item in enumerate(self.items):
            self._check(f"item {number} of {self.name}", item)
        for number, item in enumerate(self.train):
            self._check(f"item {number} of {self.name} to train on", item)

    def _check_texts(self) -> None:
        """Refuses lists of texts that hold something else, and a count that cannot be."""
        templates = () if isinstance(self.choices, str) else self.choices
        for text in (*templates, *self.until, *self.documents, *self.documents.values()):
            if not isinstance(text, str):
                raise TypeError(f"{self.name}: {text!r} is a {type(text).__name__}, expected text")
        if self.max_new_tokens < 1:
            count = self.max_new_tokens
            raise ValueError(f"{self.name}: max_new_tokens is {count}, expected at least 1")

    def _check_kind(self) -> None:
        """Refuses what the kind cannot do without."""
        count = len(self.choices)
        wrong = {
            "choice": not count and "choices, expected templates or a field's name",
            "pairs": (isinstance(self.choices, str) or count != 2)
            and f"{count} choices, expected the templates of two sentences",
            "generation": "",
            "retrieval": not self.documents and "no documents, expected at least one",
            "probe": not self.train and "no items to train on, expected at least one",
        }[self.kind]
        if wrong:
            no = "no " if wrong.startswith("choices") else ""
            raise ValueError(f"{self.name} has {no}{wrong}")
        if self.kind in ("generation", "retrieval", "probe") and not fields_of(self.prompt):
            raise ValueError(f"{self.name}: prompt is {self.prompt!r}, expected a field in it")

    def _check(self, which: str, item: Any) -> None:
        """Refuses an item that the templates cannot be filled with, or that has no answer."""
        if not isinstance(item, Mapping):
            raise ValueError(f"{which} is {shown(item)}, expected fields by name")
        try:
            fill(self.prompt, item)
            texts = self.choice_texts(item)
        except ValueError as error:
            raise ValueError(f"{which}: {error}") from error
        for field in filter(None, (self.answer, self.group)):
            if item.get(field) is None:
                raise ValueError(f"{which} has no field {field!r}; it has {', '.join(item)}")
        answer = item[self.answer]
        if self.kind == "choice":
            if len(texts) < 2 or any(not text for text in texts):
                raise ValueError(f"{which} has the choices {texts}, expected at least 2 texts")
            self.answer_of(item, which)
        if self.kind == "retrieval":
            unknown = [name for name in answer if name not in self.documents]
            if isinstance(answer, str) or not answer or unknown:
                raise ValueError(f"{which} has the answer {answer!r}, expected ids of documents")
        if self.kind == "pairs" and not isinstance(answer, int | float):
            raise ValueError(f"{which} has the score {answer!r}, expected a number")

    def choice_texts(self, item: Mapping[str, Any]) -> tuple[str, ...]:
        """The texts of an item's choices, or of its two sentences."""
        if not isinstance(self.choices, str):
            return tuple(fill(template, item) for template in self.choices)
        texts = item.get(self.choices)
        if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"the field {self.choices!r} is {texts!r}, expected a list of texts")
        return tuple(texts)

    def answer_of(self, item: Mapping[str, Any], which: str = "the item") -> int:
        """The number of an item's right choice."""
        answer, texts = item[self.answer], self.choice_texts(item)
        if isinstance(answer, str) and answer in texts:
            return texts.index(answer)
        is_number = isinstance(answer, int) and not isinstance(answer, bool)
        if not is_number or not 0 <= answer < len(texts):
            raise ValueError(f"{which} has the answer {answer!r}, which is none of {texts}")
        return answer

    def references(self, item: Mapping[str, Any]) -> tuple[str, ...]:
        """The texts that a generated answer is compared with."""
        answer = item[self.answer]
        return tuple(map(str, answer)) if isinstance(answer, list | tuple) else (str(answer),)

    def sample(self, count: int | None) -> Self:
        """The task with `count` of its items, at even distances; all of them if there are less.

        Raises:
            ValueError: `count` is below 1.
        """
        if count is not None and count < 1:
            raise ValueError(f"{count} items of {self.name}, expected at least 1")
        if count is None or count >= len(self.items):
            return self
        at = [i * len(self.items) // count for i in range(count)]
        return dataclasses.replace(self, items=tuple(self.items[i] for i in at))

    def header(self) -> dict[str, Any]:
        """All fields but the items, the documents and what a probe is fitted on."""
        lists = ("items", "documents", "train")
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)
                if f.name not in lists}  # fmt: skip

    @functools.cached_property
    def sha256(self) -> str:
        """The hash of all that the task says: equal for equal tasks."""
        fields = self.header() | {"items": self.items, "train": self.train}
        text = json.dumps(fields | {"documents": dict(self.documents)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
