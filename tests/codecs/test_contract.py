"""The laws that every codec obeys. A new codec joins CODECS and inherits them all."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from quick import jit

import jaxmem as jm
from jaxmem.codecs.sparse import Sparse
from jaxmem.io.checkpoint import load, save
from jaxmem.solvers.solver import needs_stats

CODECS = [
    *map(jm.Int, range(2, 9)),
    jm.Int(8, symmetric=False),
    jm.Int(3, group=16),
    jm.Int(4, group=16),
    jm.Int(4, group=10, symmetric=False),  # the last group is short
    jm.Cast("bfloat16"),
    jm.Cast("float16"),
    jm.LowRank(4),
    jm.Chain((jm.LowRank(4), jm.Int(8))),
    *map(jm.Float, ("e4m3", "e5m2", "mxfp8", "mxfp4", "nvfp4")),
    jm.Float("e2m1", group=10),
    jm.Codebook("nf4"),
    jm.Codebook("fp4", group=16),
    jm.KMeans(3),
    jm.KMeans(2, group=16),
    jm.Affine(4, group=16),
    jm.Affine(3, group=10),
    jm.DoubleQuant(jm.Codebook("nf4", group=8), jm.Int(8, group=16, symmetric=False)),
    jm.DoubleQuant(jm.Affine(4, group=8)),
    jm.Planes(group=16),
    jm.Sum((jm.Int(4), jm.LowRank(4))),
    jm.Search(jm.Int(4, group=10, symmetric=False)),
    jm.QERA(jm.Int(3), 2),
    jm.Smooth(jm.Int(4, group=16)),
    jm.Bitmask(0.5),
    jm.NM(2, 4),
    jm.NM(4, 8),
    jm.Blocks(0.5, block=(8, 8)),
    jm.Inputs(0.5, size=4),
    jm.Outputs(0.5),
    jm.Csr(0.1),
    jm.Coo(0.02),
    jm.Chain((jm.Bitmask(0.3), jm.Int(8))),
    jm.Chain((jm.NM(2, 4), jm.Int(4, group=6))),
    jm.Permute(jm.NM(2, 4)),
]
KINDS = list({type(codec): codec for codec in CODECS}.values())  # one of each, for laws of shape
KEEPS = [codec for codec in CODECS if isinstance(codec, Sparse)]
first = lambda codec: getattr(codec, "codecs", [codec])[0]
SPARSE = [c for c in CODECS if c in KEEPS or isinstance(first(c), Sparse | jm.Permute)]
KINDS_THAT_ROUND = jm.Int | jm.Affine | jm.Cast | jm.Float | jm.Codebook
ROUNDS = [codec for codec in CODECS if isinstance(codec, KINDS_THAT_ROUND)]
COARSE = {jm.Float("mxfp4"): 0.25, jm.Float("nvfp4"): 2e-2}  # 2.5 lies between their numbers
TOLERANCE = {"float32": dict(rtol=1e-5, atol=3e-5), "bfloat16": dict(rtol=2e-2, atol=1e-1)}
FORMS = {
    "f32": (jnp.float32, (32, 24)),
    "bf16 stacked": (jnp.bfloat16, (3, 32, 24)),
    "bf16": (jnp.bfloat16, (32, 24)),
    "f32 stacked": (jnp.float32, (3, 32, 24)),
}

IDS = np.array([[3, 1, 4], [1, 5, 9]])

each_codec = pytest.mark.parametrize("codec", CODECS, ids=str)
each_kind = pytest.mark.parametrize("codec", KINDS, ids=lambda c: type(c).__name__)
quick = lambda codec, form: form == "f32" or (form == "bf16 stacked" and codec in KINDS)
each_pair = pytest.mark.parametrize(
    "codec, form",
    [
        pytest.param(c, f, marks=[] if quick(c, f) else pytest.mark.slow, id=f"{c}-{f}")
        for c in CODECS
        for f in FORMS
    ],
)


@functools.cache
def weight(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@functools.cache
def encoder(codec, axes=(-2,)):
    return jit(lambda w: codec.encode(w, axes))


@functools.cache
def encoded(codec, form="f32"):
    dtype, shape = FORMS[form]
    return encoder(codec)(weight(*shape).astype(dtype))


@functools.cache
def compiled_decode(codec, form="f32"):
    """The program that decodes to f32."""
    leaf = encoded(codec, form)
    return jit(lambda leaf: leaf.astype(jnp.float32).decode()).lower(leaf).compile()


def decoded(codec, form="f32"):
    return compiled_decode(codec, form)(encoded(codec, form))


def assert_close(got, want):
    got, want = jnp.asarray(got), jnp.asarray(want)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    np.testing.assert_allclose(
        got.astype(jnp.float32), want.astype(jnp.float32), **TOLERANCE[str(want.dtype)]
    )


def assert_lifts(fn, *args, on_decode="error"):
    """`fn` lifted gives what it gives on the decoded arguments; one program, quick to compile."""
    both = lambda *args: (jm.lift(fn, on_decode=on_decode)(*args), fn(*jm.decode(args)))
    got, want = jit(both)(*args)
    jax.tree.map(assert_close, got, want)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def half_a_step(leaf, w):
    """Int: |w − decode| ≤ scale/2, or with a zero point scale · (1/2 + 2^(bits−10))."""
    scale = jnp.repeat(leaf.scale.mT.astype(jnp.float32), leaf.group, -1)
    scale = leaf.fold.unfold(scale[..., : leaf.fold.k])
    limit = scale * (0.5 if leaf.zero is None else 0.5 + 2.0 ** (leaf.bits - 10))
    return jnp.abs(w - leaf.decode()), limit + 1e-6 * jnp.abs(w)  # decode is one f32 product


def half_a_unit(leaf, w):
    """Cast: half a unit in the last place, |w| · 2^-8 (bfloat16), 2^-11 (float16, or 2^-25)."""
    kind = jnp.finfo(leaf.values.dtype)
    least = 2.0**-25 if kind.dtype == jnp.float16 else 0.0
    return jnp.abs(w - leaf.decode()), jnp.maximum(jnp.abs(w) * 2.0 ** -(kind.nmant + 1), least)


def next_singular_value(leaf, w):
    """LowRank: no matrix of the rank is nearer in the spectral norm."""
    sizes = lambda matrix: jnp.linalg.svd(matrix, compute_uv=False)
    return sizes(w - leaf.decode())[0], sizes(w)[leaf.v.shape[-2]] * (1 + 1e-4)


def for_each_weight(leaf, groups):
    """One number a group (*stack, groups, n), beside each weight."""
    wide = jnp.repeat(groups.mT.astype(jnp.float32), leaf.group, -1)
    return leaf.fold.unfold(wide[..., : leaf.fold.k])


def half_a_float(leaf, w):
    """Float: max(|w| · 2^−(f+1), scale · 2^(e−f−1)); |w| · 2^−3 where mxfp8 clips."""
    kinds = {"e5m2": (2, -14), "e2m1": (1, 0), "mxfp4": (1, 0), "nvfp4": (1, 0)}
    fraction, least = kinds.get(leaf.format, (3, -6))
    relative = 2.0**-3 if leaf.format == "mxfp8" else 2.0 ** -(fraction + 1)
    least = for_each_weight(leaf, leaf.scales()) * 2.0 ** (least - fraction - 1)
    return jnp.abs(w - leaf.decode()), jnp.maximum(jnp.abs(w) * relative, least) * (1 + 1e-6)


def half_a_gap(leaf, w):
    """Codebook: scale times half the widest gap between levels."""
    gap = {"nf4": 0.152, "fp4": 1 / 6}[leaf.levels]
    return jnp.abs(w - leaf.decode()), for_each_weight(leaf, leaf.scale) * gap * (1 + 1e-6)


def half_a_cell(leaf, w):
    """Planes: Δ · 2^(8−bits)/2, and |a| · 2^-11, for every number of bits."""
    error = [jnp.abs(w - jm.at_bits(leaf, b).decode()) * 2.0 ** (b - 8) for b in range(2, 9)]
    slack = jnp.abs(for_each_weight(leaf, leaf.low)) * 2.0**-11 + 2.0**-24
    return jnp.stack(error), (for_each_weight(leaf, leaf.step) / 2 + slack)[None] * (1 + 1e-6)


def half_a_step_and_an_end(leaf, w):
    """Affine: step · (1/2 + 2^(bits−11)) + |low| · 2^-11, and 2^-24."""
    step, low = for_each_weight(leaf, leaf.scale), for_each_weight(leaf, leaf.low)
    limit = step * (0.5 + 2.0 ** (leaf.bits - 11)) + jnp.abs(low) * 2.0**-11 + 2.0**-24
    return jnp.abs(w - leaf.decode()), limit + 1e-6 * jnp.abs(w)


def equal_cells(leaf, w):
    """KMeans: the root mean square is within half of one of 2^bits equal cells, and f16's error."""
    cut = lambda w: w.reshape(-1, leaf.group, w.shape[-1])
    rms = lambda x: jnp.sqrt((cut(x) ** 2).mean(1))
    limit = (cut(w).max(1) - cut(w).min(1)) / 2 ** (leaf.bits + 1)
    return rms(w - leaf.decode()), limit + jnp.abs(cut(w)).max(1) * 2.0**-11 + 2.0**-24


