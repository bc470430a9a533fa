"""The script of experiments/reliability in short: no outcome is bad."""

import importlib
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "reliability"
quiet = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@quiet
def test_a_damaged_file_loads_or_is_named(script):
    assert not script("damaged_files").run(440)["bad"]


def test_a_killed_writer_leaves_a_whole_tree(script):
    assert not script("kills").run(1)["bad"]


@quiet
def test_a_wrong_argument_of_a_codec_is_named(script):
    assert not script("bad_calls").run("NM|LowRank")["bad"]


def test_a_transformation_gives_what_it_gives_of_decoded_weights(script):
    assert not script("transformations").run(1)["bad"]


@pytest.mark.slow
def test_an_interrupted_fit_ends_with_130_and_leaves_nothing(script):
    result = script("interrupts").run(8)
    assert not result["bad"] and result["counts"]["right"] == 8 and result["codes"]["130"] > 3
