"""A user's own linen or NNX module is a Model: fitted, evaluated, run, saved and read again."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import jaxmem as jm
from jaxmem.compression.scan_cut import scans_layers
from jaxmem.models import from_flax, generate, load
from jaxmem.training import JsonLines

V = D = 64  # weights of one shape, so that a codec compiles once
IDS = np.random.default_rng(0).integers(0, V, 8 * 16)
PROMPT = np.array([[3, 1, 4], [1, 5, 9]])


class Linen(nn.Module):
    """Each token and those before it; layers in a Python loop, and state beside the params."""

    causal: bool = True

    @nn.compact
    def __call__(self, ids, train: bool):
        x = nn.Embed(V, D)(ids)
        x += 0.3 * (jnp.cumsum(x, 1) if self.causal else x.sum(1, keepdims=True))
        x = nn.BatchNorm(use_running_average=not train)(x)
        for _ in range(2):
            x += nn.Dropout(0.5, deterministic=not train)(jnp.tanh(nn.Dense(D)(x)))
        return nn.Dense(V)(x)


class Nnx(nnx.Module):
    """The same, with one weight more than once: the head is the embedding."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(V, D, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(D, D, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(D, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, ids):
        x = self.norm(0.3 * jnp.cumsum(self.embed(ids), 1))
        for layer in self.layers:
            x += self.dropout(jnp.tanh(layer(x)))
        return self.embed.attend(x)


@pytest.fixture(scope="module")
def variables():
    return Linen().init(jax.random.key(0), PROMPT, train=False)


@pytest.fixture(scope="module")
def network():
    return Nnx(nnx.Rngs(0))


@pytest.fixture(scope="module", params=["linen", "nnx"])
def model(request, variables, network):
    if request.param == "linen":
        return from_flax(Linen(), variables, context=16, eos=[V])
    return from_flax(network, context=16, eos=[V])


def test_it_runs_as_after_training_and_leaves_the_module_as_it_was(model, variables, network):
    if model.config.module == "Linen":
        want = Linen().apply(variables, PROMPT, train=False)
    else:
        assert not network.dropout.deterministic and not network.norm.use_running_average
        evaluated = nnx.merge(*nnx.split(network))
        evaluated.eval()
        want = evaluated(PROMPT)
    np.testing.assert_allclose(model.apply(model.params, PROMPT), want, rtol=1e-5, atol=1e-5)
    assert not any("mean" in path or "key" in path for path in jm.paths(model.tensors))


def test_it_generates_what_its_logits_say(model):
    ids = PROMPT
    for _ in range(3):
        token = model.apply(model.params, ids)[:, -1].argmax(-1)
        ids = np.concatenate([ids, token[:, None]], axis=1)
    assert (generate(model, PROMPT, max_new_tokens=3).ids == ids[:, 3:]).all()


@pytest.mark.parametrize("calibrate", [None, pytest.param(IDS, marks=pytest.mark.slow)])
def test_it_is_fitted_evaluated_saved_and_read_again(calibrate, model, tmp_path):
    options = jm.FitOptions(tune_steps=1)
    writer = JsonLines(tmp_path / "steps.jsonl")
    with_text = {} if calibrate is None else {"calibrate": calibrate, "writer": writer}
    fitted = jm.fit(model, 12_000, options=options, **with_text)
    steps = [step for step in writer.history if step["fit/kl"] >= 0]
    assert len(steps) == len(writer.history) == (calibrate is not None)
    assert fitted.nbytes <= 12_000 < jm.nbytes(model.params) / 4
    text = {"window": 16, "reference": (model.apply, model.params)}
    result = jm.evaluate(fitted.model.apply, fitted.params, IDS[:32], **text)
    assert 0 < result.kl.mean < 0.05
    fitted.save(tmp_path / "out")
    module = Linen() if model.config.module == "Linen" else Nnx(nnx.Rngs(1))
    again = from_flax(module, tmp_path / "out")
    assert again.config == fitted.model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, fitted.params)
    jax.tree.map(np.testing.assert_array_equal, *jax.tree.map(str, (again.state, model.state)))
    with pytest.raises(ValueError, match=r"of \w+, a module of the user.*from_flax\("):
        load(tmp_path / "out")


