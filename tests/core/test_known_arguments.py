"""Partial evaluation: what needs known arguments alone is computed once, also inside scans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.core.repeated_layers import count_products, equations


def decoder(params, source, x):
    """Layers that attend to a source, whose keys are made in the loop over layers."""

    def layer(x, w):
        keys = jnp.tanh(source @ w["key"])
        x = x + jax.nn.softmax(x @ w["query"] @ keys.T) @ keys
        return x, (keys.sum(), x.sum())

    x, sums = jax.lax.scan(layer, x * params["scale"], params["layers"])
    return {"x": x @ source.T, "sums": sums}


def arguments(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 4, dtype)
    layers = {"key": draw(3, 8, 8), "query": draw(3, 8, 8)}
    return {"layers": layers, "scale": jnp.asarray(2.0, dtype)}, draw(6, 8), draw(2, 8)


def products(fn, *args):
    return sum(count_products(eqn) for eqn in jax.make_jaxpr(fn)(*args).jaxpr.eqns)


def close(one, other):
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(near, one, other)


@pytest.mark.parametrize(
    ("known", "kept", "in_first", "in_rest"),
    [((0, 1), 3 * (6 * 8 + 1) * 4, 1, 4), ((2,), 0, 0, 5), ((), 0, 0, 5), ((0, 1, 2), None, 5, 0)],
)
def test_both_parts_together_are_the_function(known, kept, in_first, in_rest):
    args = arguments()
    parts = jm.once(decoder, *args, known=known)
    given = [args[i] for i in known]
    others = [x for i, x in enumerate(args) if i not in known]
    of_known = parts.first(*given)
    close(parts.rest(of_known, *others), decoder(*args))
    assert kept is None or parts.nbytes == kept
    assert parts.nbytes == jm.nbytes(of_known[0])
    assert products(parts.first, *given) == in_first
    assert products(parts.rest, of_known, *others) == in_rest


def test_a_gradient_goes_through_both_parts():
    params, source, x = arguments()
    loss = lambda *args: (decoder(*args)["x"] ** 2).sum()
    parts = jm.once(loss, params, source, x, known=(0, 1))
    split = lambda params, source, x: parts.rest(parts.first(params, source), x)
    both = [jax.jit(jax.grad(fn, (0, 2)))(params, source, x) for fn in (loss, split)]
    close(*both)


def test_arguments_are_handed_on_and_not_copied():
    params, source, x = arguments()
    parts = jm.once(decoder, params, source, x, known=(0, 1))
    _, same = parts.first(params, source)
    given = {id(leaf) for leaf in jax.tree.leaves((params, source))}
    assert same and all(id(leaf) in given for leaf in same)


@pytest.mark.parametrize(
    ("fn", "kept"),
    [
        (lambda w, x: jnp.broadcast_to(w[None], (9, 4)).astype(x.dtype) + x, 0),  # made again
        (lambda w, x: w.astype(jnp.float32) + x, 0),
        (lambda w, x: jnp.sin(w).astype(jnp.float32) + x, 4 * 2),  # before the cast
        (lambda w, x: w.astype(jnp.float8_e4m3fn).astype(jnp.float32) + x, 4),
        (lambda w, x: jax.lax.fori_loop(0, 3, lambda i, x: jnp.sin(x) * i.astype(x.dtype), x), 0),
    ],
)
def test_only_what_saves_work_or_bytes_is_kept(fn, kept):
    w, x = jnp.ones(4, jnp.bfloat16), jnp.ones((9, 4))
    with jax.numpy_rank_promotion("allow"):
        parts = jm.once(fn, w, x)
        assert parts.nbytes == kept
        close(parts.rest(parts.first(w), x), fn(w, x))


def test_a_carry_that_known_values_determine_is_computed_once():
    def powers(w, x):
        def layer(carry, _):
            w_power, x = carry
            w_power = jnp.tanh(w_power @ w)
            return (w_power, x @ w_power), w_power[0, 0]

        return jax.lax.scan(layer, (jnp.eye(4), x), length=3)

    w, x = jnp.arange(16.0).reshape(4, 4) / 16, jnp.ones((2, 4))
    parts = jm.once(powers, w, x)
    kept = parts.first(w)
    close(parts.rest(kept, x), powers(w, x))
    assert products(parts.rest, kept, x) == 1 and products(parts.first, w) == 1


def test_abstract_arguments_will_do():
    shapes = jax.eval_shape(lambda: arguments(jnp.bfloat16))
    parts = jm.once(decoder, *shapes, known=(0, 1))
    kept = jax.eval_shape(parts.first, *shapes[:2])
    assert jm.nbytes(kept[0]) == parts.nbytes == 3 * (6 * 8 + 1) * 2 and parts.saved >= 2
    names = [eqn.primitive.name for eqn in equations(jax.make_jaxpr(parts.first)(*shapes[:2]).eqns)]
    assert "tanh" in names


def test_wrong_positions_and_shapes_are_refused():
    params, source, x = arguments()
    with pytest.raises(ValueError, match=r"known is \(3,\), but there are 3 arguments"):
        jm.once(decoder, params, source, x, known=3)
    parts = jm.once(decoder, params, source, x, known=(0, 1))
    with pytest.raises(ValueError, match=r"rest: an array is float32\[3,8\], expected"):
        parts.rest(parts.first(params, source), jnp.ones((3, 8)))
    with pytest.raises(ValueError, match="first: the arguments have 3 arrays, expected 4"):
        parts.first(params)
