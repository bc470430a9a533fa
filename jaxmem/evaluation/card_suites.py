"""Suite: how much a card measures."""

import dataclasses

from .card_explanations import EXPLANATIONS
from .prompt_template import fill
from .task import Task
from .text_noise import KINDS


@dataclasses.dataclass(frozen=True)
class Suite:
    """How much a card measures: items of a task (None for all), windows of the text and so on.

    Some items are a fixed choice: those at even distances in the half that has the shorter texts.
    """

    items: int | None
    window: int | None
    windows: int | None
    noise: tuple[str, ...]
    explained: int
    explain: tuple[str, ...]
    texts: int | None
    flip_rates: tuple[float, ...]

    def chosen(self, task: Task) -> Task:
        """The task with the items that are asked.

        Example:
            >>> items = tuple({"text": "a" * n, "label": 0} for n in (9, 1, 8, 2, 3, 7))
            >>> task = Task("letters", "choice", items, "{text}", ("a", "b"), answer="label")
            >>> few = dataclasses.replace(SUITES["quick"], items=2).chosen(task)
            >>> [len(item["text"]) for item in few.items]
            [1, 2]
        """
        if self.items is None or self.items >= len(task.items):
            return task
        size = lambda item: len(fill(task.prompt, item)) + sum(map(len, task.choice_texts(item)))
        sizes = [size(item) for item in task.items]
        half = sorted(range(len(sizes)), key=sizes.__getitem__)
        half = half[: max(self.items, len(half) // 2)]
        items = tuple(task.items[i] for i in sorted(half))
        return dataclasses.replace(task, items=items).sample(self.items)


SUITES = {
    "quick": Suite(32, 256, 8, ("typo",), 4, ("occlusion",), 64, (1e-5, 1e-3)),
    "full": Suite(None, None, 32, KINDS, 32, EXPLANATIONS, None, (1e-6, 1e-5, 1e-4, 1e-3)),
}
