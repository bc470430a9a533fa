"""What a search may choose: encodings, optimizer states, remat policies, loss chunks, meshes."""

import dataclasses
import math
from collections.abc import Callable

import optax

from ..codecs import Int
from ..optimizers import in_bfloat16, in_float32, in_int4, in_int8, scale_sgd
from ..train.remat_policy import Remat

CHUNKS = (512, 128)  # positions whose logits exist at a time
ENCODINGS = (None, Int(8), Int(4, group=128), Int(4))
# The forms of an optimizer's state, and those whose update takes a compiler minutes.
STATES = {"float32": in_float32, "bfloat16": in_bfloat16, "int8": in_int8, "int4": in_int4}
CODED_STATES = ("int8", "int4")
WEIGHTS = ("bfloat16", "split")  # the forms of weights that are trained
TILE_TOKENS = 512  # of a row, that a layer computes at a time if it does not compute all
# What changes the weights, and a learning rate that plans are compiled with.
OPTIMIZERS = {"adamw": (optax.adamw, 1e-4), "scale": (scale_sgd, 1e-3)}
HELD = {
    None: 1.0,
    "int8": 0.52,
    "host": 0.0,
}  # bytes on the device of an input of a layer in bfloat16
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


def micro_batches(rows: int) -> list[int]:
    """The numbers of micro-batches to try: those that divide a device's rows of the batch.

    Example:
        >>> micro_batches(6)
        [1, 2, 3, 6]
    """
    return [n for n in range(1, rows + 1) if rows % n == 0]


def chunks(seq: int) -> list[int]:
    """The numbers of positions to try whose logits exist at a time: divisors of `seq`.

    Example:
        >>> chunks(2048), chunks(96)
        ([128, 512], [96])
    """
    largest = lambda most: next(n for n in range(min(most, seq), 0, -1) if seq % n == 0)
    return sorted({largest(most) for most in CHUNKS})


def tiles(seq: int) -> list[int | None]:
    """The tokens of a row to try that a layer computes at a time; None is all of them.

    Example:
        >>> tiles(2048), tiles(512)
        ([None, 512], [None])
    """
    return [None, TILE_TOKENS] if seq >= 2 * TILE_TOKENS else [None]


def prompts(seq: int, cache_bits: int) -> list[int]:
    """The numbers of tokens to try that a prompt is read by, for a cache of `seq` tokens.

    Example:
        >>> prompts(128, 16), prompts(128, 4), prompts(8, 16)
        ([64, 16], [64], [1])
    """
    return [n for n in PROMPTS if n <= seq and (cache_bits == 16 or n >= 64)] or [1]
