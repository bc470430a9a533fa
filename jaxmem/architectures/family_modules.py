"""The families of models, by name: the one list of the modules that compute them."""

import importlib
from types import ModuleType

FAMILIES = ("llama", "decoder", "gpt2", "bert")


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
