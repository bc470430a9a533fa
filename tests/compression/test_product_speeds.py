"""Speeds of products: measured once on a CPU, arithmetic elsewhere, and known for fast forms."""

import json

import jax
import jax.numpy as jnp
import pytest

import jaxmem as jm
from jaxmem.compression import product_speeds
from jaxmem.compression.product_forms import ProductForm, form, has_fast_product
from jaxmem.compression.product_speeds import speeds

SHAPE = jax.ShapeDtypeStruct((256, 128), jnp.float32)


def abstract(codec):
    return jax.eval_shape(codec.encode, SHAPE)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two forms of small weights are measured, into an empty cache."""
    monkeypatch.setenv("JAXMEM_CACHE", str(tmp_path))
    changed = dict(CODECS=(jm.Int(4),), DENSE=(jnp.float32,), K=16, N=8, MOST_ROUNDS=5)
    for name, value in changed.items():
        monkeypatch.setattr(product_speeds, name, value)
    monkeypatch.setattr(product_speeds, "_cache_bytes", lambda: 0)
    product_speeds._of_cpu.cache_clear()
    yield tmp_path / "speeds"
    product_speeds._of_cpu.cache_clear()


def test_a_cpu_is_measured_once_and_a_damaged_file_is_measured_again(small, monkeypatch):
    first, runs, measured = speeds("cpu"), [], product_speeds._measured
    assert set(map(str, first.seconds_per_byte)) == {"float32", "int4"}
    assert all(s > 0 for s in first.seconds_per_byte.values())
    assert f"jax {jax.__version__}" in first.source and "load average" in first.source
    monkeypatch.setattr(product_speeds, "_measured", lambda: runs.append(1) or measured())
    product_speeds._of_cpu.cache_clear()  # as in another process
    assert speeds("here") == first and not runs
    [file] = small.iterdir()
    for damaged in (
        "{",
        json.dumps({"source": "", "seconds_per_byte": [["int", 4, None, False, 1]]}),
    ):
        file.write_text(damaged)
        product_speeds._of_cpu.cache_clear()
        speeds("cpu")
    assert len(runs) == 2 and json.loads(file.read_text())["source"]


def test_other_threads_are_measured_anew(small, monkeypatch):
    speeds("cpu")
    key = product_speeds._cpu_key()
    monkeypatch.setattr(product_speeds, "_cpu_key", lambda: (*key[:1], "99 threads", *key[2:]))
    assert "99 threads" in speeds("cpu").source and len(list(small.iterdir())) == 2


def test_a_tpu_reads_as_fast_as_its_memory_and_groups_by_a_kernel():
    found = speeds("tpu v5e:2x4")
    assert set(found.seconds_per_byte.values()) == {1 / 819e9}
    assert found.of(abstract(jm.Int(3, group=32))) == 1 / 819e9
    assert found.of(abstract(jm.Bitmask(0.5))) is None
    with pytest.raises(ValueError, match="unknown device 'tpu v9:1x1'; expected 'cpu', 'here'"):
        speeds("tpu v9:1x1")


def test_a_form_that_was_not_measured_counts_as_the_closest_one():
    times = {ProductForm("int", 4, 64, True): 2.0, ProductForm("int", 4): 1.0}
    found = jm.Speeds("cpu", times, "")
    assert found.of(abstract(jm.Int(4, group=32))) == 2.0
    assert found.of(abstract(jm.Int(4, symmetric=False))) == 1.0
    assert found.of(abstract(jm.Int(5))) is None and found.of(SHAPE) is None


@pytest.mark.parametrize(
    "codec, fast",
    [
        (jm.Int(5, group=64, symmetric=False), {"cpu", "tpu"}),
        (jm.Int(3), {"cpu", "tpu", "gpu"}),
        (jm.Codebook("nf4", group=64), {"cpu", "tpu"}),
        (jm.Codebook("nf4"), {"cpu", "tpu", "gpu"}),
        (jm.Affine(4, group=32), {"cpu", "tpu"}),
        (jm.Chain((jm.NM(2, 4), jm.Int(4))), {"cpu"}),
        (jm.Chain((jm.NM(2, 4), jm.Int(4, symmetric=False))), set()),
        (jm.Chain((jm.NM(2, 4), jm.Affine(4, group=16))), set()),
        (jm.Chain((jm.LowRank(4), jm.Int(8))), {"cpu", "tpu", "gpu"}),
        (jm.Bitmask(0.5), set()),
    ],
    ids=lambda x: "-".join(sorted(x)) if isinstance(x, set) else str(x),
)
def test_a_platform_is_fast_where_no_decoded_weight_is_written(codec, fast):
    assert {p for p in ("cpu", "tpu", "gpu") if has_fast_product(abstract(codec), p)} == fast


@pytest.mark.skipif(jm.native().instruction_set is None, reason=jm.native().reason)
@pytest.mark.parametrize(
    "codec", [*product_speeds.CODECS, jm.Affine(4, group=32), jm.Bitmask()], ids=str
)
def test_what_is_fast_on_a_cpu_calls_the_compiled_library(codec):
    leaf, x = abstract(codec), jax.ShapeDtypeStruct((1, 256), jnp.float32)
    text = jax.jit(jm.lift(jnp.matmul)).lower(x, leaf).as_text()
    assert ("jaxmem_" in text) == has_fast_product(leaf, "cpu")


def test_forms_have_names():
    names = {codec: str(form(abstract(codec))) for codec in product_speeds.CODECS}
    assert names[jm.Int(8)] == "int8" and names[jm.Codebook("nf4", group=64)] == "nf4 g64"
    assert len(set(names.values())) == len(product_speeds.CODECS)
