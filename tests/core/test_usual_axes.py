"""A weight's summed axes without `uses`: told by its neighbours in the tree, or asked for."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxmem as jm
from jaxmem.architectures import bert, gpt2, llama
from jaxmem.core.usual_axes import usual_axes

INT4 = {".*kernel": jm.Int(4)}
SIZES = {"vocab": 64, "width": 32, "ffn": 48, "layers": 2, "heads": 4}
MODELS = {
    "llama": (llama, SIZES | {"kv_heads": 2, "head_dim": 8}),
    "gpt2": (gpt2, {"vocab": 64, "width": 32, "layers": 3, "heads": 4}),
    "bert": (bert, SIZES),
}


def shapes(**by_path):
    """{path: an abstract weight}; `__` stands for a slash."""
    make = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    return {path.replace("__", "/"): make(shape) for path, shape in by_path.items()}


@pytest.mark.parametrize("name", MODELS)
def test_the_bare_params_of_every_family_have_the_axes_of_their_uses(name):
    family, sizes = MODELS[name]
    module, ids = family.module(family.Config(**sizes)), jnp.ones((1, 5), int)
    params = jax.eval_shape(module.init, jax.random.key(0), ids)["params"]
    uses = jm.uses(lambda p, x: module.apply({"params": p}, x), params, ids)
    by_path = dict(zip(jm.paths(params), jax.tree.leaves(params)))
    products = {p: u.axes for p, all_uses in uses.items() for u in all_uses if u.axes}
    assert products
    assert {path: usual_axes(path, by_path) for path in products} == products


@pytest.mark.parametrize(
    "by_path, axes",
    [
        (shapes(wte=(64, 16)), (-1,)),
        (shapes(tok_embeddings=(64, 16)), (-1,)),
        (shapes(w=(64, 16)), (-2,)),
        (shapes(wq=(3, 16, 16), up=(3, 16, 48), norm=(3, 16), wte=(64, 16)), (-2,)),  # layers
        (shapes(kernel=(64, 4, 16), bias=(4, 16)), (-3,)),
        (shapes(kernel=(4, 16, 64), bias=(64,)), (-3, -2)),
        (shapes(kernel=(3, 16, 8), bias=(3, 8)), (-2,)),  # a stack of Dense
        (shapes(h__a__kernel=(3, 16, 8), h__norm__scale=(3, 16)), (-2,)),
        (shapes(h__a__kernel=(3, 16, 8), h__b__kernel=(3, 8, 16)), (-2,)),
        (shapes(h__a__kernel=(3, 2, 16, 8), h__b__kernel=(3, 2, 8, 16)), (-2,)),  # experts
        (shapes(h__a__kernel=(3, 64, 4, 16), h__a__bias=(3, 4, 16), h__n__scale=(3, 64)), (-3,)),
    ],
)
def test_neighbours_tell_the_axes(by_path, axes):
    assert usual_axes(next(iter(by_path)), by_path) == axes


@pytest.mark.parametrize(
    "by_path",
    [
        shapes(kernel=(64, 4, 16)),
        shapes(attn__q__kernel=(64, 4, 16), attn__out__kernel=(4, 16, 64), norm__scale=(64,)),
        shapes(conv_0__kernel=(3, 8, 16), conv_1__kernel=(3, 16, 8)),
        shapes(h__q__kernel=(3, 64, 4, 16), h__norm__scale=(3, 64)),  # layers of attention
    ],
)
def test_a_kernel_whose_axes_nothing_tells_is_refused_with_the_cure(by_path):
    params = {path: w for path, w in by_path.items() if path == next(iter(by_path))}
    calls = [
        lambda: usual_axes(next(iter(by_path)), by_path),
        lambda: jm.encode(params, jm.choose(params, INT4)),
        lambda: jm.budget(params, nbytes=10**6, candidates=[jm.Int(4)]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"kernel has the shape .* uses=jm.uses\(fn, params"):
            call()


@pytest.mark.parametrize(
    "by_path",
    [
        shapes(wq=(64, 4, 16), norm=(64,)),
        shapes(wq=(64, 4, 16), down=(256, 64)),
        shapes(wo=(4, 16, 64), wq=(64, 4, 16)),
    ],
)
def test_a_weight_whose_first_axis_may_be_a_width_is_refused_with_the_cure(by_path):
    path = next(iter(by_path))
    with pytest.raises(ValueError, match=rf"{path} has the shape .* uses=jm.uses\(fn, params"):
        jm.encode(by_path, {path: jm.Int(4)})
    assert jm.encode(by_path, {path: jm.Int(4)}, {path: []})[path].shape == by_path[path].shape


def test_uses_or_a_plan_that_carries_the_axes_are_the_cure():
    params, x = {"kernel": jax.random.normal(jax.random.key(0), (8, 2, 4))}, jnp.ones((3, 8))
    uses = jm.uses(lambda p, x: jnp.einsum("bd,dhk->bhk", x, p["kernel"]), params, x)
    plan = jm.choose(params, INT4, uses)
    by_plan, by_uses = jm.encode(params, plan), jm.encode(params, dict(plan), uses)
    assert jm.nbytes(by_plan) == jm.nbytes(by_uses) == 8 * 8 // 2 + 8 * 2
    assert jm.nbytes(jm.encode(params, jm.Plan.from_json(plan.to_json()))) == jm.nbytes(by_plan)


def test_a_pruner_masks_along_the_axes_that_encode_takes():
    params = {"kernel": jax.random.normal(jax.random.key(0), (8, 2, 4))}
    plan = jm.Plan({"kernel": jm.NM(2, 4)}, axes={"kernel": (-3,)})
    prune = jm.gradual(plan, begin=0, end=1)
    still = {"kernel": jnp.zeros((8, 2, 4))}
    state = prune.init(params)
    for _ in range(2):
        updates, state = prune.update(still, state, params)
        params = optax.apply_updates(params, updates)
    assert jnp.count_nonzero(params["kernel"]) == 32
    assert (jm.decode(jm.encode(params, plan))["kernel"] == params["kernel"]).all()


@pytest.mark.parametrize("argument", ["uses", "stats"])
def test_uses_and_stats_of_another_tree_are_refused(argument):
    params = {"layers": {"w": jnp.ones((32, 8))}}
    with pytest.raises(ValueError, match=f"{argument} names 'w', .* have 'layers/w': of another"):
        jm.encode(params, {"layers/w": jm.Int(4)}, **{argument: {"w": None}})


PLAN = {"layers/w": jm.NM(2, 4)}


def _pruned(transformation, params):
    """The updates of one step of a pruner."""
    return transformation.update(params, transformation.init(params), params)


@pytest.mark.parametrize(
    "call",
    [
        lambda params, uses: jm.errors(params, [jm.Int(4)], uses=uses),
        lambda params, uses: jm.techniques(params, uses=uses),
        lambda params, uses: jm.report(params, params, uses),
        lambda params, uses: jm.erdos_renyi(params, 0.5, ".*", uses),
        lambda params, uses: jm.together(params, 0.5, ".*", uses=uses),
        lambda params, uses: jm.gradients(lambda p: 0.0, params, [()], uses),
        lambda params, uses: _pruned(jm.gradual(PLAN, begin=0, end=1, uses=uses), params),
    ],
)
def test_every_function_that_takes_uses_refuses_those_of_another_tree(call):
    with pytest.raises(ValueError, match=r"uses names 'w', .* have 'layers/w': of another"):
        call({"layers": {"w": jnp.ones((32, 8))}}, {"w": []})
