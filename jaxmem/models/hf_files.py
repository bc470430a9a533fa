"""The JSON files of a Hugging Face folder, which a model keeps so that it can be written again."""

import pathlib
from typing import Any

from ..io.json_fields import read_object
from .end_tokens import GENERATION
from .processor_files import PREPROCESSOR, PROCESSOR
from .sentence_pooling import CONFIG as CONFIG
from .sentence_pooling import sentence_files
from .tokenizer_files import TOKENIZER_CONFIG

BESIDE = (GENERATION, TOKENIZER_CONFIG, PREPROCESSOR, PROCESSOR)


def hf_files(config_file: pathlib.Path) -> dict[str, Any]:
    """{name: content} of a config.json and of the files beside it; {} for a file of another format.

    The files of a folder of sentence-transformers are among them; one is a list, others are
    objects.

    Raises:
        ValueError: a file is malformed.

    Example:
        >>> hf_files(pathlib.Path("model.gguf"))
        {}
    """
    if config_file.name != CONFIG:
        return {}
    paths = [config_file.with_name(name) for name in (CONFIG, *BESIDE)]
    files = {path.name: read_object(path) for path in paths if path.exists()}
    return files | sentence_files(config_file.parent)
