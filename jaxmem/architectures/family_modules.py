"""The families of models, by name: the one list of the modules that compute them."""

import importlib
from types import ModuleType

from .encoder_families import ENCODER_FAMILIES
from .tower_families import TOWER_FAMILIES

FAMILIES = ("llama", "decoder", "gpt2", "bert", "encoder", "two_towers")


def family_module(name: str) -> ModuleType:
    """The module of a family, with `Config`, `module` and `weights`; it is imported when used.

    Raises:
        ValueError: `name` is not one of `FAMILIES`.

    Example:
        >>> family_module("gpt2").Config.__doc__.splitlines()[0]
        'The sizes of a GPT-2.'
    """
    if name not in FAMILIES:
        raise ValueError(f"family {name!r}, expected {', '.join(FAMILIES)}")
    return importlib.import_module(f"jaxmem.architectures.{name}")


def module_of_model_type(kind: object) -> ModuleType:
    """The module that reads a config.json of this `model_type`: decoder.py's if it is unknown.

    Example:
        >>> module_of_model_type("roberta").__name__
        'jaxmem.architectures.encoder'
    """
    if isinstance(kind, str) and kind in ENCODER_FAMILIES:
        return family_module("encoder")
    if isinstance(kind, str) and kind in TOWER_FAMILIES:
        return family_module("two_towers")
    return family_module("gpt2" if kind == "gpt2" else "decoder")
