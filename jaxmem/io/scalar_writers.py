"""ScalarWriter: anything with `write_scalars(step, {name: number})`, such as a writer of clu."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from .atomic import write_whole


@runtime_checkable
class ScalarWriter(Protocol):
    """Takes the numbers of a step; for Weights & Biases, MLflow and others write one of your own.

    Example:
        >>> class Printed:
        ...     def write_scalars(self, step, scalars):
        ...         print(step, scalars)
        >>> Printed().write_scalars(3, {"loss": 2.5})
        3 {'loss': 2.5}
    """

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the numbers of one step."""


class TensorBoard:
    """Writes event files that TensorBoard shows.

    Raises:
        ImportError: tensorboardX is missing.
        TypeError: the folder is no path.
    """

    def __init__(self, folder: str | os.PathLike):
        _check_path("TensorBoard", "folder", folder)
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                'TensorBoard files need tensorboardX: pip install "jaxmem[tracking]"'
            ) from error
        self._writer = SummaryWriter(os.fspath(folder))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the numbers of one step, and flushes them."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class JsonLines:
    """Appends one JSON object a step to a file; a run that is continued drops later steps first.

    Raises:
        TypeError: the path is none, or `after` is no integer.
        ValueError: `after` is negative.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "scalars.jsonl")
        ...     for step in (1, 2):
        ...         JsonLines(path).write_scalars(step, {"loss": 4.0 / step})
        ...     JsonLines(path, after=1).history
        [{'step': 1, 'loss': 4.0}]
    """

    def __init__(self, path: str | os.PathLike, after: int | None = None):
        _check_path("JsonLines", "path", path)
        if after is not None and not isinstance(after, int):
            raise TypeError(f"JsonLines: after is {after!r}, expected an int or None")
        if after is not None and after < 0:
            raise ValueError(f"JsonLines: after is {after}, expected at least 0")
        self._path = pathlib.Path(path)
        if after is not None and self._path.exists():
            kept = [row for row in self.history if row["step"] <= after]
            write_whole(self._path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    @property
    def history(self) -> list[dict]:
        """The rows of the file; a last line that a kill cut off is left out."""
        if not self._path.exists():
            return []
        rows = []
        for line in self._path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends a line; a number that is not finite is null, as JSON knows no other."""
        numbers = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")


def _check_path(name: str, argument: str, value: object) -> None:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}: {argument} is {value!r}, expected a path")