def the_least_kept(leaf, w):
    """Sparse: what is kept is exact, and nothing larger in its row (group, block) is dropped."""
    got, size = leaf.decode(), jnp.abs(w)
    rows = w.size if hasattr(leaf, "column") else getattr(leaf, "m", w.shape[0])
    cut = lambda a: a.T.reshape(-1, rows)
    least = cut(jnp.where(got != 0, size, jnp.inf)).min(1, keepdims=True)
    limit = jnp.broadcast_to(least, cut(w).shape).reshape(w.T.shape).T
    return jnp.abs(w - got), jnp.where(got != 0, 0, limit)


BOUNDS = {
    jm.Int: half_a_step,
    jm.Cast: half_a_unit,
    jm.LowRank: next_singular_value,
    jm.Float: half_a_float,
    jm.Codebook: half_a_gap,
    jm.Planes: half_a_cell,
    jm.KMeans: equal_cells,
    jm.Affine: half_a_step_and_an_end,
    jm.Bitmask: the_least_kept,
    jm.NM: the_least_kept,
    jm.Csr: the_least_kept,
    jm.Coo: the_least_kept,
}


@each_pair
def test_stands_for_the_array_with_fewer_bytes(codec, form):
    dtype, shape = FORMS[form]
    w = jax.ShapeDtypeStruct(shape, dtype)
    leaf = jax.eval_shape(codec.encode, w)
    dense = jax.eval_shape(lambda leaf: leaf.decode(), leaf)
    for x in (leaf, dense):
        assert (x.shape, x.dtype, x.ndim, x.size) == (w.shape, w.dtype, w.ndim, w.size)
    assert leaf.stack[: len(shape) - 2] == shape[:-2]
    assert jm.nbytes(leaf) < w.size * 4
    assert jm.nbytes(leaf) < jm.nbytes(w) or isinstance(codec, jm.Cast)


