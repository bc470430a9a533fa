"""SCALE, Adam-mini and APOLLO know heads, tables and vectors, and refuse what they cannot do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.optimizers import adam_mini, apollo, scale_sgd

SIZES = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
IDS = jnp.zeros((1, 4), jnp.int32)
DRAW = lambda *shape: jax.random.normal(jax.random.key(1), shape)


def abstract(**changed):
    """(uses, abstract params) of a small Llama."""
    module = llama.module(llama.Config(**SIZES | changed))
    params = jax.eval_shape(module.init, jax.random.key(0), IDS)["params"]
    return jm.uses(lambda p, ids: module.apply({"params": p}, ids), params, IDS), params


def kinds(optimizer, params):
    """{path: the weight's state}"""
    state = jax.eval_shape(optimizer.init, params)[0]["weights"]
    is_state = lambda x: not isinstance(x, dict)
    return dict(zip(jm.paths(params), jax.tree.leaves(state, is_leaf=is_state)))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_scale_keeps_the_momentum_of_the_head_and_adam_for_vectors(tied, told):
    uses, params = abstract(tied=tied)
    states = kinds(scale_sgd(1e-3, uses=uses if told else None), params)
    head = "embed/embedding" if tied else "head/kernel"
    assert [p for p, s in states.items() if getattr(s, "momentum", None) is not None] == [head]
    assert states["embed/embedding"].axes == ((-1,) if tied else (-2,))
    assert states["layers/mlp_norm/scale"].mu.shape == (2, 32)  # a stack of vectors
    assert states["layers/mlp/up/kernel"].axes == (-2,)


def test_scale_divides_by_the_root_mean_square_of_each_output():
    g = {"up": {"kernel": DRAW(8, 5)}, "embed": {"embedding": DRAW(9, 4)}, "head": DRAW(4, 9)}
    optimizer = scale_sgd(0.5)
    updates, _ = optimizer.update(g, optimizer.init(g))
    np.testing.assert_allclose((updates["up"]["kernel"] ** 2).mean(0), 0.25, rtol=1e-5)
    np.testing.assert_allclose((updates["embed"]["embedding"] ** 2).mean(0), 0.25, rtol=1e-5)


def test_adam_mini_has_a_moment_for_a_head_an_output_and_a_token():
    uses, params = abstract()
    heads = {".*attn/q/kernel": 4, ".*attn/k/kernel": 2}
    states = kinds(adam_mini(1e-3, heads=heads, uses=uses), params)
    shapes = {p.removeprefix("layers/"): s.nu.shape for p, s in states.items()}
    assert shapes["attn/q/kernel"] == (2, 1, 4) and shapes["attn/k/kernel"] == (2, 1, 2)
    assert shapes["mlp/up/kernel"] == (2, 1, 48) and shapes["embed/embedding"] == (64, 1)


def test_apollo_of_full_rank_and_matrices_goes_as_far_as_adam():
    g, slow = {"up": {"kernel": DRAW(6, 40)}}, dict(scaled="matrix")
    optimizer = apollo(1.0, rank=6, **slow)
    updates, _ = optimizer.update(g, optimizer.init(g))
    length = float(jnp.linalg.norm(updates["up"]["kernel"]))
    adam = g["up"]["kernel"].size ** 0.5  # its first step is 1 for every weight
    assert 0.5 * adam < length < 2 * adam
    again = optimizer.update(g, optimizer.init(g))[0]["up"]["kernel"]
    np.testing.assert_array_equal(updates["up"]["kernel"], again)  # P is of the seed
    other = apollo(1.0, rank=6, seed=1, **slow)
    assert (other.update(g, other.init(g))[0]["up"]["kernel"] != again).any()


@pytest.mark.parametrize("shape", [(6, 40), (40, 6)])
def test_what_is_projected_back_has_few_ranks_and_descends(shape):
    g = {"up": {"kernel": DRAW(*shape)}}
    optimizer = apollo(1.0, rank=2, scaled="back")
    update = optimizer.update(g, optimizer.init(g))[0]["up"]["kernel"]
    sizes = np.linalg.svd(np.asarray(update), compute_uv=False)
    assert sizes[1] > 0.1 * sizes[0] and sizes[2] < 1e-5 * sizes[0]
    assert (update * g["up"]["kernel"]).sum() < 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scale_sgd(1e-3, momentum=1.0), "momentum is 1.0, expected a number in"),
        (
            lambda: apollo(1e-2, scaled="row"),
            "'row', expected 'channel', 'matrix' or 'back'",
        ),
        (lambda: apollo(1e-2, alpha=0.0), "alpha is 0.0, expected a number above 0"),
        (lambda: adam_mini(float("nan")), "learning_rate is nan, expected a number of at least 0"),
        (lambda: adam_mini(1e-3, b2=1.0), "Adam's b2 is 1.0, expected a number in"),
        (lambda: scale_sgd(1e-3, eps=-1.0), "Adam's eps is -1.0, expected a number of at least 0"),
        (lambda: apollo(1e-2, dense="x").init({"w": DRAW(4, 4)}), "'x' matches no leaf"),
        (lambda: apollo(1e-2, uses={"x": []}).init({"w": DRAW(4, 4)}), "of another tree"),
        (lambda: scale_sgd(1e-3, head="x").init({"w": DRAW(4, 4)}), "'x' matches no leaf"),
        (
            lambda: adam_mini(1e-3, heads={"w": 3}).init({"w": DRAW(4, 4)}),
            r"w of shape \(4, 4\) has 3 heads, expected a divisor of its last axis",
        ),
        (
            lambda: scale_sgd(1e-3).init({"q": {"kernel": DRAW(4, 4, 4)}}),
            "Pass uses=jm.uses",
        ),
    ],
)
def test_what_it_cannot_do_is_one_clear_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_weight_that_trains_by_its_parts_is_refused():
    params = {"w": jm.Fake(jm.Int(4)).encode(DRAW(16, 8))}
    with pytest.raises(TypeError, match="w is a FakeArray, expected an array, Split or Int"):
        scale_sgd(1e-3).init(params)
