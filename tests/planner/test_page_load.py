"""Pages for a load: enough nearly always, and no more than caches of the greatest length take."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.models import Model
from jaxmem.planner.page_load import pages_at_load, read_load, tokens_read
from jaxmem.planner.search import Candidate

SIZES = dict(vocab=512, width=64, ffn=128, layers=2, heads=4, kv_heads=2, head_dim=16, tied=True)
CONFIG = llama.Config(**SIZES)
TINY = Model(CONFIG, llama.module(CONFIG), None, "tiny")
IDS = jnp.arange(128, dtype=jnp.int32).reshape(2, 64)


def conversations(count):
    """Lengths like those of the conversations of Azure's trace: two log-normal draws."""
    rng = np.random.default_rng(0)
    context = np.clip(rng.lognormal(6.63, 0.99, count), 1, 8000).astype(int)
    return np.stack([context, np.clip(rng.lognormal(5.02, 0.86, count), 1, 1000).astype(int)], 1)


@pytest.mark.parametrize("share", [0.9, 0.99])
def test_rows_that_run_one_request_after_another_have_their_pages_so_often(share):
    load, rows, rng = conversations(1000), 24, np.random.default_rng(1)
    pages_of_step = np.concatenate([-(-(c + np.arange(1, g + 1)) // 64) for c, g in load])
    held = pages_of_step[rng.integers(len(pages_of_step), size=(4000, rows))].sum(1)
    pages = pages_at_load(load, rows, share=share)
    assert abs((held <= pages).mean() - share) < 0.02
    assert pages < rows * -(-load.sum(1).max() // 64) / 3


def test_the_sums_over_steps_are_exact():
    rng = np.random.default_rng(0)
    load = rng.integers(1, 200, (30, 2))
    pages = np.concatenate([-(-(c + np.arange(1, g + 1)) // 16) for c, g in load])
    expected = 50 * pages.mean() + 2.3263479 * np.sqrt(50 * pages.var())
    assert pages_at_load(load, 50, size=16) == int(np.ceil(expected))


def test_a_plan_for_a_load_has_a_pool_that_the_compiler_proves_to_fit():
    load = [(20, 20), (100, 28), (10, 40)]
    options = dict(device="cpu", task="serve", most=1, batch=8, seq=128, encodings=[jm.Int(8)])
    planned = jm.plan(TINY, load=load, limit=2**22, **options)
    recipe = planned.recipe
    assert recipe.pages == pages_at_load(load, 8) == 14 and "in 14 pages" in recipe.summary
    assert jm.Recipe.from_json(recipe.to_json()) == recipe
    assert set(planned.chosen.certificate()["programs"]) == {"step", "prompt"}
    pool = jm.build(recipe, model=TINY).parts["KV cache"]
    assert jm.nbytes(pool) < planned.chosen.peak <= 2**22
    assert all(row.bound <= row.peak for row in planned.rows)


@pytest.mark.parametrize("bits", [8, 4])
def test_pages_of_few_bits_take_fewer_bytes_and_step_as_a_pool_does(bits):
    dense = jm.Recipe("tiny", "cpu", "serve", 2, 128, pages=4)
    built = jm.build(dataclasses.replace(dense, cache_bits=bits), model=TINY)
    sizes = [jm.nbytes(x.parts["KV cache"].stores) for x in (jm.build(dense, model=TINY), built)]
    assert sizes[1] < sizes[0] * (bits / 16 + 0.1)
    pool, params = built.init(llama.module(CONFIG).init(jax.random.key(0), IDS)["params"], None)
    pool, ids = built.programs["prompt"][0](pool, params, IDS)
    pool, ids = built.step(pool, params, ids)
    assert ids.shape == (2, 1) and pool.length.tolist() == [65, 65]


def test_tokens_a_second_count_prompts_and_bytes_from_the_host():
    load = [(100, 20), (60, 20)]  # four tokens are read for one that is written
    recipe = jm.Recipe("tiny", "tpu v5e:1x1", "serve", 4, 128, pages=8, prompt=64)
    memory = functools.partial(jm.Memory, recipe.device, 1, 0, 0, 0, flops=0, limit=9)
    step, prompt = memory(traffic=819e9, host=16e9), memory(traffic=64 * 819e9)
    row = Candidate(recipe, "fits", 0, {"step": step, "prompt": prompt})
    planned = jm.Planned((row,), step, 9, 0.0, tokens_read(load))
    assert planned.seconds(row) == 1 + 1 + 4
    assert planned.to_data()["chosen"]["tokens_per_second_estimated"] == 4 / 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load": [(100, 29)]}, "1 of 1 requests of load are longer than seq, 128"),
        ({"load": [(100, 2)], "task": "train"}, "load is given to train"),
        ({"load": [(0, 2)]}, "has no tokens"),
    ],
)
def test_a_load_that_cannot_be_planned_for_is_refused(options, message):
    right = {"device": "cpu", "task": "serve", "batch": 1, "seq": 128, "limit": 2**24}
    with pytest.raises(ValueError, match=message):
        jm.plan(TINY, **right | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "train"}, "pages is 4 for task 'train'"),
        ({"pages": 0}, "pages is 0 for task 'serve'"),
        ({"device": "tpu v5e:2x4"}, "a pool is on one device"),
    ],
)
def test_a_recipe_with_pages_where_none_are_computed_is_refused(options, message):
    right = {"model": "tiny", "device": "cpu", "task": "serve", "batch": 1, "seq": 64, "pages": 4}
    with pytest.raises(ValueError, match=message):
        jm.Recipe(**right | options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "expected ContextTokens and GeneratedTokens"),
        ("ContextTokens,GeneratedTokens\n1,2\n3,x\n", "trace.csv, line 3: invalid literal"),
        ("ContextTokens,GeneratedTokens\n1\n", "line 2"),
        ("ContextTokens,GeneratedTokens\n5,0\n", "no request that generated tokens"),
        (None, "which is no file"),
    ],
)
def test_a_trace_that_cannot_be_read_is_named(tmp_path, text, message):
    path = tmp_path / "trace.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_load(path)