@each_pair
def test_bytes_are_predicted_from_shapes_and_are_what_the_executable_takes(codec, form):
    dtype, shape = FORMS[form]
    abstract = jax.eval_shape(codec.encode, jax.ShapeDtypeStruct(shape, dtype))
    leaf = encoded(codec, form)
    assert jax.tree.structure(leaf) == jax.tree.structure(abstract)
    memory = compiled_decode(codec, form).memory_analysis()
    assert jm.nbytes(abstract) == jm.nbytes(leaf) == memory.argument_size_in_bytes


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
@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("n", [1040, 2050])  # tiles of 520, and of 1,024 with 2 left
def test_dot_works_some_rows_of_the_matrix_at_a_time(codec, rows, n):
    assert_lifts(jnp.matmul, weight(rows, 24, seed=1), encoder(codec)(weight(24, n)))


@pytest.mark.parametrize("codec", [c for c in KINDS if not isinstance(c, jm.Cast)], ids=str)
@pytest.mark.parametrize("n", [4096, 4099])
def test_a_long_weight_is_never_dense(codec, n):
    w = jax.eval_shape(codec.encode, jax.ShapeDtypeStruct((512, n), jnp.float32))
    x = jax.ShapeDtypeStruct((40, 512), jnp.float32)
    program = jit(jm.lift(jnp.matmul, on_decode="error")).lower(x, w).compile()
    assert program.memory_analysis().temp_size_in_bytes < w.size * 4 / 2


