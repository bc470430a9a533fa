"""A teacher's logits on disk, and the loss of them, against formulas in numpy."""

import pickle

import jax
import numpy as np
import pytest
from cheap_jit import jit
from scipy.special import log_softmax, rel_entr, softmax

import jaxmem as jm
from jaxmem.data import kept_codes

B, T, D, V, K = 2, 8, 16, 24, 5
KEYS = jax.random.split(jax.random.key(0), 4)
X, HEAD = jax.random.normal(KEYS[0], (B, T, D)), jax.random.normal(KEYS[1], (D, V)) / 2
TEACHER = jm.train.Logits(jax.random.normal(KEYS[2], (B, T, D)), jax.random.normal(KEYS[3], (D, V)))


def drawn(rows, width, k, vocabulary, seed=0):
    """Kept logits of a random teacher."""
    random = np.random.default_rng(seed)
    logs = log_softmax(3 * random.normal(size=(rows, width, vocabulary)), -1)
    ids = np.argsort(-logs, -1)[..., :k]
    values = np.take_along_axis(logs, ids, -1)
    names = ("teacher_ids", "teacher_log_probs", "teacher_rest")
    return dict(zip(names, (ids, values, 1 - np.exp(values).sum(-1))))


@pytest.mark.parametrize(("k", "vocabulary"), [(1, 2), (3, 4), (5, 1000), (64, 128_256), (7, 7)])
def test_ids_are_what_they_were(k, vocabulary):
    random = np.random.default_rng(k)
    ids = np.stack([np.sort(random.choice(vocabulary, k, replace=False)) for _ in range(9)])
    codes = kept_codes.encode_ids(ids, vocabulary)
    assert codes.shape == (9, kept_codes.id_nbytes(k, vocabulary))
    np.testing.assert_array_equal(kept_codes.decode_ids(codes, k, vocabulary), ids)


@pytest.mark.parametrize(("k", "vocabulary"), [(64, 49_152), (16, 128_256), (64, 262_144)])
def test_a_kept_logit_takes_at_most_three_bytes(k, vocabulary, tmp_path):
    random = np.random.default_rng(0)
    ids = np.stack([random.choice(vocabulary, k, replace=False) for _ in range(256)])
    said = {"teacher_ids": ids, "teacher_log_probs": np.full(ids.shape, -5.0)}
    said["teacher_rest"] = np.full(256, 0.1)
    size = jm.data.write_kept(tmp_path / "kept", [said] * 2, vocabulary=vocabulary)
    assert size / (2 * ids.size) <= 3.01


def test_rows_come_back_beside_the_texts_they_are_of(tmp_path):
    said, path = drawn(3, 4, 6, 50), tmp_path / "kept"
    jm.data.write_kept(path, [said], vocabulary=50, temperature=2.0)
    kept = pickle.loads(pickle.dumps(jm.data.KeptLogits(path)))
    assert len(kept) == 3
    assert kept.options == {"vocabulary": 50, "kind": "top", "temperature": 2.0}
    rows = jm.data.JoinedRows(jm.data.PackedRows([[1, 2, 3]] * 3, 4), kept)
    batch = next(jm.data.Batches(rows, 3, shuffle=False))
    order = np.argsort(said["teacher_ids"], -1)
    found = {name: batch[name] for name in said}
    np.testing.assert_array_equal(
        found["teacher_ids"], np.take_along_axis(said["teacher_ids"], order, -1)
    )
    p = np.exp(np.take_along_axis(said["teacher_log_probs"], order, -1))
    assert np.abs(np.exp(found["teacher_log_probs"]) - p).max() < 0.03
    np.testing.assert_allclose(found["teacher_rest"], said["teacher_rest"], rtol=1e-3)
    total = np.exp(found["teacher_log_probs"]).sum(-1) + found["teacher_rest"]
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "kept"
    jm.data.write_kept(path, [drawn(2, 4, 3, 20)], vocabulary=20)
    data = path.read_bytes()
    for at in [*range(50), len(data) - 1]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(ValueError, match=str(path)):
            list(jm.data.KeptLogits(path))
    for size in (0, 10, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=str(path)):
            jm.data.KeptLogits(path)


