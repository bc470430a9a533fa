"""docs/families.md names every family that loads once, and what can be done with it."""

import json
import pathlib
import re

import numpy as np
import pytest
from reference_models import FOLDER, MEMBERS

from jaxmem.architectures import decoder, family_modules
from jaxmem.architectures.gguf.gguf_architectures import ARCHITECTURES
from jaxmem.interop.gguf_metadata import metadata
from jaxmem.planner import model_limits

ROOT = pathlib.Path(__file__).parents[1]
MODULES = {  # section of the page: the modules that compute its families
    "Decoders": ("decoder", "gpt2"),
    "Encoders of texts": ("encoder",),
    "Encoders of images and sounds": ("encoder",),
    "Two towers": ("two_towers",),
    "Networks of convolutions": ("convolutional",),
    "Encoder-decoders": ("seq2seq",),
}


def rows(section):
    """The cells of each row of a section's table, as lists of the words in backticks."""
    text = (ROOT / "docs/families.md").read_text(encoding="utf-8")
    [part] = re.findall(rf"^## {section}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    return [[re.findall("`([^`]+)`", cell) for cell in line.split("|")[2:-2]] for line in lines]


def kinds(section):
    return [kind for types, *_ in rows(section) for kind in types]


def test_the_page_names_every_model_type_once_under_the_module_that_reads_it():
    named = {kind: section for section in MODULES for kind in kinds(section)}
    assert sum(len(kinds(section)) for section in MODULES) == len(named)
    with pytest.raises(ValueError, match="expected one of") as error:
        family_modules.module_of_model_type("")
    known = re.findall(r"[\w-]+", str(error.value).rpartition("expected one of")[2])
    assert set(named) == set(known)
    for kind, section in named.items():
        module = family_modules.module_of_model_type(kind).__name__.rpartition(".")[2]
        assert module in MODULES[section]


@pytest.mark.parametrize("section", MODULES)
def test_the_page_says_what_generates_and_what_is_planned(section):
    text = (ROOT / "docs/families.md").read_text(encoding="utf-8")
    [line] = re.findall(rf"^\| \[{section.lower()}\].*$", text, re.MULTILINE)
    generates, plans = ("yes" in cell for cell in line.split("|")[4:6])
    for name in MODULES[section]:
        assert generates == hasattr(family_modules.family_module(name).Config, "cache")
        assert plans == (name in model_limits.FAMILIES)


def test_the_page_names_the_architecture_of_each_gguf_file():
    named = {}
    for types, names in rows("Decoders"):
        named |= dict(zip(types, names, strict=True)) if names else dict.fromkeys(types, "")
    assert set(named.values()) - {""} == set(ARCHITECTURES)
    for member in MEMBERS:
        hf = json.loads(str(np.load(FOLDER / "decoders" / f"{member}.npz")["config"]))
        try:
            written = metadata(decoder.Config.from_hf(hf)).architecture
        except ValueError:
            continue  # its options are more than the architecture can say
        assert written in (named[hf["model_type"]], "llama")


def test_the_readme_counts_the_kinds_of_decoders():
    [count] = re.findall(r"Decoders of (\d+) kinds", (ROOT / "README.md").read_text("utf-8"))
    assert int(count) == len(kinds("Decoders"))
