"""donations: arguments whose memory a result could take over, but does not."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..core.arguments import ARGNUMS, takes
from ..core.byte_counts import nbytes


@dataclasses.dataclass(frozen=True)
class Donations:
    """Which arguments of a call could be donated, and which are donated without use.

    `missed` arguments are not donated although a result has their shape and dtype, so argument and
    result are in memory at once. `vain` arguments are donated, but no result can take their memory.
    """

    missed: dict[str, int]  # {argument: bytes}
    vain: dict[str, int]  # {argument: bytes}

    @property
    def cost(self) -> int:
        """Bytes that donating the `missed` arguments would save, at most."""
        return sum(self.missed.values())

    def __str__(self) -> str:
        rows = [("could be donated", *row) for row in self.missed.items()]
        rows += [("donated in vain", *row) for row in self.vain.items()]
        lines = [f"{n:>18,}  {kind:<18}{name}" for kind, name, n in rows]
        return "\n".join([*lines, f"{self.cost:>18,}  bytes are held twice"])


@takes(donate_argnums=ARGNUMS)
def donations(fn: Callable, *args: Any, donate_argnums: int | Sequence[int] = ()) -> Donations:
    """Which arguments of a step stay in memory beside the results that replace them.

    If `fn` is jitted, its own donation holds; arguments may be abstract. A result takes over the
    memory of one donated argument of its shape and dtype, as in XLA. An argument that is used after
    the call, such as a batch, may have the shape of a result by chance; such an argument is listed
    as missed too.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> step = lambda params, batch: {"w": params["w"] - batch.sum()}
        >>> w, x = {"w": jnp.ones((64, 64))}, jnp.ones(8)
        >>> print(donations(step, w, x))
                    16,384  could be donated  args[0]['w']
                    16,384  bytes are held twice
        >>> donations(step, w, x, donate_argnums=0).cost
        0
    """
    donate = (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
    is_jitted = isinstance(fn, jax.stages.Wrapped) and not donate
    jitted = fn if is_jitted else jax.jit(fn, donate_argnums=donate)
    traced = jitted.trace(*args)
    results = [(x.shape, x.dtype) for x in jax.tree.leaves(traced.out_info)]
    arguments = jax.tree_util.tree_leaves_with_path(traced.args_info)
    vain, missed = {}, {}
    # Match donated arguments to results first: XLA gives the results their memory.
    for path, x in sorted(arguments, key=lambda item: not item[1].donated):
        kind, name = (x.shape, x.dtype), "args" + jax.tree_util.keystr(path[1:])
        taken = kind in results
        if taken:
            results.remove(kind)
        if taken != x.donated and math.prod(x.shape):
            (vain if x.donated else missed)[name] = nbytes(jax.ShapeDtypeStruct(*kind))
    return Donations(missed, vain)
