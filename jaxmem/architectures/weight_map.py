"""Recipe: which tensors of a checkpoint make one of our parameters, and how."""

import dataclasses
from collections.abc import Callable

import numpy as np


def same(w: np.ndarray) -> np.ndarray:
    """The tensor as the checkpoint holds it."""
    return w


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One parameter, from the tensors it is read from.

    `names` are a Hugging Face checkpoint's own: one a layer when `stacked`, else a single one.
    Files written from a model with a head on top put `transformer.` (GPT-2), `bert.` or
    `language_model.` before them; a loader looks for the name first and for those next. `fn`
    turns each piece into ours (a PyTorch Linear is (out, in), our kernels are (in, out)).
    `shape` is the parameter's, with the layer axis in front when stacked.

    Example:
        >>> import numpy as np
        >>> from jaxmem.architectures.weight_map import Recipe
        >>> r = Recipe(("h.0.w", "h.1.w"), (2, 4, 3), np.transpose, stacked=True)
        >>> r.fn(np.zeros((3, 4))).shape == r.shape[1:]
        True

    Raises:
        ValueError: the number of names does not match the shape.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    fn: Callable[[np.ndarray], np.ndarray] = same
    stacked: bool = False

    def __post_init__(self):
        expected = self.shape[0] if self.stacked else 1
        if len(self.names) != expected:
            raise ValueError(
                f"{len(self.names)} names for shape {self.shape}, expected {expected}: "
                "one a layer when stacked, else one"
            )
