"""Where the cache is."""

import pytest

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
