"""An encoder learns to predict tokens that are hidden, the same ones when it resumes."""

import functools

import jax
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.architectures import encoder
from jaxmem.planner.recipe import Recipe

CONFIG = encoder.Config(vocab=32, width=16, ffn=24, layers=2, heads=2, head="masked_lm", context=16)
TEXTS = [np.arange(n) % 8 + 8 for n in (16, 7, 9, 12)] * 4
RECIPE = Recipe("tiny", "cpu", "train", 2, 16, packed=True)


def batches(seed=0):
    rows = jm.data.PackedRows(TEXTS, 16)
    return jm.data.MaskedBatches(jm.data.Batches(rows, 2), 3, 32, never=[8], seed=seed)


@pytest.fixture(scope="module")
def model():
    return jm.training.fresh(jm.models.Model(CONFIG, encoder.module(CONFIG), None, "tiny"))


def test_an_encoder_learns_what_is_hidden(model, tmp_path):
    options = jm.training.TrainingOptions(30, learning_rate=0.03, save_every=None)
    with jax.numpy_dtype_promotion("standard"):
        text = np.tile(np.arange(16) % 8 + 8, 8)
        made = jm.training.run(
            model, batches(), RECIPE, out=tmp_path, options=options, held_out=text
        )
    held_out = made.history[-1]["held_out_loss"]
    assert 0 < held_out < np.log(32) - 0.5 and made.perplexity == np.exp(held_out)
    losses = [row["loss"] for row in made.history]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5


def test_tokens_are_hidden_where_they_may_be_and_again_after_a_resume():
    stream, again = batches(), batches()
    first = next(stream)
    hidden = first["mask"]
    assert 1 <= hidden.sum() <= 0.2 * (first["segments"] > 0).sum()
    assert (first["ids"] == first["targets"])[~hidden].all() and (first["targets"] != 8)[
        hidden
    ].all()
    again.restore(stream.state())
    assert all((x == y).all() for x, y in zip(next(stream).values(), next(again).values()))
    with pytest.raises(ValueError, match="seed 0, this run 1"):
        batches(seed=1).restore(stream.state())


def test_what_does_not_fit_an_encoder_is_refused(model, tmp_path):
    recipe = Recipe("tiny", "cpu", "train", 2, 16)
    with pytest.raises(ValueError, match="predicts hidden tokens: give the recipe packed=True"):
        jm.build(recipe, model=model)
    with pytest.raises(ValueError, match="is an encoder, whose steps are not estimated"):
        jm.plan(model, device="cpu", task="train", batch=2, seq=16, limit=2**30, packed=True)
    options = jm.training.TrainingOptions(1)
    plain = jm.data.Batches(jm.data.PackedRows(TEXTS, 16), 2)
    with pytest.raises(ValueError, match="a held-out text wants MaskedBatches"):
        run = functools.partial(jm.training.run, model, plain, RECIPE, out=tmp_path)
        run(options=options, held_out=TEXTS[0])
    with pytest.raises(ValueError, match=r"targets; see jm\.data"):
        jm.training.run(model, plain, RECIPE, out=tmp_path, options=options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batches": [1]}, r"batches is \[1\], expected batches with a state"),
        ({"mask_id": "[MASK]"}, r"mask_id is '\[MASK\]', expected an int"),
        ({"never": 8}, r"never is 8, expected integers \(n,\)"),
        ({"seed": None}, "seed is None, expected an int"),
    ],
)
def test_masked_batches_name_a_wrong_argument(wrong, message):
    right = {"batches": batches(0), "mask_id": 3, "vocab": 32}
    with pytest.raises(TypeError, match=message):
        jm.data.MaskedBatches(**right | wrong)
