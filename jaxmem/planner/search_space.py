"""The choices that recipes are made of: meshes, remat policies, loss chunks, encodings."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..codecs import Int
from ..parallel.axes import ROWS
from ..train.remat_policy import Remat
from .recipe import Recipe

CHUNKS = (512, 128)  # positions whose logits exist at a time
ENCODINGS = (None, Int(8), Int(4, group=128), Int(4))
TENSOR_SIZES = (1, 2, 4)  # sizes of the mesh axis `tensor` that are tried to train
PROMPTS = (256, 64, 16)  # tokens of a row's prompt that are read at a time


@dataclasses.dataclass(frozen=True)
class RematCost:
    """A remat policy, what it computes again, and what it keeps for the backward pass.

    `kept` gives bytes of a stack of layers from their number and, of one layer, the bytes of its
    input, of the results of its products in f32, and of its attention scores in f32.
    """

    policy: Remat
    recomputed: float  # the share of the forward pass that the backward pass runs again
    kept: Callable[[int, float, float, float], float]


REMATS = {
    cost.policy.kind: cost
    for cost in (
        RematCost(Remat("none"), 0.0, lambda n, x, products, scores: n * (products + 2 * scores)),
        RematCost(Remat("dots_no_batch"), 0.1, lambda n, x, products, scores: n * products),
        RematCost(Remat("named", ("attn_out",)), 0.9, lambda n, x, products, scores: n * 2 * x),
        RematCost(Remat("full"), 1.0, lambda n, x, products, scores: n * x),
        RematCost(Remat("nested"), 2.0, lambda n, x, products, scores: 2 * math.isqrt(n) * x),
    )
}


def meshes(task: str, batch: int, count: int, experts: int = 1) -> list[dict[str, int] | None]:
    """The meshes of `count` chips that `plan` tries, without those that the rows do not divide.

    A mixture of `experts` is also served with its experts over `expert`. To train one, no mesh with
    this axis is tried: rows are not divided over it, so each of its devices computes attention.

    Example:
        >>> meshes("train", 8, 8)
        [{'fsdp': 8}, {'fsdp': 4, 'tensor': 2}, {'fsdp': 2, 'tensor': 4}]
        >>> meshes("serve", 2, 4), meshes("serve", 2, 1)
        ([{'tensor': 4}, {'data': 2, 'tensor': 2}], [None])
        >>> meshes("serve", 1, 8, experts=128)
        [{'tensor': 8}, {'expert': 8}]
    """
    if count == 1:
        return [None]
    powers = [2**i for i in range(count.bit_length()) if count % 2**i == 0]
    if task == "serve":  # the most chips for each weight first
        tensors = sorted({*powers, count}, reverse=True)
        rows = "data"
    else:
        tensors = [n for n in TENSOR_SIZES if n in powers and n < count]
        rows = "fsdp"
    sizes = [{rows: count // n, "tensor": n} for n in tensors if batch % (count // n) == 0]
    if task == "serve":
        over = [n for n in tensors if n > 1 and experts % n == 0 and batch % (count // n) == 0]
        sizes += [{rows: count // n, "expert": n} for n in over]
    return [{name: n for name, n in axes.items() if n > 1} for axes in sizes]


def kinds(
    first: Recipe,
    encodings: Sequence[Any],
    states: Sequence[str],
    meshes: Sequence[Mapping[str, int] | None],
    cache_bits: Sequence[int] = (16, 8, 4),
) -> Iterator[list[Recipe]]:
    """Recipes in lists: within one, remat, micro-batches and chunks trade seconds for bytes."""
    change = functools.partial(dataclasses.replace, first)
    if first.task == "serve":
        for codec, bits, mesh in itertools.product(encodings, cache_bits, meshes):
            prompts = [n for n in PROMPTS if n <= first.seq and (bits == 16 or n >= 64)]
            knobs = dict(encoding=codec, cache_bits=bits, mesh=mesh)
            yield [change(**knobs, prompt=n) for n in prompts or [1]]
        return
    divisor = lambda most: next(n for n in range(min(most, first.seq), 0, -1) if first.seq % n == 0)
    chunks = sorted({divisor(most) for most in CHUNKS})
    for codec in encodings if first.task == "lora" else (None,):
        layouts = [(mesh, shared) for mesh in meshes for shared in _shared(mesh)]
        for state, offload, (mesh, shared) in itertools.product(states, (False, True), layouts):
            # An adapter's state is small, and so is a chip's share of one, or one of 8 bits.
            if offload and (first.task == "lora" or mesh or state == "int8"):
                continue
            knobs = dict(encoding=codec, state=state, offload=offload, shared=shared, mesh=mesh)
            rows = first.batch // math.prod((mesh or {}).get(axis, 1) for axis in ROWS)
            micros = [n for n in range(1, rows + 1) if rows % n == 0]
            policies = [cost.policy for cost in REMATS.values()]
            fine = itertools.product(policies, micros, chunks)
            yield [change(**knobs, remat=r, micro=n, chunk=c) for r, n, c in fine]


def _shared(mesh: Mapping[str, int] | None) -> tuple[bool, ...]:
    """The values of `Recipe.shared` that differ on a mesh: both if there is an axis `fsdp`."""
    return (True, False) if mesh and "fsdp" in mesh else (True,)
