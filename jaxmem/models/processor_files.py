"""The processor of a model that reads images or sounds, from the files of a folder."""

import pathlib
from typing import Any

from ..formats.image_processor import ImageProcessor
from ..formats.log_mel_processor import LogMelProcessor
from ..formats.waveform_processor import WaveformProcessor
from ..io.json_fields import JsonFields, read_object

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # in newer folders, with the processor of each kind of input
Processor = ImageProcessor | LogMelProcessor | WaveformProcessor
_KINDS = {  # {what a model reads: (its processor, the object in PROCESSOR)}
    "images": (ImageProcessor, "image_processor"),
    "sounds": (WaveformProcessor, "feature_extractor"),
    "spectrograms": (LogMelProcessor, "feature_extractor"),
}
_IMAGES = {"vit": "ViT", "dinov2": "Bit", "dinov2_gated": "Bit"}  # by Config.tensor_names
_IMAGES |= {"clip": "CLIP", "siglip": "Siglip"}


def read_processor(folder: pathlib.Path, config: Any) -> Processor | None:
    """The processor of the inputs of a model, which says what it reads by `config.reads`.

    None for a model of texts, and where a Hugging Face folder says of no processor.

    Raises:
        ValueError: the file is malformed, or says what is not computed; the message names it.
    """
    kind, key = _KINDS.get(getattr(config, "reads", "text"), (None, ""))
    for name in (PREPROCESSOR, PROCESSOR):
        file = folder / name
        if kind is None or not file.exists():
            continue
        try:
            hf = read_object(file)
            hf = hf if name == PREPROCESSOR else JsonFields(hf).object(key).data
            if kind is not ImageProcessor:
                return kind.from_hf(hf)
            return kind.from_hf(hf, _IMAGES.get(getattr(config, "tensor_names", ""), "ConvNext"))
        except ValueError as error:
            prefix = "" if str(error).startswith(str(file)) else f"{file}: "
            raise ValueError(f"{prefix}{error}") from error
    return None


def saved_processor(record: JsonFields, config: Any) -> Processor | None:
    """The processor in the record that `Model.save` wrote, None if there is none.

    Raises:
        ValueError: a field has a value that cannot be.
        TypeError: a field is unknown, or has another type.
    """
    fields = record.object("processor").data
    kind, _ = _KINDS.get(getattr(config, "reads", "text"), (None, ""))
    return kind(**fields) if kind and "processor" in record else None
