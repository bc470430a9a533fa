"""Where a command writes: findings to stdout, progress to stderr."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Output:
    """With `json` everything goes to stderr, since stdout belongs to the JSON."""

    json: bool = False

    def say(self, text: object, end: str = "\n") -> None:
        """Shows something found."""
        print(text, end=end, file=sys.stderr if self.json else sys.stdout, flush=True)

    def note(self, text: str) -> None:
        """Shows progress."""
        _console(stderr=True).print(text)

    def table(self, title: str, heads: Iterable[str], rows: Iterable, caption: str = "") -> None:
        """Shows rows of text under their heads: the first column to the left, the rest right."""
        how = {"title_justify": "left", "caption_justify": "left", "padding": (0, 1, 0, 0)}
        table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, **how)
        for i, head in enumerate(heads):
            table.add_column(head, justify="right" if i else "left", no_wrap=not i)
        for row in rows:
            table.add_row(*map(str, row))
        _console(stderr=self.json).print(table)

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Shows that `what` is going on, and afterwards how long it took."""
        console, start = _console(stderr=True), time.perf_counter()
        with console.status(what):
            yield
        console.print(f"{what}: {time.perf_counter() - start:.1f} s")

    @contextlib.contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Like `step`, with a function that takes how many are done and of how many."""
        console, start = _console(stderr=True), time.perf_counter()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        quiet = not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        console.print(f"{what}: {time.perf_counter() - start:.1f} s")


def _console(stderr: bool) -> Console:
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)
