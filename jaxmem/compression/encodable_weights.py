"""The weights of a tree that may be encoded, with the candidate codecs of each."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.codec import is_codec
from ..core.lazy import is_lazy
from ..core.leaf import is_dense_float
from ..core.paths import check_same_tree, match


def choices(leaves, candidates, uses) -> dict[str, list]:
    """{path: codecs} of the leaves that may be encoded: matrices, or those that a rule matches."""
    check_same_tree(leaves, uses=uses)
    able = {path: leaf for path, leaf in leaves.items() if is_dense_float(leaf)}
    if isinstance(candidates, Mapping):
        chosen = {p: c for p, c in match(list(leaves), dict(candidates)).items() if p in able}
    else:
        chosen = {p: candidates for p, leaf in able.items() if is_matrix(leaf, p, uses)}
    for path, codecs in chosen.items():
        if not isinstance(codecs, Sequence) or not codecs:
            raise ValueError(f"{path}: the candidates are {codecs!r}, expected a list of codecs")
        for codec in codecs:
            if not is_codec(codec):
                raise TypeError(f"{path}: {codec!r} is no codec, expected one such as Int(4)")
    return chosen


def is_matrix(leaf: Any, path: str, uses: Mapping | None) -> bool:
    """Whether each layer of a weight has two axes or more, and is multiplied or looked up."""
    multiplied = {"dot_general", "gather", "conv_general_dilated"}
    used = uses is None or any(use.op in multiplied for use in uses.get(path, ()))
    return used and leaf.ndim - (is_lazy(leaf) and leaf.stacked) >= 2
