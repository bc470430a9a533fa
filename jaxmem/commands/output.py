"""Where a command writes: results to stdout, progress to stderr."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Output:
    """With `json` everything goes to stderr, since stdout belongs to the JSON.

    With `quiet` nothing is shown: the process is not the first of those at work.
    """

    json: bool = False
    quiet: bool = False

    def say(self, text: object, end: str = "\n") -> None:
        """Prints a result."""
        if not self.quiet:
            print(text, end=end, file=sys.stderr if self.json else sys.stdout, flush=True)

    def note(self, text: str) -> None:
        """Prints a note on the progress."""
        self._console(stderr=True).print(text)

    def table(self, title: str, heads: Iterable[str], rows: Iterable, caption: str = "") -> None:
        """Prints rows under their heads: the first column aligned left, the others right."""
        options = {"title_justify": "left", "caption_justify": "left", "padding": (0, 1, 0, 0)}
        table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, **options)
        for i, head in enumerate(heads):
            side = "right" if i else "left"
            table.add_column(head, justify=side, no_wrap=not i, overflow="fold")
        for row in rows:
            table.add_row(*map(brief, row))
        self._console(stderr=self.json).print(table)

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Shows that the work `what` is running, and at its end how long it took."""
        console, start = self._console(stderr=True), time.perf_counter()
        with console.status(what):
            yield
        console.print(f"{what}: {time.perf_counter() - start:.1f} s")

    @contextlib.contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Like `step`; yields a function that takes (parts done, parts in all)."""
        console, start = self._console(stderr=True), time.perf_counter()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        quiet = not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        console.print(f"{what}: {time.perf_counter() - start:.1f} s")

    @contextlib.contextmanager
    def stages(self) -> Iterator[Callable[[str, int, int], None]]:
        """A function (stage, done, total) that shows each stage, and its seconds at its end."""
        console, current, start = self._console(stderr=True), None, time.perf_counter()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
        )
        quiet = not console.is_terminal

        def end() -> None:
            if current is not None:
                bar.remove_task(bar.task_ids[0])
                console.print(f"{current}: {time.perf_counter() - start:.1f} s")

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal current, start
            if stage != current:
                end()
                current, start = stage, time.perf_counter()
                bar.add_task(stage, total=None)
            if total > 1:
                bar.update(bar.task_ids[0], completed=done, total=total)

        with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
            yield progress
            end()

    def _console(self, stderr: bool) -> Console:
        options = {"markup": False, "highlight": False, "emoji": False, "quiet": self.quiet}
        return Console(stderr=stderr, **options)


def brief(value: object) -> str:
    """A codec as its constructor call, without default arguments; any other value as text.

    Example:
        >>> import jaxmem as jm
        >>> brief(jm.GPTQ(jm.Search(jm.Int(4, group=64)), turns=4)), brief("kept")
        ('GPTQ(Search(Int(4, group=64)), turns=4)', 'kept')
    """
    if not dataclasses.is_dataclass(value):
        return str(value)
    return f"{type(value).__name__}({', '.join(_arguments(value))})"


def _arguments(value: object) -> Iterator[str]:
    """The constructor's arguments that differ from their defaults, as text."""
    written = lambda x: brief(x) if dataclasses.is_dataclass(x) else repr(x)
    for field in dataclasses.fields(value):
        argument = getattr(value, field.name)
        if argument == field.default:
            continue
        is_tuple = isinstance(argument, tuple)
        text = f"({', '.join(map(written, argument))})" if is_tuple else written(argument)
        yield text if field.default is dataclasses.MISSING else f"{field.name}={text}"
