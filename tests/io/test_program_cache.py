"""Compiled programs on disk: kept within the block only, and read by another process's compiler."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import monitoring

from jaxmem.io import program_cache


def test_programs_are_kept_within_the_block_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMEM_CACHE", str(tmp_path))
    monkeypatch.setattr(program_cache, "LEAST_SECONDS", 0.0)
    kept, hits = lambda: list((tmp_path / "programs").glob("*-cache")), []
    monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
    x, before = jnp.arange(3.0), jax.config.jax_compilation_cache_dir
    try:
        with program_cache.kept_programs():
            want = np.asarray(jax.jit(lambda x: jnp.sin(x) + 41.5)(x))
            assert len(kept()) == 1
            assert not any(hits)
            again = np.asarray(jax.jit(lambda x: jnp.sin(x) + 41.5)(x))
            np.testing.assert_array_equal(again, want)
            assert sum(hits) == 1, hits
        assert jax.config.jax_compilation_cache_dir == before
        jax.jit(lambda x: jnp.cos(x) + 41.5)(x)
        assert len(kept()) == 1
    finally:
        monitoring.clear_event_listeners()


def test_a_folder_of_the_user_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMEM_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    try:
        with program_cache.kept_programs():
            assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert not (tmp_path / "programs").exists()


def test_a_folder_that_cannot_be_made_is_gone_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXMEM_CACHE", str(tmp_path / "file"))
    with program_cache.kept_programs():
        assert jax.config.jax_compilation_cache_dir is None
