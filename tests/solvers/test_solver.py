"""Laws of every solver: it makes its codec's leaves, for any weight and statistics, in any plan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm

INNER = [
    jm.Int(3, group=10, symmetric=False),  # the last group is short
    jm.Codebook("nf4", group=16),
    jm.Float("nvfp4"),
]
gptq_with_turns = lambda codec: jm.GPTQ(codec, turns=2)
gptq_with_turns.__name__ = "GPTQ"
SOLVERS = [jm.Search, jm.HQQ, jm.GPTQ, gptq_with_turns]
PAIRS = [(solver, inner) for solver in SOLVERS for inner in INNER]
each = pytest.mark.parametrize("solver, inner", PAIRS, ids=lambda x: getattr(x, "__name__", str(x)))
each_solver = pytest.mark.parametrize("solver", SOLVERS)


def weight(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def moments(x, *stack):
    """The moments of inputs x (rows, k), the same for each layer of a stack."""
    one_layer = jm.Moments(x.T @ x / len(x), x.mean(0), jnp.abs(x).max(0), jnp.float32(len(x)))
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (*stack, *a.shape)), one_layer)


def inputs(k, rows=100, seed=1):
    """Inputs (rows, k) with half of their energy in one direction."""
    x = np.array(weight(rows, k, seed=seed))
    return jnp.asarray(x + x[:, :1] * np.linspace(1, 2, k, dtype="f4"))


def loss(codec, w, x):
    """‖x · (w − ŵ)‖² relative to ‖x · w‖²."""
    error = w - jm.decode(codec.encode(w, stats=moments(x)))
    return float(((x @ error) ** 2).sum() / ((x @ w) ** 2).sum())


@each
def test_a_solver_leaves_the_leaf_of_its_codec_for_each_layer_of_a_stack(solver, inner):
    w, x = weight(2, 32, 24), inputs(32)
    leaf = solver(inner).encode(w, stats=moments(x, 2))
    abstract = jax.eval_shape(solver(inner).encode, w)
    plain = jax.eval_shape(inner.encode, w)
    assert jax.tree.structure(leaf) == jax.tree.structure(abstract) == jax.tree.structure(plain)
    assert jm.nbytes(leaf) == jm.nbytes(abstract) == jm.nbytes(plain)
    apart = solver(inner).encode(w[1], stats=moments(x))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda a: a[1], leaf), apart)


@each
def test_a_weight_too_large_for_its_scales_is_never_clipped(solver, inner):
    w, stats = weight(2, 32, 24), moments(inputs(32), 2)
    near, far = (solver(inner).encode(w * size, stats=stats) for size in (1.0, 2.0**40))
    if isinstance(inner, jm.Float):  # its scales are floats
        np.testing.assert_allclose(jm.decode(far) / 2.0**40, jm.decode(near), rtol=1e-5)
    else:  # `jm.encode` refuses it
        assert not jnp.isfinite(far.scale).all()


@each
@pytest.mark.parametrize("x", ["zero", "one column", "few rows", "huge"])
@pytest.mark.parametrize("w", ["zero", "normal"])
def test_any_statistic_gives_a_finite_leaf_that_is_no_worse_than_a_guess(solver, inner, w, x):
    w = weight(24, 8) * float(w == "normal")
    x = {
        "zero": jnp.zeros((5, 24)),
        "one column": jnp.zeros((5, 24)).at[:, 3].set(2.0),
        "few rows": inputs(24, rows=3),
        "huge": inputs(24) * 1e6,
    }[x]
    got = jm.decode(solver(inner).encode(w, stats=moments(x)))
    assert jnp.isfinite(got).all()
    assert jnp.abs(got - w).max() <= jnp.abs(w).max()


@each_solver
def test_any_axes_may_be_summed(solver):
    codec, x = solver(jm.Int(4, group=8)), inputs(24)
    w = weight(24, 3, 8)
    decoded = jm.decode(codec.encode(w, (0,), moments(x)))
    transposed = codec.encode(w.transpose(1, 0, 2), (1,), moments(x, 3))
    assert decoded.shape == w.shape
    np.testing.assert_allclose(decoded.transpose(1, 0, 2), jm.decode(transposed), atol=1e-5)


@each_solver
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (5, 1), (2, 0, 3)])
def test_small_and_empty_weights_are_encoded(solver, shape):
    stats = moments(jnp.ones((3, shape[-2])), *shape[:-2])
    leaf = solver(jm.Int(3, group=2)).encode(jnp.ones(shape), stats=stats)
    np.testing.assert_allclose(jm.decode(leaf), jnp.ones(shape), rtol=1e-3)


@each_solver
def test_a_solver_is_written_to_and_read_from_a_plan(solver):
    params = {"a": {"kernel": weight(24, 8)}, "bias": jnp.ones(8)}
    plan = jm.choose(params, {".*kernel": solver(jm.Int(4, group=8))})
    assert jm.Plan.from_json(plan.to_json()) == plan
    stats = {"a/kernel": moments(inputs(24))}
    leaf = jm.encode(params, plan, stats=stats)["a"]["kernel"]
    same = plan["a/kernel"].encode(params["a"]["kernel"], stats=stats["a/kernel"])
    np.testing.assert_allclose(jm.decode(leaf), jm.decode(same), rtol=1e-3, atol=1e-3)


@each_solver
@pytest.mark.parametrize("inner", [jm.Cast("bfloat16"), jm.LowRank(2), 4], ids=str)
def test_a_codec_without_scales_is_refused(solver, inner):
    expected = "a codec, such as Int" if inner == 4 else "an Int, Float or Codebook"
    with pytest.raises(TypeError, match=f"{solver.__name__} takes {expected}"):
        solver(inner)


@pytest.mark.parametrize("inner", INNER, ids=str)
def test_gptq_has_half_the_output_error_or_less(inner):
    w, x = weight(48, 24), inputs(48)
    assert loss(jm.GPTQ(inner), w, x) < loss(inner, w, x) / 2
    assert loss(jm.GPTQ(jm.Search(inner)), w, x) < loss(jm.Search(inner), w, x) / 2


@pytest.mark.parametrize("inner", [jm.KMeans(3), jm.DoubleQuant(jm.Affine(4, group=10))], ids=str)
def test_gptq_takes_levels_and_double_quantized_scales(inner):
    w, x = weight(48, 24), weight(100, 12) @ weight(12, 48, seed=2)  # correlated inputs
    assert loss(jm.GPTQ(inner, turns=1), w, x) < loss(inner, w, x) / 2


def test_a_solver_may_be_inside_or_outside_of_double_quantized_scales():
    w, x, inner = weight(48, 24), inputs(48), jm.Search(jm.Codebook("nf4", group=16))
    codecs = jm.DoubleQuant(jm.GPTQ(inner)), jm.GPTQ(jm.DoubleQuant(inner))
    one, other = (codec.encode(w, stats=moments(x)) for codec in codecs)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("inner", [*INNER, jm.Affine(3, group=10)], ids=str)
def test_turns_only_lower_the_loss(inner):
    w, x = weight(48, 24), inputs(48)
    losses = [loss(jm.GPTQ(jm.Search(inner), turns=turns), w, x) for turns in (0, 1, 4)]
    assert losses[2] <= losses[1] <= losses[0]
    assert losses[2] < 0.99 * losses[0]


def test_after_many_turns_no_single_code_can_be_improved():
    w, x, codec = weight(24, 6), inputs(24), jm.GPTQ(jm.Int(3, group=8), turns=30)
    gram = np.asarray(x, np.float64).T @ np.asarray(x, np.float64) / len(x)
    gram += 0.01 * np.diag(gram).mean() * np.eye(24)
    leaf = codec.encode(w, stats=moments(x))
    least = lambda v: np.einsum("kn,kl,ln->n", v - w, gram, v - w)
    rounded, step = np.asarray(jm.decode(leaf)), np.repeat(np.asarray(leaf.scales()), 8, 0)
    for j in range(24):
        for by in (-1, 1):
            other = rounded.copy()
            other[j] += by * step[j]
            in_range = np.abs(np.round(other[j] / step[j])) <= 3
            assert (least(other) >= least(rounded) * (1 - 1e-5))[in_range].all()


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_equals_the_textbook_loop_in_float64(act_order):
    w, x, codec = weight(24, 6), inputs(24), jm.Int(3, group=10, symmetric=False)
    rounded = jm.decode(jm.GPTQ(codec, act_order=act_order).encode(w, stats=moments(x)))
    gram = np.asarray(x, np.float64).T @ np.asarray(x, np.float64) / len(x)
    order = np.argsort(-np.diag(gram)) if act_order else np.arange(24)
    gram = gram[order][:, order] + 0.01 * np.diag(gram).mean() * np.eye(24)
    upper = np.linalg.cholesky(np.linalg.inv(gram)).T
    scale, zero = (np.asarray(a, np.float64) for a in codec.spans(w.T))
    left, want = np.asarray(w.T, np.float64), np.empty((6, 24))
    for j, column in enumerate(order):
        s, z = scale[:, column // 10], zero[:, column // 10]
        want[:, column] = (np.clip(np.round(left[:, column] / s) + z, 0, 7) - z) * s
        error = (left[:, column] - want[:, column]) / upper[j, j]
        left[:, order[j:]] -= np.outer(error, upper[j, j:])
    np.testing.assert_allclose(rounded, want.T, atol=1e-5)


def test_gptq_refuses_missing_stats_and_wrong_codecs():
    w, x = weight(24, 8), inputs(24)
    with pytest.raises(ValueError, match="GPTQ wants the stats"):
        jm.GPTQ(jm.Int(4)).encode(w)
    with pytest.raises(ValueError, match=r"^w: Sum.*wants the stats"):
        jm.encode({"w": w}, {"w": jm.Sum((jm.GPTQ(jm.Int(4)), jm.Int(4)))})
    with pytest.raises(ValueError, match=r'^w: GPTQ wants stats of moments="gram"'):
        diag = jm.stats(lambda p, x: x @ p["w"], {"w": w}, [(x,)], moments="diag")
        jm.encode({"w": w}, {"w": jm.GPTQ(jm.Int(4))}, stats=diag)
    with pytest.raises(TypeError, match="takes a dense weight"):
        jm.Chain((jm.LowRank(2), jm.GPTQ(jm.Int(4)))).encode(w)
    with pytest.raises(TypeError, match="GPTQ takes"):
        jm.GPTQ(jm.GPTQ(jm.Int(4)))
    with pytest.raises(ValueError, match="damping"):
        jm.GPTQ(jm.Int(4), damping=-1)
    with pytest.raises(ValueError, match="at least 0 turns"):
        jm.GPTQ(jm.Int(4), turns=-1)


def test_search_has_less_weighted_error_than_its_codec():
    w, x = weight(48, 24), inputs(48) * jnp.linspace(0.01, 10, 48)[None]
    energy = (x * x).mean(0)[:, None]
    for inner in INNER[:2]:
        plain, blind = jm.decode(inner.encode(w)), jm.decode(jm.Search(inner).encode(w))
        seeing = jm.decode(jm.Search(inner).encode(w, stats=moments(x)))
        square = lambda got, by=1.0: float((by * (w - got) ** 2).sum())
        assert square(blind) < square(plain)
        assert square(seeing, energy) < square(blind, energy) < square(plain, energy)


def test_search_finds_nearly_the_best_range_of_a_full_grid():
    w = weight(64, 200)
    low, high = w.min(0), w.max(0)
    codec = jm.Int(3, symmetric=False)
    best = np.inf
    for a in np.linspace(0.4, 1, 25, dtype="f4"):
        for b in np.linspace(0.4, 1, 25, dtype="f4"):
            scale, zero = codec.range(low * a, high * b)
            grid_error = ((w - codec.snap(w, scale[None], zero[None])) ** 2).sum(0)
            best = np.minimum(best, grid_error)
    error = ((w - jm.decode(jm.Search(codec).encode(w))) ** 2).sum(0)
    assert error.sum() < 1.01 * best.sum()


def test_budget_measures_a_solver_on_some_rows():
    params = {"w": weight(32, 5000), "v": weight(32, 5000, seed=1)}
    both = [jm.Search(jm.Int(b, group=16)) for b in (3, 4)]
    plan = jm.budget(params, nbytes=180_000, candidates=both, sensitivity={"w": 1.0, "v": 3.0})
    assert plan == {"w": both[0], "v": both[1]}
