"""A file or a directory is replaced whole, or stays as it was."""

import pathlib

import pytest

from jaxmem.io.atomic import replacing, write_whole


def write_directory(path: pathlib.Path, text: str) -> None:
    path.mkdir()
    (path / "a").write_text(text)


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: pathlib.Path):
    write_whole(tmp_path / "a", b"one")
    write_whole(tmp_path / "a", b"two")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"two")]


@pytest.mark.parametrize("swap", [False, True])
def test_a_block_that_raises_changes_nothing(swap, tmp_path: pathlib.Path):
    write_directory(tmp_path / "d", "one")
    with (
        pytest.raises(KeyError),
        replacing(tmp_path / "d", replace_directory=swap) as temporary,
    ):
        write_directory(temporary, "two")
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d" / "a").read_text() == "one"


def test_a_directory_takes_the_place_of_another_only_if_asked_to(tmp_path: pathlib.Path):
    write_directory(tmp_path / "d", "one")
    with pytest.raises(OSError, match="not empty"), replacing(tmp_path / "d") as temporary:
        write_directory(temporary, "two")
    assert (tmp_path / "d" / "a").read_text() == "one"
    with replacing(tmp_path / "d", replace_directory=True) as temporary:
        write_directory(temporary, "two")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d" / "a").read_text() == "two"


def test_a_link_to_a_directory_is_replaced_and_its_target_kept(tmp_path: pathlib.Path):
    write_directory(tmp_path / "target", "one")
    (tmp_path / "link").symlink_to(tmp_path / "target", target_is_directory=True)
    with replacing(tmp_path / "link", replace_directory=True) as temporary:
        write_directory(temporary, "two")
    assert (tmp_path / "target" / "a").read_text() == "one"
    assert (tmp_path / "link" / "a").read_text() == "two"
