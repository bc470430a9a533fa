"""Laws that every leaf obeys: products, stacks, files, shards, look-ups, transposes and dtypes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cheap_jit import jit
from contract_codecs import (
    FORMS,
    KINDS,
    SPARSE,
    assert_close,
    assert_lifts,
    assert_same,
    decoded,
    each_codec,
    each_kind,
    each_pair,
    encoded,
    encoder,
    weight,
)
from flax import linen as nn
from flax import nnx, serialization
from jax import export, lax

import jaxmem as jm
from jaxmem.io.checkpoint import load, save


@each_pair
def test_dot_is_dot_of_decode(codec, form):
    x = weight(5, 32, seed=1).astype(FORMS[form][0])
    assert_lifts(lambda x, w: jnp.einsum("bk,...kn->...bn", x, w), x, encoded(codec, form))


@each_kind
def test_dot_works_on_either_side_over_any_axes_and_along_a_batch(codec):
    def products(w, out, x):
        yield jnp.einsum("lkhn,bk->lnhb", w, x)  # the stack is free
        yield jnp.einsum("lbk,lkhn->lbhn", jnp.stack([x, -x]), w)  # it is a batch
        yield jnp.einsum("bhk,hkn->bn", x.reshape(5, 4, 6), out)  # two axes are summed

    w = encoder(codec, (-3,))(weight(2, 24, 3, 8))
    out = encoder(codec, (0, 1))(weight(4, 6, 10))
    assert_lifts(lambda *args: list(products(*args)), w, out, weight(5, 24, seed=1))


@each_kind
@pytest.mark.parametrize("n", [1040, 2050])  # tiles of 520, and of 1,024 with 2 left
def test_dot_works_some_rows_of_the_matrix_at_a_time(codec, n):
    inputs = [weight(rows, 24, seed=1) for rows in (2, 40)]  # few rows, and many
    assert_lifts(lambda xs, w: [x @ w for x in xs], inputs, encoder(codec)(weight(24, n)))


@each_codec
def test_a_stack_is_a_stack_of_encoded(codec):
    stack = jax.device_get(encoded(codec, "f32 stacked"))
    for i, layer in enumerate(np.asarray(weight(3, 32, 24))):
        sliced = jax.tree.map(lambda a: a[i], stack)  # noqa: B023
        alone = encoder(codec)(layer)
        assert (sliced.shape, jm.nbytes(sliced)) == (alone.shape, jm.nbytes(alone))
        assert jax.tree.structure(sliced) == jax.tree.structure(alone)
        near = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
        jax.tree.map(near, sliced, alone)


@each_kind
def test_a_stack_is_encoded_mapped_and_scanned_over(codec):
    w, x, leaf = weight(3, 32, 24), weight(5, 32, seed=1), encoded(codec, "f32 stacked")
    dot = jm.lift(jnp.matmul, on_decode="error")

    @jit
    def run(w, x, leaf):
        yields = lax.scan(lambda x, w: (x, dot(x, w)), x, leaf)[1]
        return jax.vmap(codec.encode)(w), jax.vmap(dot, (None, 0))(x, leaf), yields

    again, mapped, scanned = run(w, x, leaf)
    assert jax.tree.structure(again) == jax.tree.structure(leaf)
    for y in (mapped, scanned, jnp.matmul(x, jit(jm.decode)(again))):
        assert_close(y, jnp.matmul(x, decoded(codec, "f32 stacked")))


@pytest.mark.parametrize("codec", [*KINDS, jm.Int(8), jm.Fake(jm.Int(4))], ids=str)
def test_second_derivatives_through_layers_are_those_of_the_decoded_weight(codec):
    x, vs = weight(2, 32, seed=1), weight(2, 2, 32, seed=2)

    def products_with_hessian(loss):
        if isinstance(codec, jm.Int):
            return jax.grad(lambda x: (jax.grad(loss)(x) * vs[0]).sum())(x)
        return jax.vmap(lambda v: jax.jvp(jax.grad(loss), (x,), (v,))[1])(vs)  # as jax.hessian

    body = lambda x, w: (x + jnp.tanh(x / 32 @ w).sum(-1, keepdims=True), None)
    loss = lambda body, w: lambda x: (lax.scan(body, x, w)[0] ** 2).mean()
    lifted = jax.checkpoint(jm.lift(body, on_decode="error"))
    both = lambda w: [
        products_with_hessian(loss(*model)) for model in ((lifted, w), (body, jm.decode(w)))
    ]
    assert_close(*jit(both)(encoded(codec, "f32 stacked")))


@each_kind
def test_layers_stacked_along_another_axis_are_scanned_over_without_decoding_the_stack(codec):
    apart = lambda w, x: lax.scan(lambda x, w: (x, x @ w), x, jnp.moveaxis(w, 1, 0))[1]
    assert_lifts(apart, encoder(codec, (-3,))(weight(24, 3, 8)), weight(5, 24, seed=1))


@each_codec
def test_survives_save_and_load_without_a_template(codec, tmp_path):
    tree = {"layers": [encoded(codec, form) for form in ("f32", "bf16 stacked")]}
    save(tmp_path / "w.jm", tree)
    assert_same(load(tmp_path / "w.jm"), tree)
    size = (tmp_path / "w.jm").stat().st_size
    assert size <= jm.nbytes(tree) + 1024 * (1 + len(jax.tree.leaves(tree)))


@each_kind
def test_a_lifted_function_of_a_symbolic_batch_is_exported(codec):
    leaf, x = encoded(codec), jax.ShapeDtypeStruct(export.symbolic_shape("batch, 32"), jnp.float32)
    program = export.export(jax.jit(jm.lift(jnp.matmul)))(x, leaf)
    again = export.deserialize(program.serialize())
    assert again.in_tree == program.in_tree == jax.tree.structure(((x, leaf), {}))
    if codec in (jm.Int(8), jm.Int(4, group=10, symmetric=False)):  # each call compiles
        assert_close(again.call(weight(5, 32), leaf), weight(5, 32) @ decoded(codec))


@each_codec
def test_survives_the_serialization_of_flax(codec):
    leaf = encoded(codec, "bf16 stacked")
    zeros = jax.tree.map(lambda a: jnp.asarray(np.zeros(a.shape, a.dtype)), leaf)
    tree, empty = {"w": [leaf]}, {"w": [zeros]}
    assert_same(serialization.from_bytes(empty, serialization.to_bytes(tree)), tree)


def test_a_state_of_flax_that_is_encoded_otherwise_is_refused():
    state = serialization.to_bytes(encoded(jm.Int(4)))
    for codec, form, says in (
        (jm.Int(8), "f32", "same plan"),
        (jm.Int(4), "f32 stacked", "shapes"),
    ):
        with pytest.raises(ValueError, match=says):
            serialization.from_bytes(encoded(codec, form), state)


@each_kind
@pytest.mark.parametrize("axis, parts", [(0, 3), (1, 2), (2, 3)])
def test_a_part_decodes_to_a_slice_of_what_the_whole_does(codec, axis, parts):
    leaf = encoded(codec, "f32 stacked")
    shapes = leaf.shard_shape(axis, parts)
    if shapes is NotImplemented and codec in SPARSE:  # its shards keep different numbers of weights
        rows = isinstance(codec, jm.Coo | jm.Outputs) and axis == 2
        assert (axis == 1 and not isinstance(codec, jm.NM | jm.Outputs)) or rows
        return
    if shapes is NotImplemented:  # a shard would split a group of 10, or a group of scales
        assert axis == (2 if isinstance(codec, jm.DoubleQuant) else 1)
        assert isinstance(codec, jm.DoubleQuant) or "group=10" in str(codec)
        return
    assert shapes.shape == tuple(n // (parts if i == axis else 1) for i, n in enumerate(leaf.shape))
    last = lambda a, part: a[tuple(slice(m - n, m) for m, n in zip(a.shape, part.shape))]
    arrays = map(last, jax.tree.leaves(leaf), jax.tree.leaves(shapes))
    piece = jax.tree.structure(shapes).unflatten(arrays)
    want = jnp.split(decoded(codec, "f32 stacked"), parts, axis)[-1]
    assert_close(jit(lambda piece: piece.decode())(piece), want)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 16, 16)])
@pytest.mark.parametrize("codec", [jm.Int(3), jm.Int(4, group=10, symmetric=False)], ids=str)
def test_empty_weights_are_weights(codec, shape):
    leaf = encoder(codec)(jnp.zeros(shape))
    assert leaf.shape == shape
    assert_lifts(jnp.matmul, jnp.ones((3, shape[-2])), leaf)


@each_kind
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_its_path(codec, value):
    kernel = np.array(weight(32, 24))
    kernel[3, 4] = value
    params = {"mlp": {"kernel": jnp.asarray(kernel)}}
    moments = jm.Moments(jnp.eye(32), jnp.zeros(32), jnp.ones(32), jnp.float32(32))
    stats = {"mlp/kernel": moments} if getattr(codec, "calibrated", False) else None
    with pytest.raises(ValueError, match=r"mlp/kernel.*NaN or infinity"):
        jm.encode(params, {"mlp/kernel": codec}, stats=stats)


@each_kind
def test_rows_are_looked_up(codec):
    leaf, ids = encoder(codec, (-1,))(weight(40, 16)), jnp.array([[39, 0], [7, 7]])
    assert_lifts(lambda w: [w[ids], w.astype(jnp.bfloat16)[ids]], leaf)


@each_kind
def test_transpose_and_reshape_move_no_weight(codec):
    leaf = encoder(codec, (-3,))(weight(2, 24, 3, 8))
    w = np.asarray(leaf.decode())
    for moved, want in (
        (leaf.transpose((0, 2, 3, 1)), w.transpose(0, 2, 3, 1)),
        (leaf.reshape((2, 24, 24)), w.reshape(2, 24, 24)),
        (leaf.reshape((2, 24, 24)).transpose((0, 2, 1)), w.reshape(2, 24, 24).mT),
    ):
        assert (moved.shape, jm.nbytes(moved)) == (want.shape, jm.nbytes(leaf))
        np.testing.assert_array_equal(moved.decode(), want)


@each_codec
def test_astype_changes_what_it_stands_for_and_not_what_it_holds(codec):
    leaf = encoded(codec)
    half = leaf.astype(jnp.bfloat16)
    assert half.dtype == jax.eval_shape(lambda w: w.decode(), half).dtype == jnp.bfloat16
    chex.assert_trees_all_equal(jax.tree.leaves(half), jax.tree.leaves(leaf), strict=True)
    assert_same(half.astype(jnp.float32), leaf)


def kernel_of_linen(w):
    return nn.Dense(24, use_bias=False).apply({"params": {"kernel": w}}, jnp.ones((5, 32)))


def kernel_of_nnx(w):
    linear = nnx.eval_shape(lambda: nnx.Linear(32, 24, use_bias=False, rngs=nnx.Rngs(0)))
    linear.kernel.set_value(w)
    return linear(jnp.ones((5, 32)))


OUTSIDE_LIFT = {
    "jnp.asarray": jnp.asarray,
    "np.asarray": np.asarray,
    "jnp.sin": jnp.sin,
    "np.sin": np.sin,
    "lax.dot": lambda w: lax.dot(jnp.ones((5, 32)), w),
    "w + 1": lambda w: w + 1,
    "x @ w": lambda w: jnp.ones((5, 32)) @ w,
    "w @ x": lambda w: w @ jnp.ones((24, 5)),
    "NumPy @ w": lambda w: np.ones((5, 32)) @ w,
    "w[0]": lambda w: w[0],
    "jit": lambda w: jax.jit(jnp.matmul)(jnp.ones((5, 32)), w),
    "linen": kernel_of_linen,
    "nnx": kernel_of_nnx,
}


@each_kind
def test_a_leaf_outside_lift_is_refused_with_the_cure(codec):
    leaf = encoded(codec)
    for name, use in OUTSIDE_LIFT.items():
        with pytest.raises(TypeError, match=r"jm\.lift\(fn\)\(params, .*jm\.decode\(params\)"):
            raise AssertionError(f"{name} gave {use(leaf)}")
    with pytest.raises(AttributeError, match=r"has no 'T': call the function as jm\.lift"):
        _ = leaf.T


@each_kind
@pytest.mark.parametrize("shape", [(0, 16), (16, 0), (2, 0, 16), (2, 16, 0), (0, 32, 16)])
def test_a_side_of_zero_is_encoded_or_refused_by_name(codec, shape):
    if "rank" in str(codec):
        with pytest.raises(ValueError, match=r"^w: rank \d saves nothing"):
            jm.encode({"w": jax.ShapeDtypeStruct((0, 16), jnp.float32)}, {"w": codec})
        return

    def run(params, x):
        leaf = jm.encode(params, {"w": codec})["w"]
        product = jm.lift(lambda w, x: jnp.einsum("b...k,...kn->b...n", x, w))(leaf, x)
        return leaf.decode(), product

    arrays = {"w": jnp.zeros(shape)}, jnp.zeros((3, *shape[:-2], shape[-2]))
    decoded, product = jax.eval_shape(run, *arrays)
    assert decoded.shape == shape and product.shape == (3, *shape[:-2], shape[-1])


AVERAGES = {
    "tree.map": lambda a, b: jax.tree.map(lambda x, y: 0.9 * x + 0.1 * y, a, b),
    "optax": lambda a, b: optax.incremental_update(b, a, 0.1),
}


@each_kind
@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
def test_codes_that_were_averaged_as_if_they_were_weights_are_refused(codec, average):
    leaf = encoded(codec)
    if not any(jnp.issubdtype(x.dtype, jnp.integer) for x in jax.tree.leaves(leaf)):
        return  # floats alone can be averaged, as far as a leaf can tell
    with jax.numpy_dtype_promotion("standard"):
        ema = jax.eval_shape(average, {"w": leaf}, {"w": leaf})
    for use in (jm.decode, jm.lift(lambda params: jnp.ones((5, 32)) @ params["w"])):
        with pytest.raises(TypeError, match=r"expected integers: codes were averaged.*jm\.decode"):
            jax.eval_shape(use, ema)
