"""Structured removal: smaller arrays and config, the plain module, and what is left adapts."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.architectures import bert, gpt2, llama
from jaxmem.compression.fit_structures import shared_errors
from jaxmem.structured_pruning.input_removal import remove as plain_remove
from jaxmem.structured_pruning.input_removal import remove_inputs

SIZES = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
IDS = jax.random.randint(jax.random.key(0), (8, 8), 0, 64)
draw = lambda *shape: np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)
remove = jit(plain_remove, static_argnums=(2, 3, 4))
families = pytest.mark.parametrize("family", [llama, gpt2, bert])


@functools.cache
def model(family=llama):
    sizes = dict(SIZES)
    if family is not llama:
        del sizes["kv_heads"], sizes["head_dim"]
    config, chance = family.Config(**sizes), np.random.default_rng(0)

    def some(path, shape):  # gains near 1, all else of the size that keeps what it is fed
        spread = 1.5 / np.sqrt(shape[-2]) if path[-1].key == "kernel" else 0.2
        first = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(first + spread * chance.standard_normal(shape, np.float32))

    params = jax.tree_util.tree_map_with_path(some, shapes(config), is_leaf=is_shape)
    return jm.models.Model(config, params, None, "random")


def shapes(config):
    init = jm.models.model.family(config).module(config).init
    return jax.tree.map(jnp.shape, jax.eval_shape(init, jax.random.key(0), IDS)["params"])


is_shape = lambda x: isinstance(x, tuple)


def stats(model):
    return jit(lambda params, ids: jm.stats(model.apply, params, [(ids,)]))(model.params, IDS)


@functools.cache
def fed(family=llama):
    return stats(model(family))


def smaller_by(remove, whole, *args, stats, **options):
    """What `remove` makes of a model, compiled the quick way."""
    kept = []

    def make(params, stats):
        kept.append(remove(dataclasses.replace(whole, tensors=params), *args, stats, **options))
        return kept[0].params

    params = jit(make)(whole.params, stats)
    return dataclasses.replace(kept[0], tensors=params)


@functools.cache
def logits(family=llama):
    return jit(model(family).apply)(model(family).params, IDS)


def distance(smaller, family=llama):
    got = jit(smaller.apply)(smaller.params, IDS)
    return float(jnp.square(got - logits(family)).mean())


@families
def test_fewer_neurons_run_plainly_and_the_rest_make_up_for_them(family):
    smaller = smaller_by(jm.remove_neurons, model(family), 36, stats=fed(family))
    assert jax.tree.map(jnp.shape, smaller.params) == shapes(smaller.config)
    mlp = dict(model(family).params["layers"]["mlp"])
    naive = {n: {p: w[..., :36] for p, w in m.items()} for n, m in mlp.items() if n != "down"}
    naive["down"] = {**mlp["down"], "kernel": mlp["down"]["kernel"][:, :36]}
    params = {**model(family).params}
    params["layers"] = {**params["layers"], "mlp": naive}
    cut = jm.models.Model(smaller.config, params, None, "cut")
    assert distance(smaller, family) < 0.5 * distance(cut, family)


@pytest.mark.parametrize("new", [dict(heads=2), dict(kv_heads=1)])
def test_fewer_heads_run_plainly_and_leave_their_groups_alike(new):
    smaller = smaller_by(jm.remove_heads, model(), stats=fed(), **new)
    config = smaller.config
    assert (config.heads, config.kv_heads) == ((2, 2) if "heads" in new else (2, 1))
    assert jax.tree.map(jnp.shape, smaller.params) == shapes(config)
    assert jm.nbytes(smaller.params) < jm.nbytes(model().params)
    attn, dim = dict(model().params["layers"]["attn"]), config.head_dim
    first = [0, 2] if "heads" in new else [0, 1]  # query heads that stay, and nothing adapts
    attn["q"] = {"kernel": cut(attn["q"]["kernel"], first, dim)}
    for name in ("k", "v"):
        attn[name] = {"kernel": cut(attn[name]["kernel"], list(range(config.kv_heads)), dim)}
    attn["out"] = {"kernel": cut(attn["out"]["kernel"].mT, first, dim).mT}
    assert distance(smaller) < distance(with_attention(model(), config, attn))


@pytest.mark.parametrize("family", [gpt2, bert])
def test_heads_with_keys_of_their_own_go_with_their_keys(family):
    smaller = fewer_heads(family)
    assert (smaller.config.heads, smaller.config.head_dim) == (3, 8)
    assert jax.tree.map(jnp.shape, smaller.params) == shapes(smaller.config)
    attn = {}
    for name, parts in model(family).params["layers"]["attn"].items():
        if name == "out":
            attn[name] = {**parts, "kernel": cut(parts["kernel"].mT, range(3), 8).mT}
        else:
            thirds = {p: w.reshape(*w.shape[:-1], len(name), -1) for p, w in parts.items()}
            flat = lambda w: w.reshape(*w.shape[:-2], -1)
            attn[name] = {p: flat(cut(w, range(3), 8)) for p, w in thirds.items()}
    assert distance(smaller, family) < distance(
        with_attention(model(family), smaller.config, attn), family
    )


@functools.cache
def fewer_heads(family):
    new = {"heads": 2 if family is llama else 3}
    return smaller_by(jm.remove_heads, model(family), stats=fed(family), **new)


def with_attention(whole, config, attn):
    params = {**whole.params, "layers": {**whole.params["layers"], "attn": attn}}
    return jm.models.Model(config, params, None, "cut")


def cut(w, heads, dim):
    """The heads of the last axis of w."""
    return w.reshape(*w.shape[:-1], -1, dim)[..., list(heads), :].reshape(*w.shape[:-1], -1)


def test_a_bias_takes_over_what_is_always_there():
    x = draw(200, 4) + np.float32([0, 0, 5, 0])[None]
    x[:, 2] = 5.0  # an input that never changes
    moments = jm.Moments((x.T @ x / 200)[None], x.mean(0)[None], abs(x).max(0)[None], None)
    linear = {"kernel": jnp.asarray(draw(1, 4, 3)), "bias": jnp.asarray(draw(1, 3))}
    quick = jit(remove_inputs, static_argnums=(2, 3))
    stay, left = quick(linear, jax.tree.map(jnp.asarray, moments), (0,) * 4, 1)
    assert stay.tolist() == [[0, 1, 3]]
    run = lambda lin, x: x @ lin["kernel"][0] + lin["bias"]
    np.testing.assert_allclose(run(left, x[:, [0, 1, 3]]), run(linear, x), atol=5e-2)


def test_a_dead_head_and_dead_neurons_go_first_at_no_cost():
    whole = model()
    params = jax.tree.map(lambda x: x, whole.params)
    out = params["layers"]["attn"]["out"]["kernel"].reshape(2, 4, 8, 32)
    out = out.at[:, 1].set(0.0).at[:, 2].set(0.0)  # one in each group
    params["layers"]["attn"]["out"] = {"kernel": out.reshape(2, 32, 32)}
    down = params["layers"]["mlp"]["down"]["kernel"].at[:, 5:9].set(0.0)
    params["layers"]["mlp"]["down"] = {"kernel": down}
    whole = jm.models.Model(whole.config, params, None, "with dead parts")
    seen = stats(whole)
    smaller = smaller_by(jm.remove_heads, whole, stats=seen, heads=2)
    smaller = smaller_by(jm.remove_neurons, smaller, 44, stats=seen)
    run = lambda m: jit(m.apply)(m.params, IDS)
    np.testing.assert_allclose(run(smaller), run(whole), atol=2e-3, rtol=1e-3)


def test_layers_are_stacked_again_and_the_ones_that_do_least_go():
    params = jax.tree.map(lambda x: x, model().params)
    for part, name in (("attn", "out"), ("mlp", "down")):
        kernel = params["layers"][part][name]["kernel"].at[0].multiply(1e-5)
        params["layers"][part][name] = {"kernel": kernel}
    whole = jm.models.Model(model().config, params, None, "with a layer that does little")
    assert jm.least_missed(whole, 1, IDS) == [0]
    smaller = jm.remove_layers(whole, [0])
    run = lambda m: jit(m.apply)(m.params, IDS)
    np.testing.assert_allclose(run(smaller), run(whole), atol=5e-2)


def test_a_smaller_model_has_the_errors_of_the_weights_it_keeps():
    attention, up, table = "layers/attn/q/kernel", "layers/mlp/up/kernel", "embed/embedding"
    errors = {path: {"codec": np.array([1.0, 2.0])} for path in (attention, up)}
    errors[table] = {"codec": np.array(3.0)}
    shallow = shared_errors(errors, model(), jm.remove_layers(model(), [0]), [1])
    assert {path: each["codec"].tolist() for path, each in shallow.items()} == {
        attention: [2.0],
        up: [2.0],
        table: 3.0,
    }
    tensors = {**model().params, "layers": {**model().params["layers"], "mlp": {}}}
    thin = dataclasses.replace(model(), tensors=tensors)
    assert set(shared_errors(errors, model(), thin, [0, 1])) == {attention, table}


def test_a_narrower_stream_is_exact_where_it_loses_nothing():
    params = jax.tree.map(lambda x: x, model().params)  # a stream that lies in 24 of 32 axes
    axes = jnp.linalg.qr(draw(32, 32))[0][:, :24]
    flat = axes @ axes.T
    params["embed"] = {"embedding": params["embed"]["embedding"] @ flat}
    for part, name in (("attn", "out"), ("mlp", "down")):
        params["layers"][part][name] = {"kernel": params["layers"][part][name]["kernel"] @ flat}
    for norm in ("attn_norm", "mlp_norm"):  # gains are folded into what follows
        gain = jnp.exp(0.3 * draw(2, 32))
        params["layers"][norm] = {"scale": gain}
    params["final_norm"] = {"scale": jnp.exp(0.3 * draw(32))}
    whole = jm.models.Model(model().config, params, None, "in 24 axes")
    smaller = jm.remove_width(whole, 24, stats(whole))
    assert jax.tree.map(jnp.shape, smaller.params) == shapes(smaller.config)
    run = lambda m: jit(m.apply)(m.params, IDS)
    np.testing.assert_allclose(run(smaller), run(whole), atol=2e-3, rtol=2e-3)


def test_what_reads_a_narrower_stream_is_refitted_to_it():
    smaller = jm.remove_width(model(), 20, fed())
    embed = lambda m: np.asarray(m.params["embed"]["embedding"], "f8")
    turn = np.linalg.lstsq(embed(model()), embed(smaller), rcond=None)[0].astype("f4")
    params = jax.tree.map(lambda x: x, smaller.params)
    for part, names in {"attn": "qkv", "mlp": ("gate", "up")}.items():
        old = model().params["layers"]
        gain = old[f"{part}_norm"]["scale"][:, :, None]
        for name in names:
            params["layers"][part][name] = {"kernel": turn.T @ (gain * old[part][name]["kernel"])}
    assert distance(smaller) < 0.9 * distance(dataclasses.replace(smaller, tensors=params))


@families
def test_a_smaller_model_is_saved_and_loaded(family, tmp_path):
    smaller = fewer_heads(family)
    smaller.save(tmp_path / "m")
    again = jm.models.load(tmp_path / "m")
    assert again.config == smaller.config
    chex.assert_trees_all_equal(again.params, smaller.params, strict=True)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: jm.remove_neurons(model(), 48, {}), "48 neurons are to stay of 48"),
        (lambda: jm.remove_neurons(model(), 0, fed()), "expected at least 1"),
        (lambda: jm.remove_neurons(model(), 9, {}), "for layers/mlp/down/kernel"),
        (lambda: jm.remove_heads(model(), fed()), "give heads or kv_heads"),
        (lambda: jm.remove_heads(model(), fed(), heads=3), "multiple of 2 groups"),
        (lambda: jm.remove_heads(model(), fed(), heads=0), "multiple of 2 groups"),
        (lambda: jm.remove_heads(model(), fed(), kv_heads=2), "2 of 2 groups"),
        (lambda: jm.remove_heads(model(bert), {}, heads=4), "4 of 4 groups"),
        (lambda: jm.remove_heads(model(gpt2), {}, heads=0), "0 of 4 groups"),
        (lambda: jm.remove_layers(model(), []), "expected some of them"),
        (lambda: jm.remove_layers(model(), [0, 0]), "once"),
        (lambda: jm.remove_layers(model(), [0, 7]), "of 2"),
        (lambda: jm.least_missed(model(), 2, IDS), "2 of 2 layers"),
        (lambda: jm.remove_width(model(), 32, fed()), "a width of 32"),
        (lambda: jm.remove_width(model(gpt2), 16, {}), "expected a Llama"),
    ],
)
def test_what_would_empty_a_part_or_remove_nothing_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def decoder(**options):
    config = llama.Config(**SIZES, **options)
    params = jax.tree.map(np.zeros, shapes(config), is_leaf=is_shape)
    return jm.models.Model(config, params, None, "zeros")


def test_a_layer_that_stays_keeps_its_window_and_its_positions():
    whole = decoder(local=(True, False), window=4, no_rope=(False, True))
    smaller = jm.structured_pruning.remove_layers(whole, [0])
    assert (smaller.config.local, smaller.config.no_rope) == ((False,), (True,))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(positions="alibi"), "zeros has ALiBi slopes"),
        (dict(qk_norm=True, qk_norm_over="all"), "zeros has norms over heads"),
        (dict(mixture=dict(experts=4, per_token=2, ffn=8)), "zeros has mixture="),
    ],
)
def test_heads_that_are_not_alike_stay(options, message):
    with pytest.raises(ValueError, match=message):
        jm.structured_pruning.remove_heads(decoder(**options), {}, kv_heads=1)