@each_codec
def test_a_stack_is_a_stack_of_encoded(codec):
    for i, layer in enumerate(weight(3, 32, 24)):
        here = jax.tree.map(lambda a: a[i], encoded(codec, "f32 stacked"))  # noqa: B023
        apart = encoder(codec)(layer)
        assert (here.shape, jm.nbytes(here)) == (apart.shape, jm.nbytes(apart))
        assert jax.tree.structure(here) == jax.tree.structure(apart)
        near = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
        jax.tree.map(near, here, apart)


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


@each_codec
def test_survives_save_and_load_without_a_template(codec, tmp_path):
    tree = {"layers": [encoded(codec, form) for form in ("f32", "bf16 stacked")]}
    save(tmp_path / "w.jm", tree)
    assert_same(load(tmp_path / "w.jm"), tree)
    size = (tmp_path / "w.jm").stat().st_size
    assert size <= jm.nbytes(tree) + 1024 * (1 + len(jax.tree.leaves(tree)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        h = nn.silu(nn.Dense(24, name="up")(x)).reshape(*x.shape[:-1], 4, 6)
        return x + nn.DenseGeneral(16, (-2, -1), name="down")(h), None


class Linen(nn.Module):
    """Looked-up rows, a block, a head tied to the table."""

    @nn.compact
    def __call__(self, ids):
        table = nn.Embed(20, 16, name="table")
        return table.attend(Block(name="block")(table(ids))[0])


class Twin(nnx.Module):
    """What `Linen` is, in NNX."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.table = nnx.Embed(20, 16, rngs=rngs)
        self.up = nnx.Linear(16, 24, rngs=rngs)
        self.down = nnx.LinearGeneral((4, 6), 16, axis=(-2, -1), rngs=rngs)

    def __call__(self, ids):
        x = self.table(ids)
        return self.table.attend(x + self.down(nnx.silu(self.up(x)).reshape(*x.shape[:-1], 4, 6)))


def plain(params, ids):
    x = params["table"]["kernel"][ids]
    h = jax.nn.silu(x @ params["up"]["kernel"]).reshape(*x.shape[:-1], 4, 6)
    x = x + jnp.einsum("...hk,hkd->...d", h, params["down"]["kernel"])
    return x @ params["table"]["kernel"].T


@functools.cache
def model(name):
    """(function of params and ids, params): one network in three frameworks."""
    if name == "linen":
        return Linen().apply, Linen().init(jax.random.key(0), IDS)
    if name == "module":
        return lambda module, ids: module(ids), Twin()
    if name == "state":
        graph, state = nnx.split(Twin())
        return lambda state, ids: nnx.merge(graph, state)(ids), state
    shapes = {"table": (20, 16), "up": (16, 24), "down": (4, 6, 16)}
    return plain, {name: {"kernel": weight(*shape) / 4} for name, shape in shapes.items()}


@each_kind
@pytest.mark.parametrize("name", ["linen", "state", "module", "plain"])
def test_an_unmodified_model_runs_on_it(codec, name):
    fn, params = model(name)
    plan = jm.choose(params, {".*(kernel|embedding)": codec})
    fed = jm.stats(fn, params, [(IDS,)]) if needs_stats(codec) else None
    enc = jm.encode(params, plan, jm.uses(fn, params, IDS), fed)
    assert len(plan) == 3 and jm.nbytes(enc) < jm.nbytes(params)
    assert_lifts(fn, enc, IDS)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(x.at[:, :24].add(nn.Dense(24)(x))), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes = dict(variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.scan(nn.remat(Layer), **axes)(name="layers")(x, None)[0]


@each_codec
def test_an_unmodified_model_runs_on_it_under_scan_and_remat(codec):
    kernel, bias = encoded(codec, "f32 stacked"), jnp.zeros((3, 24))
    params = {"params": {"layers": {"Dense_0": {"kernel": kernel, "bias": bias}}}}
    assert_lifts(Stack().apply, params, weight(5, 32, seed=1))


@each_codec
def test_gradients_reach_the_input_and_the_floats_inside(codec):
    x, leaf = weight(5, 32, seed=1), encoded(codec)
    loss = lambda x, w: (jnp.tanh(x @ w) ** 2).sum()
    dense = lambda x, leaf: loss(x, leaf.decode())
    slopes = [jax.grad(fn, (0, 1), allow_int=True) for fn in (jm.lift(loss), dense)]
    got, want = jit(lambda *args: [slope(*args) for slope in slopes])(x, leaf)
    assert_close(got[0], want[0])
    floats = lambda tree: [g for g in jax.tree.leaves(tree) if g.dtype != jax.dtypes.float0]
    assert floats(got[1]) or getattr(codec, "format", "").startswith("mx")  # no float inside
    for a, b in zip(floats(got[1]), floats(want[1]), strict=True):
        np.testing.assert_allclose(a.astype("f4"), b.astype("f4"), rtol=1e-2, atol=1e-3)


@each_kind
def test_tangents_pass_through(codec):
    x, leaf = weight(5, 32, seed=1), encoded(codec)
    got = jit(lambda x, w: jax.jvp(lambda x: jm.lift(jnp.dot)(x, w), (x,), (jnp.sin(x),)))(x, leaf)
    assert_close(got[0], x @ decoded(codec))
    assert_close(got[1], jnp.sin(x) @ decoded(codec))


@each_kind
def test_the_backward_pass_keeps_the_encoded_weight(codec):
    x, leaf = weight(1, 32, seed=1), encoded(codec)
    vjp = lambda x, w: jax.vjp(lambda x: jm.lift(jnp.dot)(x, w), x)[1]
    kept = jax.tree.leaves(jax.eval_shape(vjp, x, leaf))
    assert all(r.size < leaf.size or r.dtype.itemsize < leaf.dtype.itemsize for r in kept)


@each_kind
def test_sharded_gives_what_unsharded_gives(codec):
    mesh = Mesh(jax.devices(), "d")
    across = lambda a: P(*[None] * (a.ndim - 1), None if a.shape[-1] % 8 else "d")
    put = lambda a: jax.device_put(a, NamedSharding(mesh, across(a)))
    leaf, x = encoder(codec)(weight(2, 48, 16)), weight(8, 48, seed=1)
    fn = jit(jm.lift(lambda x, w: jnp.einsum("bk,lkn->lbn", x, w)))
    for weights in (jax.tree.map(put, leaf), leaf):
        assert_close(fn(jax.device_put(x, NamedSharding(mesh, P("d"))), weights), fn(x, leaf))


@each_kind
@pytest.mark.parametrize("axis, parts", [(0, 3), (1, 2), (2, 3)])
def test_a_part_decodes_to_a_slice_of_what_the_whole_does(codec, axis, parts):
    leaf = encoded(codec, "f32 stacked")
    shapes = leaf.shard_shape(axis, parts)
    if shapes is NotImplemented and codec in SPARSE:  # columns or rows that keep other numbers
        rows = isinstance(codec, jm.Coo | jm.Outputs) and axis == 2
        assert (axis == 1 and not isinstance(codec, jm.NM | jm.Outputs)) or rows
        return
    if shapes is NotImplemented:  # half of groups of 10; outputs that share a scale of scales
        assert axis == (2 if isinstance(codec, jm.DoubleQuant) else 1)
        assert isinstance(codec, jm.DoubleQuant) or "group=10" in str(codec)
        return
    assert shapes.shape == tuple(n // (parts if i == axis else 1) for i, n in enumerate(leaf.shape))
    last = lambda a, part: a[tuple(slice(m - n, m) for m, n in zip(a.shape, part.shape))]
    arrays = map(last, jax.tree.leaves(leaf), jax.tree.leaves(shapes))
    piece = jax.tree.structure(shapes).unflatten(arrays)
    want = jnp.split(decoded(codec, "f32 stacked"), parts, axis)[-1]
    assert_close(jit(lambda piece: piece.decode())(piece), want)


@pytest.mark.parametrize("codec", [*ROUNDS, *KEEPS], ids=str)
@pytest.mark.parametrize("form", ["f32", pytest.param("bf16 stacked", marks=pytest.mark.slow)])
def test_encoding_again_changes_nothing(codec, form):
    leaf = encoded(codec, form)
    assert_same(encoder(codec)(decoded(codec, form)), leaf.astype(jnp.float32))


@pytest.mark.parametrize("codec", [c for c in CODECS if type(c) in BOUNDS], ids=str)
def test_the_error_is_within_its_stated_bound(codec):
    error, limit = BOUNDS[type(codec)](encoded(codec), weight(32, 24))
    assert (error <= limit).all()


@functools.cache
def error_and_bound(codec):
    return jit(lambda w: BOUNDS[type(codec)](codec.encode(w), w))


@settings(max_examples=10, deadline=None)
@given(
    codec=st.sampled_from(ROUNDS),
    shape=st.tuples(*[st.integers(1, 21)] * 2),
    size=st.sampled_from([1e-8, 1e-5, 0.02, 1.0, 30.0]),
    kind=st.sampled_from(["normal", "constant", "one big", "positive"]),
)
def test_any_weight_is_within_the_bound(codec, shape, size, kind):
    w = np.asarray(weight(21, 21))[: shape[0], : shape[1]] * np.float32(size)
    if kind == "one big":
        w[0, 0] = 1000 * size
    elif kind != "normal":
        w = np.abs(w) + np.float32(size) if kind == "positive" else np.full_like(w, -size)
    error, limit = error_and_bound(codec)(w)
    assert (error <= limit).all()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 16, 16)])
@pytest.mark.parametrize("codec", [jm.Int(3), jm.Int(4, group=10, symmetric=False)], ids=str)
def test_empty_weights_are_weights(codec, shape):
    leaf = encoder(codec)(jnp.zeros(shape))
    assert leaf.shape == shape
    assert_lifts(jnp.matmul, jnp.ones((3, shape[-2])), leaf)


@pytest.mark.parametrize("codec", [c for c in CODECS if c not in SPARSE], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
def test_a_constant_weight_is_exact_or_as_near_as_its_floats(codec, value):
    got = compiled_decode(codec)(encoder(codec)(jnp.full((32, 24), value)))
    coarse = 2e-2 if isinstance(codec, jm.Chain) else COARSE.get(codec, 1e-3)
    np.testing.assert_allclose(got, value, rtol=coarse)


@each_kind
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_its_path(codec, value):
    params = {"mlp": {"kernel": weight(32, 24).at[3, 4].set(value)}}
    with pytest.raises(ValueError, match=r"mlp/kernel.*NaN or infinity"):
        jm.encode(params, {"mlp/kernel": codec})


@each_codec
def test_a_large_weight_is_as_near_or_refused_and_a_small_one_no_further_than_zero(codec):
    w = np.asarray(weight(32, 24), np.float64)

    def error(size):
        leaf = encoder(codec)(jnp.asarray(w * size, jnp.float32))
        floats = [a for a in jax.tree.leaves(leaf) if jnp.issubdtype(a.dtype, jnp.floating)]
        if not all(np.isfinite(a).all() for a in jax.device_get(floats)):
            return None  # `jm.encode` refuses it
        return np.linalg.norm(compiled_decode(codec)(leaf) / size - w) / np.linalg.norm(w)

    usual, small, *large = map(error, (1.0, 2.0**-30, 2.0**20, 2.0**50))
    assert small <= 1.0 and all(e is None or e <= 1.01 * usual for e in large)


@each_kind
def test_rows_are_looked_up(codec):
    leaf, ids = encoder(codec, (-1,))(weight(40, 16)), jnp.array([[39, 0], [7, 7]])
    assert_lifts(lambda w: [w[ids], w.astype(jnp.bfloat16)[ids]], leaf)


@each_kind
def test_transpose_and_reshape_move_no_weight(codec):
    leaf = encoder(codec, (-3,))(weight(2, 24, 3, 8))
    w = leaf.decode()
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
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(half), jax.tree.leaves(leaf))
    assert_same(half.astype(jnp.float32), leaf)


@each_kind
def test_a_leaf_outside_lift_fails_loudly(codec):
    for use in (jnp.asarray, jnp.sin, lambda w: w + 1, lambda w: jnp.ones((5, 32)) @ w):
        with pytest.raises(TypeError):
            use(encoded(codec))
