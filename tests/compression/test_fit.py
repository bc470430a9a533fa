"""fit: what the command line does, for any model, as one function."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import CONTEXT, VOCAB, random_tensors, write_single

import jaxmem as jm
from jaxmem.compression.fit_inputs import calibration_ids
from jaxmem.models import load
from jaxmem.training import JsonLines

MODULE = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64)])  # alike, so a codec compiles once
X = jax.random.normal(jax.random.key(0), (96, 64)) * jnp.linspace(0.05, 2, 64)[None]
IDS = np.random.default_rng(0).integers(0, VOCAB, 6 * CONTEXT)
LIMIT = 5_600  # about 5 bits a weight of the module


@functools.cache
def params():
    return MODULE.init(jax.random.key(1), X)


@functools.cache
def by_data():
    return jm.fit((MODULE.apply, params()), LIMIT, calibrate=[(X[:64],), (X[64:],)])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_single(folder, random_tensors())
    return load(folder)


def error(fitted):
    run, encoded = fitted.model
    want = MODULE.apply(params(), X)
    return float(jnp.linalg.norm(run(encoded, X) - want) / jnp.linalg.norm(want))


@functools.cache
def blind():
    stages = []
    report = lambda *now: stages.append(now)
    return jm.fit((MODULE.apply, params(), X), LIMIT, progress=report), stages


def test_a_bare_function_is_fitted_to_the_bytes_and_runs():
    fitted, stages = blind()
    assert [stage for stage, *_ in stages][::2] == ["planning 5,600 bytes", "encoding"]
    assert jm.nbytes(fitted.params) == fitted.nbytes <= LIMIT < jm.nbytes(params()) / 4
    assert set(fitted.plan) == {"layers_0/kernel", "layers_2/kernel"} and not fitted.done
    assert error(fitted) < 0.1 and f"{fitted.nbytes:,} bytes" in str(fitted)


def test_data_makes_a_fit_better():
    assert by_data().nbytes <= LIMIT and error(by_data()) < 0.8 * error(blind()[0])
    assert by_data().done == {"batches": 2, "tuning_steps": 0}


def test_bits_go_by_the_logits_of_a_function_that_gives_them_and_scales_are_tuned():
    options, batches = jm.FitOptions(logits=True, tune_steps=1), [(X[:64],), (X[64:],)]
    fitted = jm.fit((MODULE.apply, params()), LIMIT, calibrate=batches, options=options)
    plans = fitted.done["plans_kl"]
    assert fitted.nbytes <= LIMIT and fitted.done["tuning_steps"] == 1
    assert fitted.done["plan"] == min(plans, key=plans.get) and len(plans) == 2
    run, encoded = fitted.model
    assert jm.train.divergence(MODULE.apply(params(), X), run(encoded, X)) < 0.01


def test_a_fit_of_a_bare_function_is_saved_as_one_file(tmp_path):
    by_data().save(tmp_path / "fitted.jm")
    back = jm.load(tmp_path / "fitted.jm")
    jax.tree.map(np.testing.assert_array_equal, jm.decode(back), jm.decode(by_data().params))


def test_windows_limit_the_text_that_is_read(llama):
    assert len(calibration_ids(llama, IDS, 2)) == 2 * CONTEXT
    assert len(calibration_ids(llama, list(IDS), None)) == len(IDS)


SAID = {"a": "x", "b": "y", "answer": 1}
HEARD = jm.evaluation.Task("heard", "generation", (SAID,), "{a}", metric="wer")
ALIKE = jm.evaluation.Task("alike", "pairs", (SAID,), choices=("{a}", "{b}"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"among": ("layers",)}, "wants a form for the weights that stay"),
        ({"among": ("int", "neuron")}, "among is ('int', 'neuron'), expected a tuple of int"),
        ({"among": "int"}, "FitOptions takes a collection of names as its among, got 'int'"),
        ({"tune_steps": -1}, "tune_steps is -1, expected at least 0"),
        ({"windows": 0}, "windows is 0, expected at least 1"),
        ({"target": "onnx"}, "target is 'onnx', expected gguf or compressed-tensors or cpu"),
        ({"target": "cpu", "among": ("int", "n:m")}, "'cpu' chooses among integers, and among is"),
        ({"target": "gguf", "among": ("int", "n:m")}, "leave one of them out"),
        ({"judge": HEARD}, "judge is the task heard, a generation by wer, expected choice or"),
        ({"judge": ALIKE}, "judge is the task alike, a pairs by spearman, expected choice or"),
    ],
)
def test_options_that_cannot_be_are_refused(change, message):
    with pytest.raises((ValueError, TypeError)) as error:
        jm.FitOptions(**change)
    assert message in str(error.value)


WIDTH = jm.FitOptions(among=("int", "width"))
ITEM = {"answer": 0}
JUDGED = jm.FitOptions(judge=jm.evaluation.Task("a", "choice", (ITEM,), "", ("b", "c")))
BARE = (lambda params, x: x @ params["w"], {"w": jnp.ones((32, 32))})


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (types.SimpleNamespace(params={}), {}, "expected a Model, such as jm.models.load reads"),
        ("smollm2-135m", {}, "fit: model is 'smollm2-135m', expected a Model"),
        (BARE, {"calibrate": IDS}, "a bare function takes calibrate=[(array, ...), ...]"),
        (BARE, {"options": jm.FitOptions(windows=2)}, "windows is 2, and there is no text"),
        (BARE, {"options": jm.FitOptions(rotate=True)}, "rotate: wants a Model"),
        (BARE, {"options": jm.FitOptions(logits=True)}, "logits is True without batches"),
        (BARE, {"options": JUDGED}, "judge is the task a, which wants a Model"),
        (BARE, {"writer": JsonLines("none")}, "writer takes the steps of tuning on a text"),
        ("llama", {"options": JUDGED}, "calibrate=ids of a text"),
        (BARE, {"options": WIDTH}, "width: wants a Model"),
        (BARE, {"options": jm.FitOptions(target="gguf")}, "target 'gguf': wants a Model"),
        ((BARE[0], jm.encode(BARE[1], {"w": jm.Int(8)})), {}, "expected a model with dense"),
        ("llama", {"options": jm.FitOptions(among=("int", "layers"))}, "give calibrate=ids"),
        ("llama", {"calibrate": [(IDS[None],)], "options": WIDTH}, "width: wants a Model that"),
        ("llama", {"calibrate": IDS[:9]}, "calibrate has 9 tokens, expected at least 32"),
        ("llama", {"calibrate": "a text"}, "expected token ids (tokens,)"),
        ("llama", {"nbytes": 1000}, "the smallest reachable size is"),
    ],
)
def test_a_fit_that_cannot_be_says_what_was_expected(model, options, message, llama):
    model = llama if model == "llama" else model
    with pytest.raises((ValueError, TypeError)) as error:
        jm.fit(model, **{"nbytes": 60_000} | options)
    assert message in str(error.value)
