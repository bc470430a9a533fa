"""Allocations are counted in a process of its own; none is guessed, and none is called zero."""

import jax
import jax.numpy as jnp
import pytest

import jaxmem as jm

STATE, X = jnp.zeros((64, 1024)), jnp.ones(1024)  # 256 KiB, 4 KiB


def test_a_donated_cache_is_updated_in_place_and_another_one_is_copied():
    step = jax.jit(lambda cache, x: (cache["k"].at[3].set(x), x.sum()), donate_argnums=0)
    taken = jm.allocations(step, {"k": STATE, "gone": STATE[:32]}, X, calls=3)
    assert taken.in_place == {"args[0]['gone']": False, "args[0]['k']": True}
    assert taken.buffers < 1 and taken.every >= 1
    assert "args[0]['k']: updated in place" in str(taken) and jax.__version__ in str(taken)


def test_what_is_not_donated_takes_its_bytes_and_encoded_weights_run_as_they_do_here():
    w = jm.Int(8).encode(jnp.ones((1024, 64)) / 64)
    fn = jm.lift(lambda w, state, x: (state + 1, x[None] @ w))
    taken = jm.allocations(fn, w, STATE, X, calls=3)
    assert taken.in_place == {} and taken.buffers >= 1 and taken.nbytes >= STATE.nbytes


@pytest.mark.skipif(jm.native().instruction_set is None, reason="there is no compiled library")
def test_what_the_compiled_library_computes_is_counted_as_it_runs():
    w = jm.Int(4, group=32).encode(jnp.ones((2048, 512)) / 64)
    x = jnp.ones((32, 2048))
    fn = lambda w, x: (x @ w)[0, :8]
    assert "jaxmem_integer_rows" in jax.jit(jm.lift(fn)).lower(w, x).as_text()
    taken = jm.allocations(jm.lift(fn), w, x, calls=3)
    assert taken.nbytes < 2_000_000  # XLA decodes tiles, and takes 3.4 MB


def test_without_a_compiler_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(OSError, match="there is no C compiler: none of cc, gcc, clang"):
        jm.allocations(jnp.sin, X)
    monkeypatch.setenv("CC", "/bin/false")
    monkeypatch.setenv("JAXMEM_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="/bin/false failed"):
        jm.allocations(jnp.sin, X)


@pytest.mark.parametrize(("options", "error"), [({"calls": 0}, "calls"), ({"least": -1}, "least")])
def test_wrong_options_are_named(options, error):
    with pytest.raises(TypeError, match=f"allocations: {error} is"):
        jm.allocations(jnp.sin, X, **options)
