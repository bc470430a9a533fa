"""The families of models, by name: the one list of the modules that compute them."""

import importlib
from types import ModuleType

from ..io.json_fields import JsonFields
from .families.convolutional_families import CONVOLUTIONAL_FAMILIES
from .families.decoder_family_table import FAMILIES as DECODER_FAMILIES
from .families.encoder_families import ENCODER_FAMILIES
from .families.seq2seq_families import SEQ2SEQ_FAMILIES
from .families.tower_families import TOWER_FAMILIES

FAMILIES = ("llama", "decoder", "gpt2", "bert", "encoder", "two_towers", "seq2seq")
FAMILIES += ("convolutional",)


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
    """The module that reads a config.json of this `model_type`.

    Raises:
        ValueError: no module does; the message names all that are known.

    Example:
        >>> module_of_model_type("roberta").__name__
        'jaxmem.architectures.encoder'
    """
    readers = {
        "gpt2": ("gpt2",),
        "encoder": ENCODER_FAMILIES,
        "two_towers": TOWER_FAMILIES,
        "seq2seq": SEQ2SEQ_FAMILIES,
        "decoder": DECODER_FAMILIES,
        "convolutional": CONVOLUTIONAL_FAMILIES,
    }
    known = sorted({kind for kinds in readers.values() for kind in kinds})
    kind = JsonFields({"model_type": kind}).text("model_type", among=known)
    return family_module(next(name for name, kinds in readers.items() if kind in kinds))
