"""group_gaps: whether compression changed the answers of one group of items more than of others."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.arguments import takes
from .paired_answers import SCORED, Flips, answer_flips


@dataclasses.dataclass(frozen=True)
class GroupGaps:
    """`groups` has {name: (score, Flips against the reference)}; shares are from 0 to 1.

    `worst` is the group whose answers changed most, and `gap` its share minus that of all items. Of
    groups below `least` items nothing is said: they are counted in `small`.
    """

    score: float
    changed: float
    groups: Mapping[str, tuple[float, Flips]]
    worst: str
    gap: float
    small: int


@takes(before=SCORED, after=SCORED)
def group_gaps(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], *, least: int = 5
) -> GroupGaps:
    """The scores and flips by the items' `group`, between the dense model and another one.

    For CrowS-Pairs and WinoBias the score is the share of stereotypical answers: ½ is even-handed.

    Raises:
        ValueError: the items are not the same ones, have no group, or no group has `least`
            items; `least` is below 1.

    Example:
        >>> item = lambda i, g, s: {"item": i, "group": g, "score": s, "answer": s}
        >>> before = [item(i, "ab"[i % 2], 1.0) for i in range(20)]
        >>> after = [item(i, "ab"[i % 2], float(i % 2)) for i in range(20)]
        >>> gaps = group_gaps(before, after)
        >>> gaps.worst, gaps.gap, gaps.groups["b"][0]
        ('a', 0.5, 1.0)
    """
    if least < 1:
        raise ValueError(f"least is {least}, expected at least 1 item")
    if any(x.get("group") is None for x in (*before, *after)):
        raise ValueError("an item has no group, expected one in each")
    overall = answer_flips(before, after)
    mean = lambda items: sum(x["score"] for x in items) / len(items)
    members: dict[str, list[int]] = {}
    for i, item in enumerate(after):
        members.setdefault(str(item["group"]), []).append(i)
    groups = {}
    for name, rows in sorted(members.items()):
        if len(rows) >= least:
            flips = answer_flips([before[i] for i in rows], [after[i] for i in rows])
            groups[name] = (mean([after[i] for i in rows]), flips)
    if not groups:
        raise ValueError(f"no group has {least} items, of {len(after)} items")
    worst = max(groups, key=lambda name: groups[name][1].changed)
    return GroupGaps(
        score=mean(after),
        changed=overall.changed,
        groups=groups,
        worst=worst,
        gap=groups[worst][1].changed - overall.changed,
        small=len(members) - len(groups),
    )