def test_the_loss_of_the_top_is_that_of_one_class_more():
    kept = jit(lambda: jm.train.keep_logits(TEACHER, K, temperature=2.0, chunk=4))()
    p, q = (softmax(np.float64(y) / 2, -1) for y in (TEACHER.of(TEACHER.x), X @ HEAD))
    order = np.argsort(-p, -1)
    np.testing.assert_array_equal(kept["teacher_ids"], order[..., :K])
    p, q = (np.take_along_axis(y, order, -1) for y in (p, q))
    p, q = (np.append(y[..., :K], y[..., K:].sum(-1, keepdims=True), -1) for y in (p, q))
    loss = jm.train.kept_divergence(vocabulary=V, temperature=2.0)
    ours = lambda x: jm.train.chunked(loss, jm.train.Logits(x, HEAD), *kept.values(), chunk=2)
    np.testing.assert_allclose(jit(ours)(X), 4 * rel_entr(p, q).sum(-1), rtol=1e-5)
    one = lambda y: loss(
        y, kept["teacher_ids"][0, 0], *(list(kept.values())[i][0, 0] for i in (1, 2))
    )
    slope = jit(jax.grad(one))(X[0, 0] @ HEAD)  # 2 (q − p) of a kept id
    np.testing.assert_allclose(slope[order[0, 0, :K]], 2 * (q - p)[0, 0, :K], atol=1e-6)


def test_the_loss_of_a_sample_is_right_on_average():
    teacher = jm.train.Logits(TEACHER.x[:, :1], TEACHER.head / 4)  # no id is too rare to be drawn
    logits, draws = X[:, :1] @ HEAD, 4000
    loss = jm.train.kept_divergence(vocabulary=V, kind="sampled")

    def one(key):
        kept = jm.train.keep_logits(teacher, K, kind="sampled", key=key)
        return jax.value_and_grad(lambda y: loss(y, *kept.values()).sum())(logits)

    values, slopes = jit(jax.vmap(one))(jax.random.split(jax.random.key(1), draws))
    whole = lambda y: jm.train.teacher_divergence()(y, teacher.of(teacher.x)).sum()
    value, slope = jax.value_and_grad(whole)(logits)
    within = lambda found, want: np.abs(found.mean(0) - want) < 4 * found.std(0) / draws**0.5 + 1e-6
    assert within(np.asarray(values), value).all() and within(np.asarray(slopes), slope).all()
    assert values.std() > 0


SAID = drawn(1, 4, 3, 20)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p: jm.data.write_kept(p, [], vocabulary=20), "there are no rows"),
        (lambda p: jm.data.write_kept(p, [SAID], vocabulary=2), "ids of a token are not 0 to 1"),
        (lambda p: jm.data.write_kept(p, [{}], vocabulary=2), "no 'teacher_ids'; jm.train.keep"),
        (lambda p: jm.data.write_kept(p, [SAID], vocabulary=20, kind="all"), "kind is 'all'"),
        (
            lambda p: jm.data.write_kept(p, [SAID, drawn(1, 5, 3, 20)], vocabulary=20),
            r"a row is of \(5, 3\), and the first of \(4, 3\)",
        ),
        (
            lambda p: jm.data.write_kept(
                p, [SAID | {"teacher_log_probs": SAID["teacher_log_probs"] + np.nan}], vocabulary=20
            ),
            "a log-probability is above 0",
        ),
        (lambda p: jm.train.keep_logits(TEACHER, V), "k is 24, expected less than the vocabulary"),
        (lambda p: jm.train.keep_logits(TEACHER, 2, kind="sampled"), "key is None"),
        (lambda p: jm.train.keep_logits(TEACHER, 2, chunk=3), "chunk of 3 positions does not"),
        (
            lambda p: jm.train.kept_divergence(vocabulary=20)(X @ HEAD, X, X, X),
            "student has logits of 24 classes and the teacher of 20, expected one vocabulary",
        ),
        (lambda p: jm.data.JoinedRows([{}], []), r"sources have \[1, 0\] rows"),
        (lambda p: jm.data.JoinedRows([{"a": 1}], [{"a": 2}]), "two sources have the field 'a'"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        wrong(tmp_path / "kept")
    assert not list(tmp_path.iterdir())
