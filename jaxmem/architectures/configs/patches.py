"""Patches: how an encoder of images cuts an image into tokens."""

import dataclasses

from .config_sizes import check_sizes, check_types


@dataclasses.dataclass(frozen=True)
class Patches:
    """How an image is cut into patches, each of which is a token (Dosovitskiy et al., 2020).

    Example:
        >>> Patches(height=224, width=224, size=16).tokens
        197

    Raises:
        ValueError: a size is below 1, or a patch is larger than the image.
    """

    height: int  # pixels of an image
    width: int
    size: int  # pixels on each side of a patch
    channels: int = 3
    class_token: bool = True  # a learned token comes before those of the patches
    bias: bool = True
    resized: bool = False  # positions are interpolated for an image of another size

    def __post_init__(self):
        check_types(self)
        check_sizes(self, "height", "width", "size", "channels")
        if self.size > min(self.height, self.width):
            raise ValueError(
                f"size is {self.size}, expected at most the image's {self.height} x {self.width}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """The rows and columns of patches in an image."""
        return self.height // self.size, self.width // self.size

    @property
    def tokens(self) -> int:
        """The tokens of an image."""
        return self.grid[0] * self.grid[1] + self.class_token

    @property
    def inputs(self) -> int:
        """The numbers in a patch."""
        return self.channels * self.size**2
