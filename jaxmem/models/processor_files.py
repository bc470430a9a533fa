"""The processor of a model that reads images, from the files of a Hugging Face folder."""

import pathlib
from typing import Any

from ..formats.image_processor import ImageProcessor
from ..io.json_fields import JsonFields, read_object

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # in newer folders, with the processor of each kind of input


def read_processor(folder: pathlib.Path, config: Any) -> ImageProcessor | None:
    """The processor of the inputs of a model with this configuration.

    None for a model of texts, and where the folder says of no processor.

    Raises:
        ValueError: the file is malformed, or says what is not computed; the message names it.
    """
    if getattr(config, "reads", "text") != "images":
        return None
    for name, key in ((PREPROCESSOR, None), (PROCESSOR, "image_processor")):
        file = folder / name
        if not file.exists():
            continue
        try:
            hf = read_object(file)
            return ImageProcessor.from_hf(JsonFields(hf).object(key).data if key else hf)
        except ValueError as error:
            prefix = "" if str(error).startswith(str(file)) else f"{file}: "
            raise ValueError(f"{prefix}{error}") from error
    return None
