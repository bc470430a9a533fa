"""Waves: the convolutions by which an encoder of sounds makes tokens of samples."""

import dataclasses
from typing import Any

from .config_sizes import check_sizes, check_types


@dataclasses.dataclass(frozen=True)
class Waves:
    """The convolutions that make tokens of a sound, and the one that says where a token is.

    Example:
        >>> waves = Waves(channels=(512, 512), windows=(10, 3), strides=(5, 2))
        >>> waves.tokens(400), waves.fewest_samples
        (39, 20)

    Raises:
        ValueError: a size is below 1, the lists have different lengths, or the norm is unknown.
    """

    channels: tuple[int, ...]
    windows: tuple[int, ...]  # samples or frames that a convolution reads at a time
    strides: tuple[int, ...]
    bias: bool = False
    norm: str = "group"  # over time, after the first convolution; "layer": over channels, after all
    activation: str = "gelu"
    position_window: int = 128  # frames
    position_groups: int = 16

    def __post_init__(self):
        check_types(self)
        for name in ("channels", "windows", "strides"):
            sizes = tuple(getattr(self, name))
            object.__setattr__(self, name, sizes)
            if len(sizes) != len(self.channels) or not sizes or min(sizes) < 1:
                raise ValueError(
                    f"{name} is {sizes}, expected {len(self.channels)} sizes of at least 1"
                )
        check_sizes(self, "position_window", "position_groups")
        if self.norm not in ("group", "layer"):
            raise ValueError(f"norm is {self.norm!r}, expected 'group' or 'layer'")

    def tokens(self, samples: Any) -> Any:
        """The number of tokens of so many samples, an int or an array."""
        for window, stride in zip(self.windows, self.strides):
            samples = (samples - window) // stride + 1
        return samples

    @property
    def fewest_samples(self) -> int:
        """The samples that make one token."""
        samples = 1
        for window, stride in zip(self.windows[::-1], self.strides[::-1]):
            samples = (samples - 1) * stride + window
        return samples
