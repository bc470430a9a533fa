"""What each mechanism computes, on a stack of dense and encoded weights, under scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.adapters import (
    adapters,
    attach,
    bottlenecks,
    freeze_v,
    loftq,
    pissa,
    qera,
    with_alpha,
    with_magnitudes,
)

KEY = jax.random.key(0)
W = jax.random.normal(KEY, (2, 32, 24))
X = jax.random.normal(jax.random.key(1), (5, 32))


def bases():
    return [{"kernel": W}, {"kernel": jm.Int(4, group=16).encode(W)}]


def scanned(params, x):
    """The products of x with the layers, each an unmodified product in a scan."""
    return jax.lax.scan(lambda x, w: (x, jnp.tanh(x) @ w), x, params["kernel"])[1]


run = jm.lift(scanned)


def trained(pairs):
    """Pairs whose u is no longer zero."""
    return {k: p | {"u": jnp.ones_like(p["u"]) / 8} for k, p in pairs.items()}


@pytest.mark.parametrize("base", bases(), ids=["dense", "int4"])
def test_dora_scales_each_output_to_its_magnitude_and_stops_the_gradient_of_the_norm(base):
    start = with_magnitudes(base, adapters(KEY, base, 4))
    np.testing.assert_allclose(run(attach(base, start), X), run(base, X), atol=2e-4)
    pairs = trained(start)
    dense = jm.decode(base)["kernel"]

    def expected(pair):
        whole = dense + jnp.einsum("lnr,lrk->lkn", pair["u"], pair["v"])
        norm = jax.lax.stop_gradient(jnp.linalg.norm(whole, axis=-2))
        return scanned({"kernel": whole * (pair["m"] / norm)[:, None]}, X)

    loss = lambda fn: lambda pairs: (fn(pairs) ** 2).sum()
    ours = loss(lambda pairs: run(attach(base, pairs), X))
    wanted = loss(lambda pairs: expected(pairs["kernel"]))
    got, want = (jit(jax.value_and_grad(f))(pairs) for f in (ours, wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), got, want)
    whole = attach(base, pairs)["kernel"].decode()
    np.testing.assert_allclose(jnp.linalg.norm(whole, axis=-2), pairs["kernel"]["m"], rtol=1e-4)


def test_rslora_scales_by_the_root_of_the_rank():
    pairs = trained(adapters(KEY, bases()[0], 4))
    by_rank, by_root = (with_alpha(pairs, 8, root=root)["kernel"]["u"] for root in (False, True))
    assert by_rank[0, 0, 0] == 8 / 4 / 8 and by_root[0, 0, 0] == 8 / 2 / 8


def test_lora_fa_trains_u_alone():
    base = bases()[1]
    pairs, whole = freeze_v(trained(adapters(KEY, base, 4))), trained(adapters(KEY, base, 4))
    loss = lambda t, f: (run(attach(base, jm.merge(t, f)), X) ** 2).sum()
    slope = jit(jax.grad(loss))(*pairs)["kernel"]
    want = jit(jax.grad(lambda p: (run(attach(base, p), X) ** 2).sum()))(whole)["kernel"]
    assert slope["v"] is None
    np.testing.assert_allclose(slope["u"], want["u"], rtol=1e-5)


@pytest.mark.parametrize("base", bases(), ids=["dense", "int4"])
def test_a_bottleneck_stands_behind_the_product_of_an_unmodified_model(base):
    small = bottlenecks(KEY, base, 3, "kernel")
    np.testing.assert_allclose(run(attach(base, small), X), run(base, X), atol=1e-5)
    small["kernel"] |= {"up": small["kernel"]["up"] + 0.1, "bias": small["kernel"]["bias"] + 0.2}
    y, pair = run(base, X), small["kernel"]
    inner = jax.nn.gelu(jnp.einsum("lmn,ltn->ltm", pair["down"], y) + pair["bias"][:, None])
    expected = y + jnp.einsum("lnm,ltm->ltn", pair["up"], inner)
    np.testing.assert_allclose(jit(run)(attach(base, small), X), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(NotImplementedError, match="bottleneck adapter is no matrix"):
        jm.decode(attach(base, small))


def test_starts_make_the_sum_nearer_to_the_dense_weight():
    dense, base = ({"kernel": x["kernel"]} for x in bases())
    error = lambda params: float(jnp.square(jm.decode(params)["kernel"] - W).sum())
    rest, pairs = pissa(dense, 4)
    assert error(attach(rest, pairs)) < 1e-8
    largest = jnp.linalg.svd(W, compute_uv=False)
    np.testing.assert_allclose(jnp.linalg.svd(rest["kernel"], compute_uv=False)[:, 0],
                               largest[:, 4], rtol=1e-3)  # fmt: skip
    corrected = error(attach(base, qera(base, dense, 4)))
    found, pairs = loftq(dense, jm.Int(4, group=16), 4, rounds=3)
    assert jm.nbytes(found) == jm.nbytes(base)
    assert error(attach(found, pairs)) <= corrected < 0.8 * error(base)


def test_qera_with_stats_makes_the_outputs_nearest():
    dense, base = bases()
    x = X @ jax.random.normal(KEY, (32, 32)) @ jnp.diag(jnp.arange(32.0))
    stats = jm.stats(scanned, dense, [(x,)])
    distance = lambda pairs: float(jnp.square(run(attach(base, pairs), x) - run(dense, x)).sum())
    assert distance(qera(base, dense, 2, stats=stats)) < distance(qera(base, dense, 2))
    with pytest.raises(ValueError, match="stats have no kernel"):
        qera(base, dense, 2, stats={})


def test_what_is_no_start_is_refused():
    dense, base = bases()
    with pytest.raises(ValueError, match="kernel is encoded, expected a dense weight: PiSSA"):
        pissa(base, 4)
    with pytest.raises(ValueError, match="kernel is encoded, expected a dense weight, which LoftQ"):
        loftq(base, jm.Int(4), 4)
    with pytest.raises(ValueError, match="dense has no kernel"):
        qera(base, {"other": W}, 4)
    with pytest.raises(ValueError, match="alpha is 0"):
        with_alpha(adapters(KEY, dense, 4), 0)
    with pytest.raises(ValueError, match=r"has the parts .'v'., expected u and v"):
        attach(dense, {"kernel": {"v": W}})
