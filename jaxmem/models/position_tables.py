"""A table of positions in a checkpoint must be the sinusoids that are computed in its place."""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..architectures.attention.seq2seq_positions import sinusoids
from ..core.lazy import Lazy
from .checkpoint_tensors import bare_name

_TABLE = re.compile(r"(en|de)coder\.embed_positions\.weight")
_TOLERANCE = 1e-2  # bfloat16 holds numbers up to 1 within 4e-3


def check_sinusoids(config: Any, tensors: dict[str, Lazy], source: Any) -> None:
    """Refuses a Pegasus or a Marian whose table holds other positions: transformers reads it.

    Raises:
        ValueError: a table differs from the sinusoids; the message names it and `source`.
    """
    if getattr(config, "positions", "") != "sinusoidal" or config.pad is not None:
        return
    for name in filter(lambda name: _TABLE.fullmatch(bare_name(name)), tensors):
        table = np.asarray(tensors[name].load(), np.float32)
        computed = np.asarray(sinusoids(jnp.arange(len(table))[None], config)[0])
        if table.shape != computed.shape or np.abs(table - computed).max() > _TOLERANCE:
            raise ValueError(
                f"{source}: {name} holds other positions than the sinusoids that are computed here"
            )
