"""WeightPlanes: weights of `Planes` whose low planes leave the device, and come back when asked."""

import dataclasses
from typing import Any

import jax
import numpy as np

from ..codecs.bit_planes import PlanesArray


class WeightPlanes:
    """Params with leaves of `jm.Planes`, on the device in as many bits as were asked for last.

    Planes that leave the device are kept in host memory, each copied once. The device has its bytes
    back when nobody else holds the params: drop the tree that this was made of, and the trees of
    earlier calls.

    Raises:
        ValueError: no leaf is of `Planes`.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> weights = WeightPlanes({"w": jm.Planes().encode(jnp.ones((64, 64)))})
        >>> [jm.nbytes(weights.at(bits)) for bits in (8, 4, 8)], weights.host_nbytes
        ([4352, 2304, 4352], 2048)
    """

    def __init__(self, params: Any) -> None:
        leaves, self._tree = jax.tree.flatten(params, is_leaf=_is_planes)
        self._leaves = leaves
        self._host: dict[tuple[int, int], np.ndarray] = {}  # by leaf and plane
        bits = [x.bits for x in leaves if _is_planes(x)]
        if not bits:
            raise ValueError("params has no leaf of Planes, expected weights in jm.Planes()")
        self.most = min(bits)

    @property
    def host_nbytes(self) -> int:
        """Bytes of the planes in host memory; they stay there when they are on the device again."""
        return sum(plane.nbytes for plane in self._host.values())

    def at(self, bits: int) -> Any:
        """The params in their upper `bits`, all on the device.

        Raises:
            ValueError: `bits` is below 2, or more than a leaf has.
        """
        if not 2 <= bits <= self.most:
            raise ValueError(f"bits is {bits}, expected 2 to {self.most}, which the weights have")
        for i, leaf in enumerate(self._leaves):
            if _is_planes(leaf):
                self._leaves[i] = dataclasses.replace(leaf, planes=self._planes(i, leaf, bits - 1))
        return self._tree.unflatten(self._leaves)

    def _planes(self, i: int, leaf: PlanesArray, count: int) -> tuple:
        """The upper `count` planes of a leaf on the device; others go to the host."""
        for n, plane in enumerate(leaf.planes[count:], count):
            if (i, n) not in self._host:
                self._host[i, n] = np.array(plane)
        missing = [self._host[i, n] for n in range(len(leaf.planes), count)]
        place = getattr(leaf.planes[0], "sharding", None)
        return (*leaf.planes[:count], *(jax.device_put(plane, place) for plane in missing))


def _is_planes(x: Any) -> bool:
    return isinstance(x, PlanesArray)
