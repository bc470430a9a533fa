"""Suite: how much a card measures."""

import dataclasses

from .card_explanations import EXPLANATIONS
from .text_noise import KINDS


@dataclasses.dataclass(frozen=True)
class Suite:
    """How much a card measures: items of a task (None for all), windows of the text and so on."""

    items: int | None
    window: int | None
    windows: int | None
    noise: tuple[str, ...]
    explained: int
    explain: tuple[str, ...]
    texts: int | None
    flip_rates: tuple[float, ...]


SUITES = {
    "quick": Suite(32, 256, 8, ("typo",), 4, ("occlusion",), 64, (1e-5, 1e-3)),
    "full": Suite(None, None, 32, KINDS, 32, EXPLANATIONS, None, (1e-6, 1e-5, 1e-4, 1e-3)),
}
