"""Which tensors of a Hugging Face checkpoint make the parameters of a PatchEmbedding."""

from typing import Any

from .tensor_layouts import PatchKernel, Reshaped
from .weight_map import WeightMap


def patch_maps(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The kernel and bias of the patches, the first token, and the positions.

    `names` has the whole names of the token and of the positions. A table that is no module's
    `weight` has an axis of 1 before its rows, and its token has two.
    """
    p, d = c.patches, c.width
    maps = {
        "kernel": WeightMap(
            (f"{names['patches']}.weight",),
            (p.inputs, d),
            PatchKernel((p.channels, p.size, p.size)),
        )
    }
    if p.bias:
        maps["bias"] = WeightMap((f"{names['patches']}.bias",), (d,))
    token, table = names["class_token"], names["positions"]
    is_bare = not table.endswith(".weight")
    ones = (1,) * is_bare
    if p.class_token:
        maps["class_token"] = WeightMap((token,), (d,), Reshaped((*ones, *ones, d), (d,)))
    rows = (p.tokens, d)
    maps["positions"] = WeightMap((table,), rows, Reshaped((*ones, *rows), rows))
    return {f"patches/{path}": weight_map for path, weight_map in maps.items()}
