"""The codec that docs/guides/write_a_codec.md shows obeys the laws that every codec obeys."""

import functools
import importlib.util
import inspect
import itertools
import pathlib
import sys

import jax.numpy as jnp
import pytest
import test_contract_bounds as bounds
import test_contract_laws as laws
import test_contract_models as models

PATH = pathlib.Path(__file__).parents[2] / "docs" / "examples" / "powers_of_two.py"
SPEC = importlib.util.spec_from_file_location("powers_of_two", PATH)
sys.modules["powers_of_two"] = EXAMPLE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(EXAMPLE)
CODEC = EXAMPLE.PowersOfTwo()


def relative_error(leaf, w):
    """|w − decode| ≤ 0.42 · |w|, as the docstring states."""
    return jnp.abs(w - leaf.decode()), 0.42 * jnp.abs(w)


def cases():
    """Each law of the contract suite that takes a codec, for each choice of its other arguments."""
    for module, law in [(m, law) for m in (bounds, laws, models) for law in vars(m).values()]:
        if not inspect.isfunction(law) or not law.__name__.startswith("test_"):
            continue
        marks = getattr(law, "pytestmark", [])
        params = [mark.args for mark in marks if mark.name == "parametrize"]
        if not any("codec" in names for names, _ in params):
            continue
        others = [(names, values) for names, values in params if "codec" not in names]
        if "form" in inspect.signature(law).parameters:
            others = [("form", ["f32", "bf16 stacked"])]
        choices = [[arguments(names, value) for value in values] for names, values in others]
        for number, choice in enumerate(itertools.product(*choices)):
            kwargs = functools.reduce(lambda a, b: a | b, choice, {})
            texts = [v.__name__ if inspect.isfunction(v) else str(v) for v in kwargs.values()]
            name = "-".join([law.__name__.removeprefix("test_"), *texts])
            marks = [pytest.mark.slow] if number else []  # one case a law is quick
            yield pytest.param(module, law, kwargs, id=name, marks=marks)


def arguments(names, value):
    """One choice of a parametrize mark, as keyword arguments."""
    names = [name.strip() for name in names.split(",")]
    return dict(zip(names, [value] if len(names) == 1 else value))


@pytest.mark.parametrize("module, law, kwargs", [*cases()])
def test_the_example_codec_obeys_the_law(module, law, kwargs, monkeypatch, request):
    monkeypatch.setitem(bounds.BOUNDS, EXAMPLE.PowersOfTwo, relative_error)
    with_class = functools.partial(laws.load, classes=[EXAMPLE.PowersOfTwoArray])
    monkeypatch.setattr(laws, "load", with_class)
    if "tmp_path" in inspect.signature(law).parameters:
        kwargs = kwargs | {"tmp_path": request.getfixturevalue("tmp_path")}
    law(CODEC, **kwargs)
