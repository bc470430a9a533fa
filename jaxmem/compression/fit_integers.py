"""The plan of integers that fits a number of bytes, by `budget`."""

from collections.abc import Mapping
from typing import Any

from .budgeting import Unreachable, budget
from .candidates import CANDIDATES, TWO_BITS
from .plan import Plan


def plan_integers(
    params: Any, nbytes: int, candidates: Mapping[str, tuple] | None = None, **options: Any
) -> Plan:
    """The plan that `budget` makes of 3 to 8 bits; of 2 bits too where 3 take too many bytes.

    With `candidates`, {regex: codecs}, the plan is made of these.

    `options` are those of `budget`: `uses`, `stats`, `sensitivity`, `seconds`.
    """
    if candidates is not None:
        return budget(params, nbytes=nbytes, candidates=candidates, **options)
    try:
        return budget(params, nbytes=nbytes, **options)
    except Unreachable:
        return budget(params, nbytes=nbytes, candidates=(*TWO_BITS, *CANDIDATES), **options)
