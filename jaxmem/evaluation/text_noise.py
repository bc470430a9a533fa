"""noisy: a text with errors that people make: swapped letters, neighbouring keys, other case."""

import dataclasses
import random

from .prompt_template import fields_of
from .task import Task

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
KINDS = ("typo", "keyboard", "case")


def noisy(text: str, kind: str, *, rate: float = 0.1, seed: int = 0) -> str:
    """The text with a share `rate` of its letters changed; the same for the same seed.

    "typo" swaps a letter with the next one, "keyboard" takes a neighbouring key (QWERTY), "case"
    the other case.

    Raises:
        ValueError: the kind is none of these, or `rate` is not from 0 to 1.

    Example:
        >>> noisy("a fine film", "case", rate=0.3, seed=1)
        'a fine fiLM'
    """
    if kind not in KINDS or not 0 <= rate <= 1:
        raise ValueError(f"kind is {kind!r} and rate {rate}, expected one of {KINDS} and 0 to 1")
    rng, letters = random.Random(f"{seed} {kind} {text}"), list(text)
    i = 0
    while i < len(letters):
        if letters[i].isalpha() and rng.random() < rate:
            if kind == "case":
                letters[i] = letters[i].swapcase()
            elif kind == "keyboard":
                letters[i] = _neighbour(letters[i], rng)
            elif i + 1 < len(letters) and letters[i + 1].isalpha():
                letters[i], letters[i + 1] = letters[i + 1], letters[i]
                i += 1
        i += 1
    return "".join(letters)


def noisy_task(task: Task, kind: str, *, rate: float = 0.1, seed: int = 0) -> Task:
    """The task with noise in the texts of its prompts; choices and answers stay.

    Raises:
        ValueError: no field of the prompt holds a text.
    """
    used = [name for name in fields_of(task.prompt) if isinstance(task.items[0][name], str)]
    if not used:
        raise ValueError(f"{task.name} has no text in its prompt {task.prompt!r}")
    change = lambda item: {n: noisy(str(item[n]), kind, rate=rate, seed=seed) for n in used}
    items = tuple({**item, **change(item)} for item in task.items)
    return dataclasses.replace(task, name=f"{task.name}.{kind}", items=items)


def _neighbour(letter: str, rng: random.Random) -> str:
    for row in _ROWS:
        at = row.find(letter.lower())
        if at >= 0:
            near = rng.choice(row[max(at - 1, 0) : at] + row[at + 1 : at + 2])
            return near.upper() if letter.isupper() else near
    return letter
