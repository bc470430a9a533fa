"""A second price of a plan, seconds a token, and what `fit` says of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.commands.decode_speed import speed_line
from jaxmem.compression.knapsack import least_loss
from jaxmem.compression.product_forms import ProductForm
from jaxmem.compression.product_speeds import Speeds
from jaxmem.compression.token_seconds import SecondsLimit, TokenSeconds

PARAMS = {"up": jax.random.normal(jax.random.key(0), (256, 64)), "table": jnp.ones((64, 64))}
X, IDS = jnp.ones((1, 256)), jnp.zeros((1,), jnp.int32)


def apply(params, x, ids):
    return x @ params["up"] + params["table"][ids]


def test_both_limits_are_kept_and_none_is_told():
    sizes, losses = [np.array([1, 2, 4])] * 2, [np.array([9.0, 3.0, 1.0])] * 2
    prices = [np.array([5.0, 2.0, 3.0])] * 2
    assert least_loss(sizes, losses, 8) == [2, 2]
    assert sorted(least_loss(sizes, losses, 8, prices, 5.0)) == [1, 2]
    assert least_loss(sizes, losses, 3, prices, 5.0) is None


def test_a_weight_that_is_only_looked_up_takes_no_time():
    known = Speeds("cpu", {ProductForm("float32", 32): 2.0, ProductForm("int", 8): 3.0}, "a test")
    seconds = TokenSeconds(known, jm.uses(apply, PARAMS, X, IDS))
    assert seconds.total(PARAMS) == 2.0 * jm.nbytes(PARAMS["up"])
    up = jm.Int(8).encode(PARAMS["up"])
    assert seconds.total({**PARAMS, "up": up}) == 3.0 * jm.nbytes(up)


def test_a_budget_of_seconds_takes_a_faster_form_than_one_of_bytes():
    codecs, of = [jm.Int(4), jm.Int(8)], lambda path, leaf: float(leaf.bits) * (path == "up")
    plan = jm.budget({"up": PARAMS["up"]}, nbytes=10**5, candidates=codecs)
    assert plan["up"].bits == 8
    options = dict(nbytes=10**5, candidates=codecs)
    fast = jm.budget({"up": PARAMS["up"]}, seconds=SecondsLimit(of, 5.0), **options)
    assert fast["up"].bits == 4
    with pytest.raises(ValueError, match="ms a token cannot be reached; the fastest choice is"):
        jm.budget({"up": PARAMS["up"]}, seconds=SecondsLimit(of, 1.0), **options)


def test_fit_keeps_a_speed_and_predicts_it():
    options = jm.FitOptions(target="gpu", speed=6.0)
    fitted = jm.fit((apply, PARAMS, X, IDS), 10**5, options=options)
    assert fitted.speed >= 6 and fitted.params["up"].bits == 5
    assert jm.fit((apply, PARAMS, X, IDS), 10**5).speed is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(speed=2.0), "speed is 2.0 of target None, expected a target of cpu, tpu, gpu"),
        (dict(speed=2.0, target="gguf"), "speed is 2.0 of target 'gguf'"),
        (dict(speed=0.0, target="cpu"), "speed is 0.0, expected times the dense weights' speed"),
    ],
)
def test_a_speed_without_a_platform_or_of_zero_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jm.FitOptions(**options)


def test_what_is_slower_than_dense_is_called_so():
    fitted = jm.Fitted(None, jm.Plan({}), {}, None, {}, speed=0.9)
    assert speed_line(fitted, "cpu", None).endswith("0.90 x the dense speed: slower than dense")
    assert "measured 1.20 x" in speed_line(fitted, "cpu", 1.2)
    assert "slower" not in speed_line(fitted, "cpu", 1.2)


@pytest.mark.parametrize("limit", [-1.0, float("nan")])
def test_seconds_below_0_are_refused(limit):
    with pytest.raises(ValueError, match="expected seconds of at least 0"):
        SecondsLimit(lambda path, leaf: 1.0, limit)
