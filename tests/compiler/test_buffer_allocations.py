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
