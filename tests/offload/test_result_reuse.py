"""Results that are kept: bounded by bytes, found by what they depend on, never a damaged one."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm


def row(value, size=100):
    return np.full(size, value, np.float32)


def filled(**options):
    results = jm.Reuse(memory=1000, **options)
    for name, seconds in {"quick": 0.1, "slow": 9.0, "middle": 1.0}.items():
        results.put(name, row(seconds), seconds=seconds)
    return results


def test_what_saves_the_fewest_seconds_for_each_byte_goes_first():
    results = filled()
    assert not results.has("quick") and results.has("slow") and results.has("middle")
    for _ in range(20):
        results.get("middle")
    assert results.evict(1) == 400 and not results.has("slow")


def test_what_was_used_long_ago_goes_too():
    results = jm.Reuse(memory=1000)
    results.put("old", row(0), seconds=5.0)
    for i in range(20):
        results.put(f"new {i}", row(i), seconds=1.0)
    assert not results.has("old")


def test_the_bytes_are_counted_exactly_and_stay_within_both_limits(tmp_path):
    rng, results = np.random.default_rng(0), jm.Reuse(memory=3000, disk=20_000, path=tmp_path)
    for _ in range(300):
        key = f"k{rng.integers(40)}"
        found = results.get(key)
        size = 10 + int(key[1:]) * 20
        assert found is None or (found == row(size, size)).all()
        results.put(key, row(size, size), seconds=float(rng.random()))
        results.evict(int(rng.integers(300)), ["memory", "disk"][rng.integers(2)])
        stats, files = results.stats(), [f for f in tmp_path.glob("??/*")]
        assert stats.memory == sum(40 + i * 80 for i in range(40) if f"k{i}" in results._trees)
        assert stats.disk == sum(f.stat().st_size for f in files) and stats.files == len(files)
        assert stats.memory <= 3000 and stats.disk <= 20_000
    assert stats.hits + stats.misses == 300 and stats.hits_disk > 0 and stats.evicted > 0


def test_results_on_disk_outlive_the_process_and_have_one_owner(tmp_path):
    results = filled(disk=10**6, path=tmp_path)
    with pytest.raises(ValueError, match="another Reuse has open"):
        jm.Reuse(memory=0, disk=10**6, path=tmp_path)
    del results
    (tmp_path / "ab").mkdir(exist_ok=True)
    (tmp_path / "ab" / ".abc.1.result.0badcafe.tmp").write_bytes(b"of a writer that was killed")
    again = jm.Reuse(memory=0, disk=10**6, path=tmp_path)
    assert not list(tmp_path.glob("ab/.*"))
    assert (again.get("quick") == row(0.1)).all() and again.stats().seconds_saved == 0.1
    del again
    smaller = jm.Reuse(memory=0, disk=700, path=tmp_path)
    assert smaller.has("slow") and smaller.stats().files == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "renamed", "gone"])
def test_a_damaged_file_is_a_miss_and_is_removed(tmp_path, damage):
    results = filled(disk=10**6, path=tmp_path)
    results.evict(10**6)
    [file] = tmp_path.glob("??/*.9000000.result")
    [other] = tmp_path.glob("??/*.1000000.result")
    data = bytearray(file.read_bytes())
    data[-7] ^= 4
    if damage == "gone":
        file.unlink()
    else:
        contents = {"cut": data[:60], "empty": b"", "flipped": data, "renamed": other.read_bytes()}
        file.write_bytes(contents[damage])
    assert results.get("slow") is None and results.stats().damaged == 1
    assert not file.exists() and (results.get("middle") == 1).all()


def test_a_full_disk_loses_results_and_nothing_else(tmp_path):
    results = jm.Reuse(memory=10**6, disk=10**6, path=tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        results.put("large", row(1, 1000), seconds=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert results.stats().unwritten == 1 and results.stats().disk == 0
    assert results.get("large").shape == (1000,) and not list(tmp_path.glob("??/*"))


def test_a_codec_keeps_results_encoded_and_answers_alike_each_time(tmp_path):
    results = jm.Reuse(memory=10**5, disk=10**5, path=tmp_path, codec=jm.Int(8))
    tree = {"vector": np.linspace(-1, 1, 512, dtype=np.float32), "count": np.int32(3)}
    first = results.put("a", tree, seconds=1.0)
    assert results.stats().memory == 512 + 2 + 4
    assert 0 < abs(first["vector"] - tree["vector"]).max() < 0.01
    results.evict(10**5)
    for _ in range(2):  # from disk, from memory
        found = results.get("a")
        assert (found["vector"] == first["vector"]).all() and found["count"] == 3
    with pytest.raises(ValueError, match="read-only"):
        found["vector"][0] = 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"disk": 5}, "disk is 5 and path is None, expected both"),
        ({"path": "folder"}, "disk is 0 and path is folder, expected both"),
        ({"codec": jm.GPTQ(jm.Int(4))}, "needs statistics"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jm.Reuse(memory=10, **options)


W = jnp.arange(12.0).reshape(3, 4) / 10


def batch(*values):
    x = np.array(values, np.float32)[:, None] * np.ones(3, np.float32)
    return x, np.ones(len(values), np.float32)


def test_only_rows_that_are_not_known_are_computed():
    results = jm.Reuse(memory=10**5)
    fn = lambda params, x, mask: jnp.tanh(x @ params["w"]) * mask[:, None]
    cached = jm.reuse(fn, results, on=(1, 2), sizes=(1, 4))
    for values, misses in [((1, 2, 1), 2), ((3, 2, 1, 4, 5, 6, 7), 7), ((7, 7, 1), 7)]:
        x, mask = batch(*values)
        assert jnp.allclose(cached({"w": W}, x, mask), fn({"w": W}, x, mask), atol=1e-6)
        assert results.stats().misses == misses
    cached({"w": W + 0}, x, mask)  # other arrays with the same numbers
    cached({"w": np.asarray(W)}, x, mask)
    assert results.stats().misses == 9  # a NumPy array has its own hash
    cached({"w": W * 2}, x, mask)
    cached({"w": W}, x, mask * 2)
    assert results.stats().misses == 13


def test_results_of_another_process_are_found_bit_for_bit(tmp_path):
    x, _ = batch(1, 2, 3)
    answers, stats = [], []
    for scale in (1.0, 1.0, 2.0):  # a constant of the program
        results = jm.Reuse(memory=10**5, disk=10**6, path=tmp_path)
        fn = lambda w, x: jnp.tanh(x @ w * scale)  # noqa: B023
        answers.append(jm.reuse(fn, results)(W, x))
        stats.append(results.stats())
        del results
    assert [s.hits_disk for s in stats] == [0, 3, 0] and (answers[0] == answers[1]).all()


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda w, x: x @ w - x.mean(), "another result beside other rows"),
        (lambda w, x: (x @ w).T, "for 2 rows, expected 2 entries"),
        (lambda w, x: jax.pure_callback(np.sin, x, x), "fn has pure_callback"),
        (lambda w, x: (jax.debug.print("{}", x), x)[1], "fn has debug_"),
    ],
)
def test_a_function_whose_results_cannot_be_reused_is_refused(fn, message):
    cached = jm.reuse(fn, jm.Reuse(memory=10**5))
    with pytest.raises(ValueError, match=message):
        cached(W, batch(1, 2)[0])


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ("text", TypeError, "an argument has a str"),
        (3.0, ValueError, r"the rows have shapes \[\(\)\]"),
        (np.ones((0, 3), np.float32), ValueError, r"the rows have shapes \[\(0, 3\)\]"),
        (jax.random.split(jax.random.key(0)), TypeError, "expected their jax.random.key_data"),
    ],
)
def test_rows_that_cannot_be_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        jm.reuse(jnp.matmul, jm.Reuse(memory=10), on=1)(W, x)


def test_inside_jit_it_is_refused():
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(jm.reuse(lambda w, x: x @ w, jm.Reuse(memory=10)))(W, jnp.ones((2, 3)))
