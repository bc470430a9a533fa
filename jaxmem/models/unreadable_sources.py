"""What to do about a source that `load` cannot read: pickles, URLs, names of a hub, adapters."""

import pathlib
import re

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_ZIP, _PICKLE = b"PK\x03\x04", re.compile(rb"\x80[\x02-\x05](?!\0\0)", re.DOTALL)
_TREES = (".msgpack", ".h5", ".hdf5", ".npz")
_OTHERS = (*_TREES, ".tflite", ".mlmodel")
_PICKLE_CURE = (
    "is a pickle of PyTorch, which can run any code when it is read: convert it where you trust "
    "it, with AutoModel.from_pretrained(folder).save_pretrained(new_folder) of transformers, which "
    "writes safetensors"
)


def advice_for_name(name: str) -> str:
    """What a name that is no path may mean, as the end of a sentence; or "".

    Example:
        >>> advice_for_name("meta-llama/Llama-3.2-1B")
        '; for a model of the Hugging Face hub, give hf://meta-llama/Llama-3.2-1B'
        >>> advice_for_name("https://huggingface.co/openai-community/gpt2/tree/main")
        '; for a model of the Hugging Face hub, give hf://openai-community/gpt2'
    """
    hub = re.match(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/?#]+)", name)
    if hub is None and re.match(r"[a-z0-9+]+://", name, re.IGNORECASE):
        return "; a file at an address must be downloaded first"
    repo = hub[1] if hub else name
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo) and not repo.startswith((".", "/")):
        return f"; for a model of the Hugging Face hub, give hf://{repo}"
    return ""


def advice_for_file(path: pathlib.Path) -> str:
    """What to do about a file of a type that is not read, as the end of a sentence; or ""."""
    if path.suffix in _PICKLES and path.suffix != ".bin":
        return f"; {path.name} {_PICKLE_CURE}"
    if path.suffix in _TREES:
        return (
            f"; for a module of yours, jm.interop.read_params({path.name!r}) reads its arrays, and "
            "jm.models.from_flax(module, params) takes them"
        )
    return f"; {path.name} is not read" if path.suffix in _OTHERS else ""


def is_pickle(path: pathlib.Path) -> bool:
    """Whether a file begins as PyTorch's pickles do, and not with a number below 65,536.

    A llama2.c file begins with a model's width, and 640 is `\\x80\\x02` and two zeros.
    """
    with path.open("rb") as file:
        start = file.read(4)
    return start == _ZIP or _PICKLE.match(start) is not None


def pickle_error(path: pathlib.Path) -> ValueError:
    """The error for a pickle, which says how to convert it."""
    return ValueError(f"{path} {_PICKLE_CURE}")


def advice_for_folder(folder: pathlib.Path) -> str:
    """What a folder holds in place of a model's safetensors, as the end of a sentence; or ""."""
    names = sorted(path.name for path in folder.iterdir())
    ending = lambda *ends: [name for name in names if name.endswith(ends)]
    if "adapter_config.json" in names:
        return (
            "; it holds an adapter, which is not a model: load its base model, and attach "
            "jm.interop.from_peft(folder, model)"
        )
    files = next(filter(None, map(ending, (".gguf", ".safetensors", ".onnx"))), [])
    if files:
        return f"; give the file: {folder / files[0]}"
    others = [name for name in ending(".bin") if not is_pickle(folder / name)]
    if others:
        return f"; give the file: {folder / others[0]}"
    if ending(*_PICKLES):
        return f"; {ending(*_PICKLES)[0]} {_PICKLE_CURE}"
    return f"; {ending(*_OTHERS)[0]} is not read" if ending(*_OTHERS) else ""
