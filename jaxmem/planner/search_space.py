"""What recipes are made of: remat policies, optimizer states, chunks of the loss, encodings."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

from ..codecs import Int
from ..train.remat_policy import Remat
from .recipe import Recipe

STATES = ("float32", "bfloat16", "int8")  # the last takes a compiler minutes, and so comes last
CHUNKS = (512, 128)  # positions whose logits exist at a time
ENCODINGS = (None, Int(8), Int(4, group=128), Int(4))
REMATS = (
    Remat("none"),
    Remat("dots_no_batch"),
    Remat("named", ("attn_out",)),
    Remat("full"),
    Remat("nested"),
)


def kinds(
    first: Recipe, encodings: Sequence, states: Sequence[str], chips: int
) -> Iterator[list[Recipe]]:
    """Recipes in lists: within one, remat, micro-batches and chunks trade seconds for bytes."""
    change = functools.partial(dataclasses.replace, first)
    places = (True, False) if chips > 1 else (True,)
    if first.task == "serve":
        for codec, bits, shared in itertools.product(encodings, (16, 8, 4), places):
            prompts = [n for n in (256, 64, 16) if n <= first.seq and (bits == 16 or n >= 64)]
            knobs = dict(encoding=codec, cache_bits=bits, shared=shared)
            yield [change(**knobs, prompt=n) for n in prompts or [1]]
        return
    rows = first.batch // chips
    micros = [n for n in range(1, rows + 1) if rows % n == 0]
    whole = lambda most: next(n for n in range(min(most, first.seq), 0, -1) if first.seq % n == 0)
    chunks = sorted({whole(most) for most in CHUNKS})
    for codec in encodings if first.task == "lora" else (None,):
        held = itertools.product(states, (False, True), places)
        for state, offload, shared in held:
            knobs = dict(encoding=codec, state=state, offload=offload, shared=shared)
            small = first.task == "lora" or chips > 1 or state == "int8"
            if offload and small:
                continue  # an adapter's state is small, as is a chip's share of one, or 8 bits
            fine = itertools.product(REMATS, micros, chunks)
            yield [change(**knobs, remat=r, micro=n, chunk=c) for r, n, c in fine]
