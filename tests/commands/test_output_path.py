"""A command finds a bad --out before any work."""

import os

import pytest

from jaxmem.commands.card import MakeCard
from jaxmem.commands.demo import Demo
from jaxmem.commands.export import Export
from jaxmem.commands.fit import Fit
from jaxmem.commands.output import Output
from jaxmem.commands.output_path import check_out
from jaxmem.commands.plan import Plan

COMMANDS = {
    "fit": lambda out: Fit("no model", nbytes=1, out=out),
    "export": lambda out: Export("no model", format="gguf", out=out),
    "plan": lambda out: Plan("no model", device="cpu", task="lora", batch=1, seq=1, out=out),
    "plot": lambda out: Plan("no model", device="cpu", task="lora", batch=1, seq=1, plot=out),
    "demo": lambda out: Demo(out=out),
    "card": lambda out: MakeCard("no model", reference="none", out=out),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_where_a_folder_goes_is_refused(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/out cannot be written: .*file is no directory"):
        COMMANDS[name](f"{tmp_path}/file/out").run(Output())


@pytest.mark.parametrize("name", ["plan", "plot", "demo"])
def test_a_file_wants_its_folder_and_no_folder_in_its_place(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no directory .*missing to write out in"):
        COMMANDS[name](f"{tmp_path}/missing/out").run(Output())
    with pytest.raises(IsADirectoryError, match="is a directory, expected a file to write"):
        COMMANDS[name](str(tmp_path)).run(Output())


def test_a_card_wants_no_file_in_the_place_of_its_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(NotADirectoryError, match="out is a file, expected a folder to write in"):
        COMMANDS["card"](f"{tmp_path}/out").run(Output())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_may_not_be_written_to_is_refused(name, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="is not writable"):
        COMMANDS[name](f"{tmp_path}/out").run(Output())


def test_missing_parents_are_made_where_the_command_makes_them(tmp_path):
    assert check_out(tmp_path / "a" / "b", makes_parents=True) == tmp_path / "a" / "b"
