"""Structured removal: smaller arrays and config, the plain module, and what is left adapts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import jit

import jaxmem as jm
from jaxmem.models import bert, gpt2, llama
from jaxmem.structured.removing import remove

SIZES = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
IDS = jax.random.randint(jax.random.key(0), (8, 8), 0, 64)
draw = lambda *shape: jax.random.normal(jax.random.key(sum(shape)), shape)


@functools.cache
def model(family=llama):
    sizes = dict(SIZES)
    if family is not llama:
        del sizes["kv_heads"], sizes["head_dim"]
    config = family.Config(**sizes)
    params = family.module(config).init(jax.random.key(0), IDS)["params"]
    return jm.models.Model(config, jax.tree.map(lambda p: 1.5 * p, params), None, "random")


@functools.cache
def fed(family=llama):
    return jm.stats(model(family).apply, model(family).params, [(IDS,)])


@functools.cache
def logits(family=llama):
    return jit(model(family).apply)(model(family).params, IDS)


def distance(smaller, family=llama):
    got = jit(smaller.apply)(smaller.params, IDS)
    return float(jnp.square(got - logits(family)).mean())


def test_the_greedy_choice_is_the_least_loss_and_the_fit_is_exact():
    w, x = draw(6, 5), draw(200, 6) @ draw(6, 6)
    gram = x.T @ x / 200
    stay, left = remove(w, gram, (0,) * 6, 2, 0.0)
    whole = np.asarray(x @ w, "f8")

    def refitted(rows):
        inputs = np.asarray(x[:, rows], "f8")
        best = np.linalg.lstsq(inputs, whole, rcond=None)[0]
        return ((inputs @ best - whole) ** 2).sum(), best

    rows = list(range(6))
    for _ in range(2):  # one at a time
        rows = min(([i for i in rows if i != gone] for gone in rows), key=lambda r: refitted(r)[0])
    assert stay.tolist() == rows
    np.testing.assert_allclose(left, refitted(rows)[1], rtol=2e-3, atol=2e-3)


def test_groups_go_whole_and_every_set_loses_as_many():
    w, x = draw(12, 5), draw(300, 12) @ draw(12, 12)
    stay, left = remove(w, x.T @ x / 300, (0, 0, 0, 1, 1, 1), 1)
    assert left.shape == (8, 5)
    assert sorted((stay // 3).tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize("family", [llama, bert])
def test_fewer_neurons_run_plainly_and_the_rest_make_up_for_them(family):
    smaller = jm.remove_neurons(model(family), 36, fed(family))
    shapes = jax.eval_shape(family.module(smaller.config).init, jax.random.key(0), IDS)["params"]
    assert jax.tree.map(jnp.shape, smaller.params) == jax.tree.map(lambda s: s.shape, shapes)
    mlp = dict(model(family).params["layers"]["mlp"])
    naive = {n: {p: w[..., :36] for p, w in m.items()} for n, m in mlp.items() if n != "down"}
    naive["down"] = {**mlp["down"], "kernel": mlp["down"]["kernel"][:, :36]}
    params = {**model(family).params}
    params["layers"] = {**params["layers"], "mlp": naive}
    cut = jm.models.Model(smaller.config, params, None, "cut")
    assert distance(smaller, family) < 0.5 * distance(cut, family)


@pytest.mark.parametrize("new", [dict(heads=2), dict(kv_heads=1)])
def test_fewer_heads_run_plainly_and_leave_their_groups_alike(new):
    smaller = jm.remove_heads(model(), fed(), **new)
    config = smaller.config
    assert (config.heads, config.kv_heads) == ((2, 2) if "heads" in new else (2, 1))
    shapes = jax.eval_shape(llama.module(config).init, jax.random.key(0), IDS)["params"]
    assert jax.tree.map(jnp.shape, smaller.params) == jax.tree.map(lambda s: s.shape, shapes)
    assert jm.nbytes(smaller.params) < jm.nbytes(model().params)
    assert distance(smaller) < distance_without(new)


def distance_without(new):
    """The last heads cut off, and nothing adapted."""
    config = jm.remove_heads(model(), fed(), **new).config
    params = jax.tree.map(lambda x: x, model().params)
    attn, dim = params["layers"]["attn"], config.head_dim
    first = [0, 2] if "heads" in new else [0, 1]  # query heads that stay
    cut = lambda w, heads: w.reshape(*w.shape[:-1], -1, dim)[..., heads, :].reshape(
        *w.shape[:-1], -1
    )
    attn["q"] = {"kernel": cut(attn["q"]["kernel"], first)}
    for name in ("k", "v"):
        attn[name] = {"kernel": cut(attn[name]["kernel"], list(range(config.kv_heads)))}
    attn["out"] = {"kernel": cut(attn["out"]["kernel"].mT, first).mT}
    return distance(jm.models.Model(config, params, None, "cut"))


def test_a_dead_head_and_dead_neurons_go_first_at_no_cost():
    whole = model()
    params = jax.tree.map(lambda x: x, whole.params)
    out = params["layers"]["attn"]["out"]["kernel"].reshape(2, 4, 8, 32)
    out = out.at[:, 1].set(0.0).at[:, 2].set(0.0)  # one in each group
    params["layers"]["attn"]["out"] = {"kernel": out.reshape(2, 32, 32)}
    down = params["layers"]["mlp"]["down"]["kernel"].at[:, 5:9].set(0.0)
    params["layers"]["mlp"]["down"] = {"kernel": down}
    whole = jm.models.Model(whole.config, params, None, "with dead parts")
    stats = jm.stats(whole.apply, params, [(IDS,)])
    smaller = jm.remove_neurons(jm.remove_heads(whole, stats, heads=2), 44, stats)
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
    smaller = jm.remove_width(whole, 24, jm.stats(whole.apply, params, [(IDS,)]))
    shapes = jax.eval_shape(llama.module(smaller.config).init, jax.random.key(0), IDS)["params"]
    assert jax.tree.map(jnp.shape, smaller.params) == jax.tree.map(lambda s: s.shape, shapes)
    run = lambda m: jit(m.apply)(m.params, IDS)
    np.testing.assert_allclose(run(smaller), run(whole), atol=2e-3, rtol=2e-3)


def test_a_smaller_model_is_saved_and_loaded(tmp_path):
    smaller = jm.remove_neurons(model(), 36, fed())
    smaller.save(tmp_path / "m")
    again = jm.models.load(tmp_path / "m")
    assert again.config == smaller.config
    jax.tree.map(np.testing.assert_array_equal, again.params, smaller.params)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: jm.remove_neurons(model(), 48, fed()), "48 neurons are to stay of 48"),
        (lambda: jm.remove_neurons(model(), 0, fed()), "expected at least 1"),
        (lambda: jm.remove_neurons(model(), 9, {}), "for layers/mlp/down/kernel"),
        (lambda: jm.remove_heads(model(), fed()), "give heads or kv_heads"),
        (lambda: jm.remove_heads(model(), fed(), heads=3), "multiple of 2 groups"),
        (lambda: jm.remove_heads(model(), fed(), heads=0), "multiple of 2 groups"),
        (lambda: jm.remove_heads(model(), fed(), kv_heads=2), "2 of 2 groups"),
        (lambda: jm.remove_heads(model(bert), fed(bert), heads=2), "llama family, got bert"),
        (lambda: jm.remove_layers(model(), []), "expected some of them"),
        (lambda: jm.remove_layers(model(), [0, 0]), "once"),
        (lambda: jm.remove_layers(model(), [0, 7]), "of 2"),
        (lambda: jm.least_missed(model(), 2, IDS), "2 of 2 layers"),
        (lambda: jm.remove_width(model(), 32, fed()), "a width of 32"),
        (lambda: jm.remove_width(model(gpt2), 16, fed(gpt2)), "expected a Llama"),
    ],
)
def test_what_would_empty_a_part_or_remove_nothing_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
