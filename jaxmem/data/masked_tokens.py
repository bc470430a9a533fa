"""MaskedBatches: batches whose tokens are hidden in part, to be predicted (Devlin et al., 2018)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..core.arguments import ROW_OF_INTEGERS, Kind, takes

_BATCHES = Kind(
    "batches with a state, such as jm.data.Batches",
    lambda x: hasattr(x, "state") and hasattr(x, "__next__"),
)
HIDDEN_SHARE, MASK_SHARE, RANDOM_SHARE = 0.15, 0.8, 0.1


class MaskedBatches:
    """Packed batches for a masked language model: "mask" says what is predicted, of "targets".

    Of the tokens of a batch 15 % are predicted, at least one: four fifths of these are `mask_id` in
    "ids", a tenth is a random token, and a tenth stays. Which ones depends on the seed and the
    step, so that a run that resumes hides the same ones.

    Args:
        batches: gives batches of "ids" and "segments", such as `Batches`.
        mask_id: the token that stands for a hidden one.
        vocab: token ids are below it.
        never: tokens that are never hidden, such as the ids of [CLS] and [SEP].
        seed: of what is hidden.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: `mask_id` is outside the vocabulary; or, of a batch, all tokens are in `never`.

    Example:
        >>> import jaxmem as jm
        >>> rows = jm.data.PackedRows([list(range(10, 18))] * 4, 8)
        >>> batch = next(MaskedBatches(jm.data.Batches(rows, 4), 3, 32))
        >>> bool((batch["targets"] >= 10).all()), bool((batch["ids"] == 3).any())
        (True, True)
    """

    @takes(batches=_BATCHES, never=ROW_OF_INTEGERS)
    def __init__(
        self, batches: Any, mask_id: int, vocab: int, *, never: Sequence[int] = (), seed: int = 0
    ):
        if not 0 <= mask_id < vocab:
            raise ValueError(f"mask_id is {mask_id}, expected 0 to below {vocab}")
        self.batches, self.mask_id, self.vocab = batches, mask_id, vocab
        self.never, self._seed = np.asarray(never, np.int32), seed

    @property
    def rows(self) -> Any:
        """The rows of the batches."""
        return self.batches.rows

    @property
    def steps_per_epoch(self) -> int:
        """Batches until rows come again."""
        return self.batches.steps_per_epoch

    def state(self) -> dict[str, int]:
        """Where the iterator is, as a few integers, which JSON can hold."""
        return self.batches.state() | {"hidden_by": self._seed}

    def restore(self, state: dict[str, int]) -> None:
        """Goes on where `state` was taken.

        Raises:
            ValueError: the state is of other batches, or of another seed.
        """
        if state.get("hidden_by") != self._seed:
            raise ValueError(f"the state has seed {state.get('hidden_by')}, this run {self._seed}")
        self.batches.restore({k: v for k, v in state.items() if k != "hidden_by"})

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        step = self.batches.state()["step"]
        return self.hidden(next(self.batches), step)

    def hidden(self, batch: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
        """A packed batch, some of whose tokens are hidden as those of this step are.

        Raises:
            ValueError: all tokens of the batch are among those that are never hidden.
        """
        random = np.random.default_rng((self._seed, step))
        ids, can_be_hidden = batch["ids"], batch["segments"] > 0
        can_be_hidden &= ~np.isin(ids, self.never)
        places = np.flatnonzero(can_be_hidden)
        if not len(places):
            raise ValueError("all tokens of a batch are among those that are never hidden")
        count = max(1, round(HIDDEN_SHARE * len(places)))
        chosen = random.choice(places, count, replace=False)
        draw, new = random.random(count), ids.reshape(-1).copy()
        others = random.integers(0, self.vocab, count, dtype=np.int32)
        masked, replaced = draw < MASK_SHARE, draw >= 1 - RANDOM_SHARE
        new[chosen[masked]] = self.mask_id
        new[chosen[replaced]] = others[replaced]
        mask = np.zeros(ids.size, bool)
        mask[chosen] = True
        shaped = {"ids": new.reshape(ids.shape), "mask": mask.reshape(ids.shape)}
        return batch | shaped | {"targets": ids}
