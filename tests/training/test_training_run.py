"""A run lowers the loss, continues after a kill, and leaves nothing wrong behind."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.planner.recipe import Recipe
from jaxmem.train.remat_policy import Remat
from jaxmem.training import TrainingOptions, fresh, run

CONFIG = llama.Config(vocab=32, width=16, ffn=24, layers=2, heads=2, kv_heads=1, head_dim=8)
TEXT = np.tile(np.arange(16), 40)
FREE = ("lora-fa", "adalora")
RECIPE = Recipe("tiny", "cpu", "train", 2, 16, remat=Remat("full"), chunk=16)


@pytest.fixture(scope="module", autouse=True)
def promotion_of_users():
    with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in int32
        yield


@pytest.fixture(scope="module")
def model():
    return fresh(jm.models.Model(CONFIG, llama.module(CONFIG), None, "tiny"))


def trained(model, out, steps=8, recipe=RECIPE, text=TEXT, **options):
    options = {"learning_rate": 0.02, "save_every": 2} | options
    rest = {
        name: options.pop(name)
        for name in ("progress", "held_out", "limit", "writer")
        if name in options
    }
    made = TrainingOptions(steps, **options)
    rows = jm.data.PackedRows([text], 16, longer="split")
    return run(model, jm.data.Batches(rows, 2), recipe, out=out, options=made, **rest)


def test_a_run_lowers_the_loss_and_its_model_loads(model, tmp_path):
    made = trained(model, tmp_path, steps=20, held_out=TEXT[:64])
    losses = [row["loss"] for row in made.history]
    assert losses[-1] < losses[0] - 1 and made.perplexity < 10
    assert made.skipped == 0 and not any("skipped" in row for row in made.history)
    loaded = jm.models.load(str(tmp_path / "model"))
    ids = jnp.asarray(TEXT[None, :16])
    same = loaded.apply(loaded.params, ids) == made.model.apply(made.model.params, ids)
    assert same.all() and made.predicted > 0


def test_a_run_that_was_stopped_continues_to_the_same_losses(model, tmp_path):
    whole = trained(model, tmp_path / "whole")

    def stop(step, steps, numbers):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(model, tmp_path / "parts", progress=stop)
    parts = trained(model, tmp_path / "parts")
    assert [r["step"] for r in parts.history] == list(range(1, 9))
    assert [r["loss"] for r in parts.history] == [r["loss"] for r in whole.history]


def test_batches_of_grain_are_read_and_a_run_of_them_continues(model, tmp_path):
    grain = pytest.importorskip("grain")
    rows = jm.data.PackedRows([TEXT], 16, longer="split")
    stream = grain.MapDataset.source(rows).shuffle(seed=0).repeat().batch(2).to_iter_dataset()

    def stop(step, steps, numbers):
        if step == 5:
            raise KeyboardInterrupt

    options = TrainingOptions(8, learning_rate=0.02, save_every=2)
    go = lambda name, **more: run(
        model, iter(stream), RECIPE, out=tmp_path / name, options=options, **more
    )
    with pytest.raises(KeyboardInterrupt):
        go("parts", progress=stop)
    losses = [[row["loss"] for row in go(name).history] for name in ("parts", "whole")]
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]


def test_steps_that_are_not_finite_change_nothing_and_ten_end_the_run(model, tmp_path):
    spoiled = {**model.params, "final_norm": {"scale": jnp.full((16,), jnp.nan)}}
    broken = dataclasses.replace(model, tensors=spoiled)
    with pytest.raises(ValueError, match="loss or the gradient of steps 1 to 10 is not finite"):
        trained(broken, tmp_path, steps=12, save_every=None)
    rows = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [None] * 9 and not (tmp_path / "model").exists()
    assert [row["skipped"] for row in rows] == list(range(1, 10))
    last = trained(broken, tmp_path / "short", steps=1, held_out=TEXT[:32])
    assert last.loss is None and last.perplexity is None and last.skipped == 1
    assert "not finite" in last._repr_html_()


def test_adapters_are_trained_beside_encoded_weights(model, tmp_path):
    recipe = Recipe("tiny", "cpu", "lora", 2, 16, encoding=jm.Int(8), rank=2, chunk=16)
    made = trained(model, tmp_path, recipe=recipe)
    pairs = jm.load(tmp_path / "adapters.jm")
    assert jax.tree.all(jax.tree.map(jnp.array_equal, pairs, made.adapters))
    assert any((pair["u"] != 0).any() for pair in pairs.values())
    assert made.history[-1]["loss"] < made.history[0]["loss"]


def test_a_frozen_half_stays_and_triples_are_dropped(model, tmp_path):
    sizes = dict(encoding=jm.Int(8), rank=2, chunk=16)
    recipes = {a: Recipe("tiny", "cpu", "lora", 2, 16, adapter=a, **sizes) for a in FREE}
    fixed, ranked = (trained(model, tmp_path / a, recipe=r) for a, r in recipes.items())
    first = jm.build(recipes["lora-fa"], model=model).init(model.params, jax.random.key(0))[0]
    for path, pair in fixed.adapters.items():
        assert (pair["v"] == first["params"][path]["v"]).all() and (pair["u"] != 0).any()
    count = sum(pair["u"].size for pair in first["params"].values())
    assert sum(x.size for x in jax.tree.leaves(first["opt"])) == 2 * count + 1
    ranks = [pair["v"].shape[-2] for pair in ranked.adapters.values()]
    assert all(set(pair) == {"u", "v"} for pair in ranked.adapters.values()) and max(ranks) <= 3
    assert sum(ranks) == 2 * len(first["params"])
    for made in (fixed, ranked):
        assert made.history[-1]["loss"] < made.history[0]["loss"]
    with pytest.raises(ValueError, match="adapter is 'adalora' with state 'int8'"):
        jm.build(dataclasses.replace(recipes["adalora"], state="int8"), model=model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": TEXT + 20}, "reach from 20 to 35, expected 0 to below 32"),
        (
            {"recipe": Recipe("tiny", "cpu", "train", 2, 8)},
            r"int32 \(2, 16\), expected .* \(2, 8\)",
        ),
        ({"recipe": Recipe("tiny", "cpu", "serve", 2, 16)}, "one to serve, expected one to train"),
        ({"limit": 1000}, "more than the limit 1,000"),
        ({"held_out": TEXT[:20]}, "held-out text has 20 tokens, expected at least 2 rows of 16"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
    ],
)
def test_what_cannot_be_trained_is_refused(model, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        trained(model, tmp_path, **change)


def test_a_run_of_one_step_learns(model, tmp_path):
    class Kept:
        def write_scalars(self, step, scalars):
            steps.append((step, scalars["loss"]))

    steps = []
    made = trained(model, tmp_path, steps=1, writer=Kept())
    assert steps == [(1, made.loss)]
    assert (made.model.params["head"]["kernel"] != model.params["head"]["kernel"]).any()
    assert made.history[0]["learning_rate"] == pytest.approx(0.01)


def test_a_second_run_in_a_folder_at_once_is_refused(model, tmp_path):
    def second(step, steps, numbers):
        with pytest.raises(ValueError, match="another run is at work in"):
            trained(model, tmp_path, steps=1)

    trained(model, tmp_path, steps=1, progress=second)


def test_a_batch_of_which_nothing_is_predicted_is_refused(model, tmp_path):
    rows = jm.data.PackedRows([[1]] * 64, 16)
    recipe = dataclasses.replace(RECIPE, packed=True)
    options = TrainingOptions(1)
    with pytest.raises(ValueError, match="the mask of a batch hides all tokens"):
        run(model, jm.data.Batches(rows, 2), recipe, out=tmp_path, options=options)


def test_a_folder_of_another_run_is_refused(model, tmp_path):
    trained(model, tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"options learning_rate 0.02, not 0.01; continue"):
        trained(model, tmp_path, steps=2, learning_rate=0.01)
    with pytest.raises(ValueError, match=r"holds a run with data \(hash of the first batch\)"):
        trained(model, tmp_path, steps=2, text=TEXT[::-1])
    other = dataclasses.replace(model, tensors=jax.tree.map(lambda x: x + 1, model.params))
    with pytest.raises(ValueError, match=r"holds a run with weights \(hash\)"):
        trained(other, tmp_path, steps=2)
