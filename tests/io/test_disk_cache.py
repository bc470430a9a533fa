import pathlib

import pytest

from jaxmem.io.atomic import write_whole
from jaxmem.io.disk_cache import cache_dir


@pytest.mark.parametrize(
    ("env", "want"),
    [
        ({"JAXMEM_CACHE": "{t}/own", "XDG_CACHE_HOME": "{t}/xdg"}, "own/compiled"),
        ({"XDG_CACHE_HOME": "{t}/xdg"}, "xdg/jaxmem/compiled"),
        ({"HOME": "{t}"}, ".cache/jaxmem/compiled"),
    ],
)
def test_the_nearest_setting_decides_where_the_cache_is(tmp_path, monkeypatch, env, want):
    for name in ("JAXMEM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value.format(t=tmp_path))
    assert cache_dir("compiled") == tmp_path / want
    assert (tmp_path / want).is_dir()


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: pathlib.Path):
    write_whole(tmp_path / "a", b"one")
    write_whole(tmp_path / "a", b"two")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"two")]
