"""RunCheckpoints: the numbered checkpoints of a run, from which it is continued after a kill."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ..interop.orbax import Restore, Save
from ..io import multihost

KEPT = 2  # checkpoints
DATA = "data (hash of the first batch)"  # None of many processes


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other runs out of a folder; a process that is killed leaves no lock.

    Of a run's processes the first one takes it for all.

    Raises:
        ValueError: another run is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        is_refused = False
        if jax.process_index() == 0:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_refused = True
        if multihost.largest(np.array([is_refused])).any():
            raise ValueError(f"another run is at work in {folder}, expected one")
        yield
    finally:
        os.close(handle)


class RunCheckpoints:
    """Orbax checkpoints of a train state, beside what the data and the run say of themselves.

    A checkpoint appears whole or not at all, and what a killed run left half-written is removed.

    Raises:
        ValueError: the folder holds checkpoints of another run than `record` says.
    """

    def __init__(self, folder: pathlib.Path, record: dict):
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self._record = json.loads(json.dumps(record))
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self._folder = folder
        if self.latest is not None:
            self._check_same_run()

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The steps that the latest checkpoint has behind it; None if there is no checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data_state: Any) -> None:
        """Writes the state after `step` steps, and where the data stands."""
        about = {"run": self._record, "data": data_state}
        args = ocp.args.Composite(state=Save(state), about=ocp.args.JsonSave(about))
        self._manager.save(step, args=args)
        self._manager.wait_until_finished()

    def restore(self, shardings: Any = None) -> tuple[Any, Any]:
        """(the state of the latest checkpoint, where its data stood)."""
        args = ocp.args.Composite(state=Restore(shardings=shardings), about=ocp.args.JsonRestore())
        restored = self._manager.restore(self.latest, args=args)
        return restored["state"], restored["about"]["data"]

    def _check_same_run(self) -> None:
        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        saved = self._manager.restore(self.latest, args=args)["about"]["run"]
        for name in sorted({*saved, *self._record}):
            old, new = saved.get(name), self._record.get(name)
            is_unknown = name == DATA and None in (old, new)
            if old != new and not is_unknown:
                raise ValueError(
                    f"{self._folder} holds a run with {name} {_first_difference(old, new)}; "
                    "continue it as it was, or choose another place"
                )


def _first_difference(old: Any, new: Any) -> str:
    """What two values of a record differ in, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                return f"{name} {old.get(name)!r}, not {new.get(name)!r}"
    return f"{old!r}, not {new!r}"
