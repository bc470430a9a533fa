"""first_batch_hash: which data a run reads, so that a run that is continued reads the same."""

from typing import Any

import jax

from ..io.fingerprint import fingerprint


def first_batch_hash(batches: Any) -> str | None:
    """The hash of the batch that an iterator gives next, which it gives again afterwards.

    None with many processes: each of them reads other rows.

    Example:
        >>> import jaxmem as jm
        >>> batches = lambda text: jm.data.Batches(jm.data.PackedRows(text, 2), 1)
        >>> a, b = batches([[1, 2]] * 3), batches([[1, 3]] * 3)
        >>> first_batch_hash(a) == first_batch_hash(a), first_batch_hash(a) == first_batch_hash(b)
        (True, False)
    """
    if jax.process_count() > 1:
        return None
    state = batches.state()
    found = fingerprint(next(batches))
    batches.restore(state)
    return found
