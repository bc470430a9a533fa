"""The JSON files of a Hugging Face folder for a model: config.json and those beside it."""

import json
import pathlib
from typing import Any

from ..io.json_fields import JsonFields
from ..models.end_tokens import GENERATION
from ..models.hf_files import CONFIG
from ..models.model import Model
from ..models.output_tokens import with_output_tokens
from ..models.processor_files import PREPROCESSOR, PROCESSOR
from ..models.sentence_pooling import DENSE, MODULES, PARTS, SIZES, module_folders
from ..models.sentence_vectors import DENSE_FOLDER, vector_config
from ..models.tokenizer_files import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from .hf_config import CLASSES, config_json

# These fields say where a checkpoint is from and how it was stored. `auto_map` names code beside
# it, which is not written.
_SOURCE_FIELDS = ("_name_or_path", "auto_map", "quantization_config", "quantization")
_SOURCE_FIELDS += ("torch_dtype", "dtype")
_PROCESSORS = (PREPROCESSOR, PROCESSOR)
_FIELDS_OF_THE_WHOLE = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")


def json_files(model: Model) -> dict[str, Any]:
    """{name: content} of the JSON files of `model`, without the dtype of its tensors.

    The config.json is the one that the model was read from, as far as it still describes the model:
    the tokens that end a text and whether the head is the embedding are the model's (of an
    encoder-decoder only the tensors say the latter). The text part of a multimodal one stands
    alone.

    Raises:
        ValueError: the model was not read with a config.json, or has changed so that no config.json
            describes it; the message names the fields.
    """
    hf = _config(model)
    read = type(model.config).from_hf(hf)
    files = {name: model.hf_files[name] for name in _PROCESSORS if name in model.hf_files}
    files |= _sentence_files(model)
    files[CONFIG] = hf
    generation = dict(model.hf_files.get(GENERATION, {}))
    eos = list(getattr(model.config, "eos", ()))
    if generation or eos != list(getattr(read, "eos", ())):
        files[GENERATION] = generation | {"eos_token_id": eos[0] if len(eos) == 1 else eos or None}
    if model.tokenizer is not None:
        files[TOKENIZER_CONFIG] = _tokenizer_config(model)
    return files


def _sentence_files(model: Model) -> dict[str, Any]:
    """The files of sentence-transformers that the model was read with, if they say all it does."""
    folders = module_folders(model.hf_files)
    known = {*PARTS, DENSE} if getattr(model.config, "vector_width", 0) else set(PARTS)
    if not set(folders) <= known:
        return {}  # such as a dense layer, whose weights the model does not hold
    place = lambda kind, path: DENSE_FOLDER if kind == DENSE else path
    modules = [
        entry | {"path": place(kind, path)}
        for entry, (kind, path) in zip(model.hf_files.get(MODULES, []), folders.items())
    ]
    names = {f"{x}/{CONFIG}": f"{place(kind, x)}/{CONFIG}" for kind, x in folders.items()}
    names[SIZES] = SIZES
    files = {names[name]: x for name, x in model.hf_files.items() if name in names}
    return files | ({MODULES: modules} if modules else {})


def write(folder: pathlib.Path, files: dict[str, Any], model: Model) -> None:
    """Writes `files` of `json_files` into a folder, the model's tokenizer and its chat template."""
    for name, text in texts(model, files).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def texts(model: Model, files: dict[str, Any]) -> dict[str, str]:
    """{name: text} of `files` of `json_files`, the model's tokenizer and its chat template."""
    contents = {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}
    if model.tokenizer is not None:
        contents[TOKENIZER] = model.tokenizer.to_str()
    if model.chat_template is not None:
        contents[CHAT_TEMPLATE] = model.chat_template
    return contents


def _config(model: Model) -> dict[str, Any]:
    """The config.json that describes the model."""
    hf, config = model.hf_files.get(CONFIG), model.config
    if hf is None and config.family != "llama":
        raise ValueError(
            f"{model.source} was not read with a config.json, which to_hf writes again; a model of "
            f"family {config.family!r} cannot be written without one"
        )
    if hf is None:
        return config_json(config)
    is_decoder = config.family in ("llama", "decoder")
    hf = _adapted(_text_part(hf) if is_decoder else _named(hf), config)
    generation = JsonFields(model.hf_files.get(GENERATION, {}))
    read = with_output_tokens(type(config).from_hf(hf), generation)
    if getattr(config, "vector_width", 0):
        read = vector_config(read, model.hf_files, model.source)
    read = read.to_dict()
    elsewhere = ("eos", "tied") if config.family == "seq2seq" else ("eos",)
    fields = {name: x for name, x in config.to_dict().items() if name not in elsewhere}
    changed = [name for name, x in fields.items() if x != read[name]]
    if not changed:
        return hf
    if config.family == "llama":
        return config_json(config)
    says = ", ".join(f"{name} = {read[name]}" for name in changed)
    has = ", ".join(f"{name} = {getattr(config, name)}" for name in changed)
    raise ValueError(f"the config.json of {model.source} says {says}, and the model has {has}")


def _text_part(hf: dict) -> dict[str, Any]:
    """The text part of a multimodal config.json as one of its own; another one as it is."""
    text = hf.get("text_config")
    if not isinstance(text, dict):
        return _named(hf)
    text = {name: value for name, value in text.items() if name != "architectures"}
    return _named({name: hf[name] for name in _FIELDS_OF_THE_WHOLE if name in hf} | text)


def _named(hf: dict) -> dict[str, Any]:
    """The config.json with the class that opens it, if it has none and it is known here."""
    name = CLASSES.get(hf["model_type"])
    return ({"architectures": [name]} if name else {}) | hf


def _adapted(hf: dict, config: Any) -> dict[str, Any]:
    """The config.json with the model's tokens and its head, and without how it was stored."""
    hf = {name: value for name, value in hf.items() if name not in _SOURCE_FIELDS}
    read = type(config).from_hf(hf)
    if getattr(read, "tied", None) != getattr(config, "tied", None) and config.family != "seq2seq":
        hf["tie_word_embeddings"] = config.tied
    if getattr(read, "head", "") and getattr(config, "head", "") in ("", "vector"):
        hf.pop("architectures")  # they name a head that the checkpoint did not hold
    if hasattr(config, "eos") and config.eos[: len(read.eos)] != read.eos:
        hf["eos_token_id"] = list(config.eos)
    if getattr(read, "bos", None) != getattr(config, "bos", None):
        hf["bos_token_id"] = config.bos
    return hf


def _tokenizer_config(model: Model) -> dict[str, Any]:
    """The tokenizer_config.json that the model was read with, or one with its first and last token.

    A chat template has a file of its own.
    """
    read = model.hf_files.get(TOKENIZER_CONFIG)
    if read is not None:
        return {name: x for name, x in read.items() if name not in ("auto_map", "chat_template")}
    ids = {"bos_token": getattr(model.config, "bos", None)}
    ids |= {"eos_token": next(iter(getattr(model.config, "eos", ())), None)}
    tokens = {n: None if i is None else model.tokenizer.id_to_token(i) for n, i in ids.items()}
    named = {name: token for name, token in tokens.items() if token is not None}
    return {"tokenizer_class": "PreTrainedTokenizerFast"} | named
