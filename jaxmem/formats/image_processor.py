"""ImageProcessor: pixels that a model reads, from images: resized, cropped, scaled, normalised."""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.arguments import INTEGER, INTEGERS, NUMBER, Kind, check_fields
from ..io.json_fields import JsonFields

_CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "filter": 3,
    "rgb": True,
}
# What a missing field means, by the start of the class in the file; `resize` and `crop` come last.
_KINDS: dict[str, dict[str, Any]] = {
    "ViT": {"filter": 2, "rgb": False, "resize": (224, 224)},
    "Siglip": {"filter": 3, "rgb": True, "resize": (224, 224)},
    "CLIP": _CLIP | {"resize": 224, "crop": (224, 224)},
    "Bit": _CLIP | {"resize": 224, "crop": (224, 224)},
    "ConvNext": {"filter": 3, "rgb": False, "resize": 384},
}
_CLASS = re.compile(r"(.+?)(ImageProcessor(Fast|Pil)?|FeatureExtractor)")
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_NUMBERS = Kind(
    "a tuple of numbers", lambda x: isinstance(x, tuple) and all(map(NUMBER.accepts, x))
)
_PAIR = Kind(
    "(height, width), or None", lambda x: x is None or (INTEGERS.accepts(x) and len(x) == 2)
)
_PAIR_OR_SIDE = Kind(
    "(height, width), an int, or None", lambda x: INTEGER.accepts(x) or _PAIR.accepts(x)
)
_WHOLE_IMAGE = 384  # pixels; a ConvNext image of this size or more is not cropped


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """Maps images to pixels (batch, channels, height, width) f32, as a model was trained on them.

    `preprocessor_config.json` of a Hugging Face folder says how; a `Model` that was read from such
    a folder has it as `model.processor`. The steps are those of `transformers` with Pillow: resize,
    crop at the centre, multiply by `scale`, and normalise each channel.

    Args:
        resize: height and width in pixels, or the length of the shorter side; None for no resizing.
        crop: height and width in pixels; a smaller image is padded with zeros. None for no crop.
        filter: Pillow's number of the resampling filter: 2 is bilinear, 3 bicubic.
        scale: factor of the numbers 0 to 255; 1 leaves them.
        mean: of each channel after scaling, which is subtracted; () for no normalisation.
        std: of each channel, by which the difference is divided.
        rgb: convert each image to three channels first.

    Example:
        >>> import numpy as np
        >>> from jaxmem.models import ImageProcessor
        >>> process = ImageProcessor(resize=4, crop=(4, 4))
        >>> pixels = process([np.zeros((6, 8, 3), np.uint8)])
        >>> pixels.shape, pixels.min(), pixels.dtype
        ((1, 3, 4, 4), np.float32(-1.0), dtype('float32'))

    Raises:
        ValueError: a size is below 1, the filter is unknown, the scale is not above 0, or mean and
            std do not fit.
        TypeError: a field has another type.
    """

    resize: tuple[int, int] | int | None = None
    crop: tuple[int, int] | None = None
    filter: int = 2
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    rgb: bool = False

    def __post_init__(self):
        for name in ("resize", "crop", "mean", "std"):
            if isinstance(getattr(self, name), list):  # from JSON
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_fields(self, resize=_PAIR_OR_SIDE, crop=_PAIR, mean=_NUMBERS, std=_NUMBERS)
        for name in ("resize", "crop"):
            sizes = getattr(self, name)
            if sizes is not None and min(sizes if isinstance(sizes, tuple) else (sizes,)) < 1:
                raise ValueError(f"{name} is {sizes}, expected pixels of at least 1")
        if not 0 <= self.filter < len(_FILTERS):
            raise ValueError(f"filter is {self.filter}, expected 0 to {len(_FILTERS) - 1}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale is {self.scale}, expected a finite number above 0")
        if len(self.mean) != len(self.std) or not all(x > 0 for x in self.std):
            raise ValueError(
                f"std is {self.std}, expected a number above 0 for each of {self.mean}"
            )

    def __call__(self, images: Sequence[Any]) -> np.ndarray:
        """Pixels (batch, channels, height, width) f32 of images of one size after the steps.

        An image is a Pillow image, an array (height, width, channels) uint8, or a file's path.

        Raises:
            ImportError: Pillow is missing; the message names the extra.
            TypeError: an image is none of these.
            ValueError: the images have different sizes, or other channels than `mean`.
        """
        if isinstance(images, str | os.PathLike | np.ndarray) or not isinstance(images, Sequence):
            raise TypeError(f"images are {type(images).__name__}, expected a list of images")
        pixels = [self._pixels(image) for image in images]
        shapes = sorted({x.shape for x in pixels})
        if len(shapes) != 1:
            raise ValueError(f"the images become arrays of shapes {shapes}, expected one shape")
        return np.stack(pixels)

    @classmethod
    def from_hf(cls, hf: dict, kind: str = "") -> "ImageProcessor":
        """The processor of a `preprocessor_config.json`.

        An older file may not say its class: then `kind`, one of "ViT", "Siglip", "CLIP", "Bit" and
        "ConvNext", says what missing fields mean.

        Raises:
            ValueError: a field has a wrong value or is not computed here; the message names it.

        Example:
            >>> from jaxmem.models import ImageProcessor
            >>> size = {"height": 8, "width": 8}
            >>> hf = {"image_processor_type": "ViTImageProcessor", "size": size}
            >>> ImageProcessor.from_hf(hf).resize
            (8, 8)
        """
        fields = JsonFields(hf)
        kind = _kind(fields, kind)
        default = _KINDS[kind]
        fields.expect("do_pad", False)
        fields.expect("data_format", "channels_first")
        fields.ignore("default_to_square", "return_tensors", "input_data_format", "device")
        fields.ignore("processor_class", "disable_grouping", "image_seq_length")
        options = {
            "filter": fields.integer("resample", default["filter"], least=0),
            "rgb": fields.boolean("do_convert_rgb", default["rgb"]),
            "scale": fields.number("rescale_factor", 1 / 255),
            "mean": _channels(fields, "image_mean") or default.get("mean", cls.mean),
            "std": _channels(fields, "image_std") or default.get("std", cls.std),
        }
        is_square = isinstance(default["resize"], tuple)
        resize = _size(fields, "size", is_square) or default["resize"]
        crop = _size(fields, "crop_size", True) or default.get("crop")
        resized = fields.boolean("do_resize", True)
        cropped = fields.boolean("do_center_crop", "crop" in default)
        if kind == "ConvNext":
            resize, crop, cropped = _cropped_share(fields, resize, cropped)
            cropped = cropped and resized
        off = {} if fields.boolean("do_rescale", True) else {"scale": 1.0}
        off |= {} if fields.boolean("do_normalize", True) else {"mean": (), "std": ()}
        fields.refuse_unread()
        sizes = {"resize": resize if resized else None, "crop": crop if cropped else None}
        return cls(**options | off | sizes)

    def _pixels(self, image: Any) -> np.ndarray:
        """The pixels (channels, height, width) f32 of one image."""
        image = _opened(image)
        image = image.convert("RGB") if self.rgb and image.mode != "RGB" else image
        if self.resize is not None:
            height, width = _resized_shape(self.resize, image.height, image.width)
            image = image.resize((width, height), resample=self.filter)
        x = np.asarray(image)
        x = x[..., None] if x.ndim == 2 else x
        x = x if self.crop is None else _centre(x, self.crop)
        x = (x.astype(np.float64) * self.scale).astype(np.float32)
        if self.mean:
            if x.shape[-1] != len(self.mean):
                raise ValueError(
                    f"an image has {x.shape[-1]} channels, and the mean {len(self.mean)}; "
                    "convert it, as image.convert('RGB') of Pillow does"
                )
            x = (x - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return x.transpose(2, 0, 1)


def _opened(image: Any) -> Any:
    """A Pillow image of an array, a file or a Pillow image."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ImportError('images want Pillow: pip install "jaxmem[vision]"') from error
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | os.PathLike):
        with Image.open(image) as opened:
            opened.load()
            return opened
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        return Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise TypeError(
        f"an image is {what}, expected a Pillow image, a path, or uint8 (height, width, channels)"
    )


def _resized_shape(size: tuple[int, int] | int, height: int, width: int) -> tuple[int, int]:
    """Height and width after resizing; one number is the length of the shorter side."""
    if isinstance(size, tuple):
        return size
    longer = int(size * max(height, width) / min(height, width))
    return (longer, size) if width <= height else (size, longer)


def _centre(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of x (height, width, channels); zeros are around it where it is smaller."""
    for axis, length in enumerate(size):
        missing = length - x.shape[axis]
        if missing > 0:
            before = math.ceil(missing / 2)
            x = np.pad(x, [(before, missing - before) if a == axis else (0, 0) for a in range(3)])
        else:
            x = x.take(np.arange(length) + -missing // 2, axis)
    return x


def _kind(fields: JsonFields, usual: str) -> str:
    """The key of `_KINDS` that the class in the file names, `usual` if it names none."""
    name = "image_processor_type" if "image_processor_type" in fields else "feature_extractor_type"
    fields.ignore("image_processor_type", "feature_extractor_type")
    if name not in fields and usual:
        return usual
    match = _CLASS.fullmatch(fields.text(name))
    if not match or match[1] not in _KINDS:
        fields.refuse(name, f"the image processor of {', '.join(_KINDS)}")
    return match[1]


def _channels(fields: JsonFields, name: str) -> tuple[float, ...]:
    """A number for each of three channels, or for those that a list has."""
    value = fields.data.get(name)
    if isinstance(value, int | float):
        return (fields.number(name),) * 3
    return fields.numbers(name)


def _size(fields: JsonFields, name: str, is_square: bool) -> tuple[int, int] | int | None:
    """(height, width), or the length of the shorter side; one number is either."""
    if isinstance(fields.data.get(name), int):
        side = fields.integer(name)
        return (side, side) if is_square else side
    size = fields.object(name)
    if not size.data:
        return None
    if "shortest_edge" in size:
        return size.integer("shortest_edge")
    return size.integer("height"), size.integer("width")


def _cropped_share(fields: JsonFields, side: Any, cropped: bool) -> tuple[Any, Any, bool]:
    """(resize, crop, whether it crops) of a ConvNext: a small image is the middle of a larger one.

    `crop_pct` is the side's share of the larger image's.
    """
    share = fields.number("crop_pct", 224 / 256, above=0)
    if cropped:
        fields.refuse("do_center_crop", "false, as crop_pct says what is cropped")
    if not isinstance(side, int):
        fields.refuse("size", "shortest_edge alone")
    if side >= _WHOLE_IMAGE:
        return (side, side), None, False
    return int(side / share), (side, side), True