class Sums(nn.Module):
    """Logits of the sum of all tokens so far; the cache holds their embeddings."""

    @nn.compact
    def __call__(self, ids, cache=None, position=None):
        x, head = nn.Embed(V, D)(ids), nn.Dense(V)
        if cache is None:
            return head(jnp.cumsum(x, 1))
        cache = jax.lax.dynamic_update_slice_in_dim(cache, x, position, 1)
        sums = jax.lax.dynamic_slice_in_dim(jnp.cumsum(cache, 1), position, ids.shape[1], 1)
        return head(sums), cache


def test_a_module_with_a_cache_writes_what_it_writes_without():
    params = Sums().init(jax.random.key(0), PROMPT)
    cache = lambda batch, length, dtype: jnp.zeros((batch, length, D), dtype)
    cached = from_flax(Sums(), params, context=16, cache=cache)
    write = lambda model: generate(model, PROMPT, max_new_tokens=5).ids
    np.testing.assert_array_equal(write(cached), write(from_flax(Sums(), params, context=16)))
    with pytest.raises(ValueError, match=r"cache is KVCache.*expected None for"):
        generate(cached, PROMPT, max_new_tokens=5, cache=jm.models.KVCache(8))


def test_only_a_scan_over_weights_is_a_scan_over_layers():
    step = lambda x, w: (jnp.tanh(x @ w), None)
    stacked, x = jnp.ones((3, D, D)), jnp.ones((2, D))
    assert scans_layers(lambda w, x: jax.lax.scan(step, x, w)[0], stacked, (x,))
    assert not scans_layers(lambda w, x: step(step(x, w[0])[0], w[1])[0], stacked, (x,))
    over_time = lambda w, x: jax.lax.scan(lambda h, _: step(h, w[0]), x, None, 3)[0]
    assert not scans_layers(over_time, stacked, (x,))


def test_a_tokenizer_is_saved_with_it(variables, tmp_path):
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    from_flax(Linen(), variables, tokenizer).save(tmp_path / "out")
    assert from_flax(Linen(), tmp_path / "out").tokenizer.token_to_id("b") == 1


class Pixels(nn.Module):
    @nn.compact
    def __call__(self, patches):
        return nn.Dense(D)(patches.mean(1))


def test_a_module_of_no_text_is_fitted_and_refused_by_functions_of_texts(tmp_path):
    patches = jax.ShapeDtypeStruct((2, 8, D), jnp.float32)
    params = Pixels().init(jax.random.key(0), jnp.ones(patches.shape))
    model = from_flax(Pixels(), params, context=8, inputs=[patches])
    fitted = jm.fit(model, 4_000)
    assert fitted.model.apply(fitted.params, jnp.ones(patches.shape)).shape == (2, D)
    fitted.save(tmp_path / "out")
    assert from_flax(Pixels(), tmp_path / "out").config.inputs == (patches,)
    with pytest.raises(ValueError, match="Pixels, a Flax module predicts no text"):
        generate(model, PROMPT)
    with pytest.raises(ValueError, match=r"apply gives \(1, 3\) of ids \(1, 8\), expected logits"):
        jm.evaluate(lambda params, ids: jnp.zeros((1, 3)), {}, IDS, window=8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, n: from_flax(Linen()), "Linen is a linen module: give its params"),
        (lambda v, n: from_flax(lambda x: x, v), "takes a linen or NNX module, got function"),
        (lambda v, n: from_flax(Linen(), v, context=0), "context is 0, expected at least 1"),
        (lambda v, n: from_flax(n, {"w": jnp.ones(3)}), "embed/embedding has shape none in the"),
        (lambda v, n: generate(from_flax(n), PROMPT), r"give from_flax\(..., context=n\)"),
        (lambda v, n: generate(from_flax(n, context=16), [[V]]), "reach from 64 to 64"),
        (
            lambda v, n: generate(from_flax(Linen(False), v, context=16), PROMPT, max_new_tokens=5),
            "change by .* with the tokens that come later; to generate wants a causal module",
        ),
        (
            lambda v, n: jm.fit(from_flax(n), 12_000, options=jm.FitOptions(rotate=True)),
            "rotate: wants a Model that jm.models.load gives",
        ),
    ],
)
def test_what_cannot_be_says_what_to_do(call, message, variables, network):
    with pytest.raises((TypeError, ValueError), match=message):
        call(variables, network)


