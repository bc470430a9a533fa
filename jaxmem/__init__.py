"""Fit any language model into the memory you have, and prove it before you rent the machine."""

import importlib as _importlib
from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from .names import *


def __getattr__(name: str) -> _Any:
    """A name of the library, all of which `names` imports when the first is asked for.

    So a command of the shell, which asks for none, imports what it uses. A wing is imported alone,
    since wings ask for each other while they are imported. `__version__` is read from the installed
    package.
    """
    if name == "__version__":
        from importlib.metadata import version

        return globals().setdefault(name, version("jaxmem"))
    if not name.startswith("_") and _find_spec(f".{name}", __name__):
        return _importlib.import_module(f".{name}", __name__)
    _import_names()
    if name not in globals():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    _import_names()
    return sorted(globals())


def _import_names() -> None:
    """Imports all of the library, whose public names become those of this module."""
    names = _importlib.import_module(".names", __name__)  # `from . import` would ask for it here
    globals().update({name: x for name, x in vars(names).items() if not name.startswith("_")})
