"""inspect: the bytes of each part of a model, now and in fewer bits."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

import jaxmem as jm

from ..compression.fit_inputs import abstract
from ..core.paths import is_whole
from ..models import Model
from ..models.example_inputs import example_inputs
from .options import SourceOptions
from .output import Output
from .sizes import show

PARTS = ("embeddings", "attention", "mlp", "norms", "head", "other")
MEMORIES_GIB = (8, 16, 24, 40, 80)  # laptops, TPU v5e and T4, L4, A100, H100
CACHE_TOKENS = 2048  # tokens of KV cache that have to fit beside the weights
USABLE_SHARE = 0.9  # the share of a memory that weights and cache may take


@dataclasses.dataclass(frozen=True)
class Inspect(SourceOptions):
    """Shows the bytes of each part of a model, and which memories would hold it in fewer bits.

    Reads no weights, except from a directory that `jaxmem fit` wrote.
    """

    def run(self, output: Output) -> dict:
        """Shows the figures on `output` as tables, and returns them as plain data."""
        model = self.load()
        parts, formats = by_part(model), as_formats(model)
        output.say(model.source)
        rows = [(name, *_row(part)) for name, part in parts.items()]
        heads = ("part", "weights", "bytes", "", "bits/weight")
        output.table("", heads, rows, _tied(model))
        cache = cache_bytes(model, 1)
        beside = f" and {CACHE_TOKENS} tokens of KV cache" if cache else ""
        note = f"✓: weights{beside} take at most {USABLE_SHARE:.0%} of the memory"
        output.table(
            "What would fit" + (f" (KV cache: {cache:,} bytes a token)" if cache else ""),
            ("in", "size", "bits/weight", *(f"{gib} GiB" for gib in MEMORIES_GIB)),
            [
                (f["format"], show(f["bytes"]), f"{f['bits_per_weight']:.2f}", *_ticks(f))
                for f in formats
            ],
            note,
        )
        return {
            "source": model.source,
            "config": model.config.to_dict(),
            "parts": parts,
            "cache_bytes_per_token": cache,
            "formats": formats,
        }


def by_part(model: Model) -> dict[str, dict]:
    """{part: {weights, bytes, bits_per_weight}}, and the `total`."""
    leaves = dict(zip(jm.paths(model.tensors), jax.tree.leaves(model.tensors, is_leaf=is_whole)))
    sizes = {}
    for part in (*PARTS, "total"):
        members = [x for path, x in leaves.items() if part in ("total", part_of(path))]
        if members:
            weights = sum(math.prod(x.shape) for x in members)
            sizes[part] = _sizes(weights, sum(map(memory_bytes, members)))
    return sizes


def part_of(path: str) -> str:
    """The member of `PARTS` that the weight at `path` belongs to.

    Example:
        >>> part_of("layers/attn/q/kernel"), part_of("final_norm/scale"), part_of("embed/embedding")
        ('attention', 'norms', 'embeddings')
    """
    names = path.split("/")
    if any("norm" in name for name in names):
        return "norms"
    known = {"attn": "attention", "mlp": "mlp", "head": "head", "embedding": "embeddings"}
    return next((known[name] for name in names if name in known), "other")


def memory_bytes(leaf: Any) -> int:
    """Bytes of a leaf in memory; a lazy leaf counts as if it were read."""
    return jm.nbytes(leaf if jm.is_encoded(leaf) else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))


def as_formats(model: Model) -> list[dict]:
    """The model's bytes dense and in round-to-nearest integers, each with the memories it fits."""
    dense = abstract(model.tensors)
    weights = sum(math.prod(x.shape) for x in jax.tree.leaves(dense))
    uses = jm.uses(model.apply, dense, *example_inputs(model))
    sizes = {"f32": jm.nbytes(dense), "bf16": jm.nbytes(abstract(model.tensors, jnp.bfloat16))}
    for bits in (8, 6, 5, 4):
        plan = jm.choose(dense, {".*/(kernel|embedding)": jm.Int(bits)})
        sizes[f"{bits} bits"] = jm.nbytes(jm.encode(dense, plan, uses=uses))
    cache = cache_bytes(model, CACHE_TOKENS) or 0
    return [
        {"format": name}
        | _sizes(weights, size)
        | {"fits_gib": [gib for gib in MEMORIES_GIB if size + cache <= USABLE_SHARE * gib * 2**30]}
        for name, size in sizes.items()
    ]


def cache_bytes(model: Model, length: int) -> int | None:
    """Bytes of a bf16 KV cache of `length` tokens; None for an encoder."""
    if not hasattr(model.config, "cache"):
        return None
    return jm.nbytes(jax.eval_shape(lambda: model.config.cache(1, length, jnp.bfloat16)))


def _sizes(weights: int, size: int) -> dict:
    return {"weights": weights, "bytes": size, "bits_per_weight": 8 * size / weights}


def _row(part: dict) -> tuple:
    size = part["bytes"]
    return f"{part['weights']:,}", f"{size:,}", show(size), f"{part['bits_per_weight']:.2f}"


def _ticks(row: dict) -> list[str]:
    return ["✓" if gib in row["fits_gib"] else "-" for gib in MEMORIES_GIB]


def _tied(model: Model) -> str:
    return "the head is the embedding" if getattr(model.config, "tied", False) else ""
