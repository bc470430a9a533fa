"""A right call of each public name: its keyword arguments, on small trees and models."""

import pathlib
from typing import Any

from right_calls import models, training, weights
from right_calls.objects import objects


def right_calls(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """{public name: the keyword arguments of a right call; "*args": the others, one by one}."""
    made = objects(folder)
    return {**weights.calls(made), **training.calls(made), **models.calls(made)}
