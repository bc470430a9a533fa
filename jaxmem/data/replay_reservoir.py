"""Reservoir: a uniform sample of all examples that were seen, in a limit of bytes (Vitter, 1985).

Each example draws a number in 0 to 1, and those with the least numbers are kept, as many as fit.
Token ids take as many bits as the vocabulary needs.
"""

import bisect
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.arguments import POSITIVE, ROW_OF_INTEGERS, Kind, takes

_HEAD = struct.Struct("<IIQQf")  # vocabulary, examples, seen, seed, bound of the numbers
_EXAMPLE = struct.Struct("<fHH")  # number, tokens, target
_STATE = Kind("bytes", lambda x: isinstance(x, bytes))
_MOST = (1 << 16) - 1  # tokens of an example, and its target


class Reservoir(Sequence):
    """Examples for replay: `reservoir[i]` is {"ids": (n,) i32, "target": int}, in no order.

    All examples that were added are kept with about the same probability, however many come after,
    so a model that also trains on a `sample` does not forget. `nbytes` is what `state()` takes,
    which is at most `most`, and `Reservoir.from_state` goes on with it.

    Args:
        most: bytes, of ids, targets and all that belongs to them; 28 bytes are the least.
        vocabulary: ids are below it.
        seed: the same seed keeps the same examples.

    Raises:
        ValueError: `most` is less than 28 bytes.

    Example:
        >>> import jaxmem as jm
        >>> reservoir = jm.data.Reservoir(1000, vocabulary=30_522)
        >>> for i in range(500):
        ...     reservoir.add([101, 1000 + i, 102], target=i % 2)
        >>> len(reservoir), reservoir.nbytes, sorted(reservoir[0])
        (69, 994, ['ids', 'target'])
    """

    @takes(most=POSITIVE, vocabulary=POSITIVE)
    def __init__(self, most: int, *, vocabulary: int, seed: int = 0):
        if most < _HEAD.size:
            raise ValueError(f"most is {most} bytes, expected at least {_HEAD.size}")
        self.most, self.vocabulary, self.seen, self._seed = most, vocabulary, 0, seed
        self._bits = max(1, (vocabulary - 1).bit_length())
        self._bound, self.nbytes = 1.0, _HEAD.size
        self._examples: list[tuple[float, bytes]] = []  # by their numbers

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, at: Any) -> dict[str, Any]:
        data = self._examples[range(len(self))[at]][1]
        _, count, target = _EXAMPLE.unpack(data[: _EXAMPLE.size])
        bits = np.unpackbits(np.frombuffer(data[_EXAMPLE.size :], np.uint8))
        bits = bits[: count * self._bits].reshape(count, self._bits)
        return {"ids": bits @ (1 << np.arange(self._bits)).astype(np.int32), "target": target}

    @takes(ids=ROW_OF_INTEGERS)
    def add(self, ids: Sequence[int] | np.ndarray, *, target: int = 0) -> None:
        """Shows the reservoir one example, which may be kept, and then takes the place of others.

        Raises:
            ValueError: there are no ids or more than 65,535, one is outside the vocabulary, or the
                target is not 0 to 65,535.
        """
        ids = np.asarray(ids, np.int64)
        if not 0 < len(ids) <= _MOST or not 0 <= target <= _MOST:
            raise ValueError(f"{len(ids)} ids with the target {target}, expected 1 to {_MOST} ids")
        if ids.min() < 0 or ids.max() >= self.vocabulary:
            raise ValueError(
                f"ids are from {ids.min()} to {ids.max()}, expected below {self.vocabulary}"
            )
        number = float(np.random.default_rng((self._seed, self.seen)).random(dtype=np.float32))
        self.seen += 1
        if number >= self._bound:
            return
        bits = (ids[:, None] >> np.arange(self._bits)) & 1
        data = _EXAMPLE.pack(number, len(ids), target)
        data += np.packbits(bits.astype(np.uint8).reshape(-1)).tobytes()
        bisect.insort(self._examples, (number, data))
        self.nbytes += len(data)
        while self.nbytes > self.most:
            self._bound, gone = self._examples.pop()
            self.nbytes -= len(gone)

    @takes(count=POSITIVE)
    def sample(self, count: int, random: np.random.Generator) -> list[dict[str, Any]]:
        """`count` of the examples, drawn at random; one may come twice.

        Raises:
            ValueError: the reservoir is empty.
        """
        if not self._examples:
            raise ValueError("the reservoir is empty: nothing was added, or nothing fits into it")
        return [self[int(i)] for i in random.integers(0, len(self), count)]

    def state(self) -> bytes:
        """The whole reservoir as `nbytes` bytes."""
        head = _HEAD.pack(self.vocabulary, len(self), self.seen, self._seed, self._bound)
        return head + b"".join(data for _, data in self._examples)

    @classmethod
    @takes(state=_STATE, most=POSITIVE)
    def from_state(cls, state: bytes, most: int) -> "Reservoir":
        """The reservoir whose `state()` was taken, with a limit of `most` bytes.

        Raises:
            ValueError: the bytes are no state, or more than `most`.
        """
        if not _HEAD.size <= len(state) <= most:
            raise ValueError(f"the state has {len(state)} bytes, expected {_HEAD.size} to {most}")
        vocabulary, count, seen, seed, bound = _HEAD.unpack(state[: _HEAD.size])
        new = cls(most, vocabulary=max(1, vocabulary), seed=seed)
        new.seen, new._bound, at = seen, bound, _HEAD.size
        for _ in range(count):
            if at + _EXAMPLE.size > len(state):
                raise ValueError("the state is damaged: it ends within an example")
            number, tokens, _target = _EXAMPLE.unpack(state[at : at + _EXAMPLE.size])
            end = at + _EXAMPLE.size - (-tokens * new._bits // 8)
            new._examples.append((number, state[at:end]))
            at = end
        if at != len(state):
            raise ValueError(f"the state is damaged: {count} examples take {at} bytes")
        new.nbytes = at
        return new
