"""The JSON files of a Hugging Face folder, which a model keeps so that it can be written again."""

import pathlib

from ..io.json_fields import read_object
from .end_tokens import GENERATION
from .processor_files import PREPROCESSOR, PROCESSOR
from .tokenizer_files import TOKENIZER_CONFIG

CONFIG = "config.json"
BESIDE = (GENERATION, TOKENIZER_CONFIG, PREPROCESSOR, PROCESSOR)


def hf_files(config_file: pathlib.Path) -> dict[str, dict]:
    """{name: content} of a config.json and of the files beside it; {} for a file of another format.

    Raises:
        ValueError: a file is no JSON object.

    Example:
        >>> hf_files(pathlib.Path("model.gguf"))
        {}
    """
    if config_file.name != CONFIG:
        return {}
    paths = [config_file.with_name(name) for name in (CONFIG, *BESIDE)]
    return {path.name: read_object(path) for path in paths if path.exists()}
