"""compare_cards: two compressed models on the same items, by the items that their cards kept."""

import os
import pathlib
from typing import Any

from ..core.arguments import takes
from .card_result import MODEL
from .confidence import Estimate
from .item_files import read_items
from .paired_answers import answer_flips


@takes()
def compare_cards(first: str | os.PathLike, second: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """{task: what changed from the first card's model to the second's}, item by item.

    "tokens" has the differences of the losses, in nats; of several texts "tokens.NAME" of each.

    Raises:
        FileNotFoundError: a folder has no items of a card.
        ValueError: the cards have no task in common with the same items.
    """
    folders = [pathlib.Path(folder) / "items" / MODEL for folder in (first, second)]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"no items of a card in {folder.parent.parent}")
    found: dict[str, dict[str, Any]] = {}
    tokens = sorted((folders[0] / "columns").glob("tokens*.jsonl"))
    for path in [*sorted(folders[0].glob("*.jsonl")), *tokens]:
        pair = [read_items(folder / path.relative_to(folders[0])) for folder in folders]
        if pair[1] is None:
            continue
        (one, before), (other, after) = pair
        task = [header["key"].split(" ")[1:] for header in (one, other)]
        if task[0] != task[1]:
            raise ValueError(f"{path.stem} of {first} and of {second} is not the same task")
        if not before:  # all items are longer than the context
            continue
        if path in tokens:
            found[path.stem] = _losses(before, after)
        else:
            found[path.stem] = vars(answer_flips(before, after))
    if not found:
        raise ValueError(f"{first} and {second} have no task in common")
    return found


def _losses(before: list[dict], after: list[dict]) -> dict[str, Any]:
    change = lambda name: Estimate.of([b[name] - a[name] for a, b in zip(before, after)])
    return {"items": len(before), "nll": change("nll"), "kl": change("kl")}
