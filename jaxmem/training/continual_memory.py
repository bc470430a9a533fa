"""ContinualMemory: one number of bytes for replay, EWC and orthogonal adapters together."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax import Array

from ..core.arguments import POSITIVE, TREE, takes
from ..core.byte_counts import nbytes as tree_nbytes
from ..data.replay_reservoir import Reservoir
from ..train.elastic_weights import Anchor, anchor, anchor_penalty, squared_gradients
from ..train.orthogonal_adapters import adapter_directions, orthogonality


class ContinualMemory:
    """What is kept of earlier tasks while adapters learn the next, in at most `most` bytes.

    EWC takes 3.03 bytes a number of the pairs, and orthogonal adapters 2 bytes a number of their
    directions, however many tasks there are. What is left is for a reservoir of examples. `penalty`
    is added to the loss of the next task, and a share of its batches comes from
    `memory.reservoir.sample`. After a task, `learnt` takes what it leaves behind.

    Args:
        most: bytes of all that is kept; `nbytes` is what it is now.
        pairs: adapters, as `jm.adapters.adapters` makes them; they may be abstract.
        vocabulary: token ids of examples are below it.
        elastic: the factor of `anchor_penalty`; 0 keeps no Fisher.
        orthogonal: the factor of `orthogonality`; 0 keeps no directions.
        rank: directions that are kept of each adapted weight.
        seed: of what is drawn and rounded at random.

    Raises:
        ValueError: `most` is less than EWC, directions and an empty reservoir take; a factor is
            negative.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> pairs = jm.adapters.adapters(jax.random.key(0), {"kernel": jnp.ones((64, 64))}, 4)
        >>> memory = ContinualMemory(4096, pairs, vocabulary=100, elastic=1.0)
        >>> loss = lambda pairs, rows: sum((x**2).sum() for x in jax.tree.leaves(pairs))
        >>> memory.learnt(pairs, loss, jnp.zeros((2, 3)), [([1, 2, 3], 0)] * 1000)
        >>> 4000 < memory.nbytes <= 4096, float(memory.penalty(pairs)) < 0.01
        (True, True)
    """

    @takes(most=POSITIVE, pairs=TREE, vocabulary=POSITIVE, rank=POSITIVE)
    def __init__(
        self,
        most: int,
        pairs: dict[str, dict],
        *,
        vocabulary: int,
        elastic: float = 0.0,
        orthogonal: float = 0.0,
        rank: int = 1,
        seed: int = 0,
    ):
        if not (elastic >= 0 and orthogonal >= 0):
            raise ValueError(f"factors are {elastic} and {orthogonal}, expected at least 0")
        self.elastic, self.orthogonal, self.rank, self.most = elastic, orthogonal, rank, most
        self.anchor: Anchor | None = None
        self.directions: dict[str, Array] | None = None
        self._seed, self._tasks = seed, 0
        fixed = 0
        if elastic:
            fixed += tree_nbytes(jax.eval_shape(lambda p: anchor(p, p), pairs))
        if orthogonal:
            fixed += tree_nbytes(jax.eval_shape(lambda p: adapter_directions(p, rank), pairs))
        least = len(Reservoir(1024, vocabulary=vocabulary).state())
        if most < fixed + least:
            raise ValueError(
                f"most is {most} bytes, and what is kept of these adapters takes {fixed} beside "
                f"{least} of an empty reservoir: take fewer adapters, or a lower rank"
            )
        self.reservoir = Reservoir(most - fixed, vocabulary=vocabulary, seed=seed)

    @property
    def nbytes(self) -> int:
        """Bytes of the reservoir, the anchor and the directions now."""
        kept = [x for x in (self.anchor, self.directions) if x is not None]
        return self.reservoir.nbytes + sum(map(tree_nbytes, kept))

    @takes(pairs=TREE)
    def penalty(self, pairs: dict[str, dict]) -> Array | float:
        """What to add to the loss of adapters, a scalar in f32; 0 before the first `learnt`."""
        total = 0.0
        if self.anchor is not None:
            total = total + self.elastic * anchor_penalty(pairs, self.anchor)
        if self.directions is not None:
            total = total + self.orthogonal * orthogonality(pairs, self.directions)
        return total

    @takes(pairs=TREE, batch=TREE)
    def learnt(
        self,
        pairs: dict[str, dict],
        loss: Callable[[Any, Any], Array],
        batch: Any,
        examples: Iterable[tuple[Any, int]],
    ) -> None:
        """Takes what a task that has just been learnt leaves behind.

        Args:
            pairs: the adapters as they are now.
            loss: the task's loss(pairs, rows) without the penalty.
            batch: rows of the task, of which the Fisher is made; a few hundred are enough.
            examples: (token ids, target) of all rows of the task, for the reservoir.
        """
        if self.elastic:
            fisher = jax.jit(lambda p, b: squared_gradients(loss, p, b))(pairs, batch)
            self.anchor = anchor(
                pairs, fisher, before=self.anchor, seed=self._seed + 997 * self._tasks
            )
        if self.orthogonal:
            self.directions = adapter_directions(pairs, self.rank, before=self.directions)
        for ids, target in examples:
            self.reservoir.add(np.asarray(ids), target=target)
        self._tasks += 1
