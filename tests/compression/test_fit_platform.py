"""A fit for a CPU, a TPU or a GPU chooses among integers that it multiplies fast."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen

import jaxmem as jm
from jaxmem.architectures import bert
from jaxmem.compression import token_seconds
from jaxmem.compression.fit_platform import fast_integers
from jaxmem.compression.product_forms import ProductForm, has_fast_product

PARAMS = {"up": jax.random.normal(jax.random.key(0), (192, 64)), "bias": jnp.ones(64)}
X = jax.random.normal(jax.random.key(1), (8, 192))


def apply(params, x):
    return x @ params["up"] + params["bias"][None]


@pytest.mark.parametrize("batches", [None, [(X,)]], ids=["without data", "with data"])
def test_what_is_fitted_for_a_gpu_has_one_scale_a_row(batches):
    options = jm.FitOptions(target="gpu")
    fitted = jm.fit((apply, PARAMS), 8_200, calibrate=batches, options=options)
    leaf = fitted.params["up"]
    assert leaf.scale.shape == (1, 64) and leaf.bits == 5 and fitted.nbytes <= 8_200
    assert jm.fit((apply, PARAMS), 8_200).params["up"].scale.shape[0] > 1
    run, params = fitted.model
    error = jnp.linalg.norm(run(params, X) - apply(PARAMS, X))
    assert error < 0.1 * jnp.linalg.norm(X @ PARAMS["up"])


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
def test_every_candidate_is_fast_on_its_platform(platform):
    shape = jax.ShapeDtypeStruct((4096, 256), jnp.float32)
    for nbytes, least in ((10**7, 3), (100, 2)):
        [codecs] = fast_integers({"w": shape}, nbytes, platform, None).values()
        leaves = [jax.eval_shape(codec.encode, shape) for codec in codecs]
        assert all(has_fast_product(leaf, platform) for leaf in leaves)
        assert min(codec.bits for codec in codecs) == least
        assert {codec.group is None for codec in codecs} == {platform == "gpu"}


def test_an_encoder_has_one_scale_a_row_on_a_cpu(monkeypatch):
    known = jm.Speeds("cpu", {ProductForm("float32", 32): 1.0}, "not measured")
    monkeypatch.setattr(token_seconds, "speeds", lambda device: known)
    config = bert.Config(vocab=8, width=64, ffn=64, layers=1, heads=2, context=16)
    ids = jnp.zeros((1, 4), jnp.int32)
    params = bert.module(config).init(jax.random.key(0), ids, ids == 0)["params"]
    model = jm.models.Model(config, params, None, "an encoder")
    fitted = jm.fit(model, 30_000, options=jm.FitOptions(target="cpu"))
    assert {codec.codec.group for codec in fitted.plan.values()} == {None}
    shape = {"w": jax.ShapeDtypeStruct((4096, 256), jnp.float32)}
    [codecs] = fast_integers(shape, 10**7, "tpu", None, many_rows=True).values()
    assert None not in {codec.group for codec in codecs}  # whose kernel reads groups for many rows


def test_a_convolution_stays_dense_and_alone_is_refused(monkeypatch):
    known = jm.Speeds("cpu", {ProductForm("float32", 32): 1.0}, "not measured")
    monkeypatch.setattr(token_seconds, "speeds", lambda device: known)
    net = linen.Sequential([linen.Conv(8, (3,)), linen.Dense(64)])
    x = jnp.ones((1, 16, 64))
    params = net.init(jax.random.key(0), x)
    fitted = jm.fit((net.apply, params, x), 20_000, options=jm.FitOptions(target="cpu"))
    assert set(fitted.plan) == {"layers_1/kernel"} and fitted.speed > 1
    conv = linen.Conv(8, (3,))
    with pytest.raises(ValueError, match="'cpu' multiplies no weight in few bits: kernels of conv"):
        jm.fit(
            (conv.apply, conv.init(jax.random.key(0), x), x),
            9_000,
            options=jm.FitOptions(target="cpu"),
        )