def test_a_directory_of_another_kind_is_refused(tmp_path):
    (tmp_path / "jaxmem.json").write_text('{"config": {"family": "llama"}}')
    with pytest.raises(ValueError, match=r"jm\.models\.load reads it"):
        from_flax(Linen(), tmp_path)


class Decoding(nn.Module):
    """Attention with flax's own cache: with `decode` it takes one token at a time."""

    decode: bool = False

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(V, D)(ids)
        mask = None if self.decode else nn.make_causal_mask(ids)
        x += nn.MultiHeadDotProductAttention(num_heads=4, decode=self.decode)(x, mask=mask)
        return nn.Dense(V)(x)


def test_a_flax_cache_gives_the_tokens_of_the_whole_text(tmp_path):
    variables = Decoding(decode=True).init(jax.random.key(0), PROMPT)
    model = from_flax(Decoding(decode=True), variables, context=16)
    whole = from_flax(Decoding(), variables["params"], context=16)
    np.testing.assert_allclose(
        model.apply(model.params, PROMPT), whole.apply(whole.params, PROMPT), atol=1e-5
    )
    expected = generate(whole, PROMPT, max_new_tokens=4).ids
    assert (generate(model, PROMPT, max_new_tokens=4).ids == expected).all()
    model.save(tmp_path / "model")
    assert from_flax(Decoding(decode=True), tmp_path / "model").config.by_token


def test_variables_without_a_collection_that_is_read_are_refused_with_the_cure(variables):
    model = from_flax(Linen(), variables["params"], context=16)
    with pytest.raises(ValueError, match=r"expected all variables of its init.*batch_stats"):
        generate(model, PROMPT, max_new_tokens=1)


def test_the_whole_state_of_an_nnx_module_has_its_batch_statistics():
    trained = Nnx(nnx.Rngs(0))
    trained.norm.mean[...] += 1.0
    ids = jnp.zeros((1, 4), jnp.int32)
    models = from_flax(trained), from_flax(Nnx(nnx.Rngs(1)), nnx.state(trained))
    np.testing.assert_array_equal(*[m.apply(m.params, ids) for m in models])


def test_an_nnx_module_that_decodes_into_itself_is_refused_with_the_cure():
    attention = nnx.MultiHeadAttention(num_heads=4, in_features=D, decode=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"has decode=True, .* give it decode=False"):
        from_flax(attention)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + jnp.tanh(nn.Dense(D)(x)), None


class Scanned(nn.Module):
    """Each token and those before it; layers in `nn.scan`."""

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(V, D)(ids)
        stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return nn.Dense(V)(stack()(x + 0.3 * jnp.cumsum(x, 1), None)[0])


def test_a_module_that_scans_its_layers_is_fitted_block_by_block():
    module = Scanned()
    model = from_flax(module, module.init(jax.random.key(0), PROMPT), context=16)
    options = jm.FitOptions(tune_steps=0)
    fitted = jm.fit(model, 12_000, calibrate=IDS, options=options)
    assert scans_layers(model.apply, model.tensors, (IDS[None, :16],))
    assert fitted.nbytes <= 12_000 < jm.nbytes(model.params) / 4
    assert jm.is_encoded(fitted.params["ScanLayer_0"]["Dense_0"]["kernel"])
