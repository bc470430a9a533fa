"""jaxmem fit, demo and eval on a tiny random Llama."""

import pathlib

import numpy as np
import pytest
from checkpoints import VOCAB, write_single
from command_lines import CONTEXT, DENSE, found, model_folder, run, square_tensors, write_config

import jaxmem as jm
from jaxmem.evaluation import Task, write_task
from jaxmem.evaluation.origin import seconds_to_encode, source_of

LITTLE = 20_000  # bytes that the model takes only without a layer


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
def fitted(here):
    """What `fit` found; it wrote the folder `fitted`."""
    (here / "c.txt").write_text((here / "b.txt").read_text().upper())
    items = tuple({"text": "it was", "answer": i} for i in (0, 1))
    task = Task("next", "choice", items, "{text}", ("the", "a worst"))
    write_task(here / "next.jsonl", task)
    texts = "--text", here / "a.txt", "--calibrate", here / "b.txt", here / "c.txt"
    texts = *texts, "--windows", 4, "--tune", 2, "--judge", f"task:{here / 'next.jsonl'}"
    return found("fit", here / "model", "--bytes", "60kB", "--out", here / "fitted", *texts)


@pytest.mark.slow
def test_fit_keeps_to_the_bytes_and_says_so(here, fitted):
    assert fitted["bytes"] <= fitted["limit_bytes"] == 60_000
    assert fitted["bytes"] == jm.nbytes(jm.models.load(here / "fitted").params)
    assert fitted["dense_bytes"] == DENSE == 4 * fitted["weights"]
    assert fitted["bits_per_weight"] == pytest.approx(8 * fitted["bytes"] / fitted["weights"])
    assert fitted["file_bytes"] == sum(f.stat().st_size for f in (here / "fitted").iterdir())
    assert set(fitted["plan"]) <= set(jm.paths(jm.models.load("llama-1b").params))
    assert fitted["plan"]["layers/mlp/up/kernel"].keys() == {"GPTQ"}
    assert fitted["plan"]["embed/embedding"].keys() == {"Search"}  # it is looked up
    done = fitted["calibration"]
    assert done["tuning_steps"] == 2 and done["judge"] == "next"
    rank = lambda plan: (-done["plans_score"][plan], done["plans_kl"][plan])
    assert done["plan"] == min(done["plans_kl"], key=rank) and done["plans_kl"][done["plan"]] > 0
    texts = fitted["calibration_texts"]
    assert [pathlib.Path(path).name for path in texts] == ["b.txt", "c.txt"]
    assert len({text["tokens"] for text in texts.values()}) == 1
    assert source_of(str(here / "fitted"))["calibration"] == texts  # which a card shows
    assert seconds_to_encode(str(here / "fitted")) > 0


@pytest.mark.slow
def test_one_budget_chooses_among_techniques_and_structures(here, tmp_path):
    whole = jm.models.load(here / "model").config
    line = "fit", here / "model", "--among", "n:m", "layers", "neurons", "--tune", 1
    line = *line, "--calibrate", here / "b.txt", "--bytes", LITTLE
    fitted = found(*line, "--out", tmp_path / "out")
    small = jm.models.load(tmp_path / "out")
    assert small.config.layers < whole.layers and small.config.ffn == whole.ffn
    assert small.apply(small.params, np.zeros((1, 4), int)).shape == (1, 4, VOCAB)
    assert fitted["bytes"] == jm.nbytes(small.params) <= LITTLE
    assert fitted["dense_bytes"] == DENSE and fitted["calibration"]["tuning_steps"] == 1
    assert fitted["plan"]["layers/mlp/up/kernel"].keys() == {"SparseGPT"}


@pytest.mark.slow
def test_the_demo_measures_and_draws_a_model_in_three_sizes(here, tmp_path):
    line = "demo", "--model", here / "model", "--text", here / "a.txt", "--prompt", "It was"
    shown = found(*line, "--windows", 2, "--out", tmp_path / "demo.png")
    dense, *fitted = shown["rows"]
    assert [row["bits_per_weight"] for row in fitted] == pytest.approx([8, 6, 5], abs=0.15)
    divergences = [row["kl"]["mean"] for row in shown["rows"]]
    assert divergences == sorted(divergences) and divergences[0] == 0 < divergences[1]
    assert dense["bytes"] == DENSE and shown["downloaded_bytes"] == {}
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_eval_measures_what_fit_measured(here, fitted):
    line = "eval", here / "fitted", "--text", here / "a.txt", "--windows", 4
    again = found(*line, "--reference", here / "model")
    assert again["tokens"] == fitted["evaluation"]["tokens"] == 4 * (CONTEXT - 1)
    for figure in ("perplexity", "dense_perplexity", "kl", "agreement"):
        assert again[figure]["mean"] == pytest.approx(fitted["evaluation"][figure]["mean"])


@pytest.mark.slow
def test_two_bits_are_for_what_three_cannot_reach(here):
    line = "fit", here / "model", "--out", here / "two"
    code, _, err = run(*line, "--bytes", "20kB")
    least = int(err.split()[-1])
    assert code == 2 and "the smallest reachable size is" in err
    assert found(*line, "--bytes", least)["bytes"] <= least < DENSE / 12


@pytest.mark.slow
def test_a_rotated_fit_has_a_head_of_its_own(here):
    line = "fit", here / "model", "--bytes", "80kB", "--out", here / "rotated", "--rotate"
    figures = found(*line)
    assert (figures["weights"], figures["dense_bytes"]) == (DENSE // 4, DENSE)  # of the model given
    assert "head" in found("inspect", here / "rotated")["parts"]


@pytest.mark.slow
def test_force_replaces_what_fit_wrote(here):
    line = "fit", here / "model", "--out", here / "again", "--bytes"
    sizes = [found(*line, "60kB")["bytes"], found(*line, "40kB", "--force")["bytes"]]
    assert sizes[0] > sizes[1] == found("inspect", here / "again")["parts"]["total"]["bytes"]


def test_a_fit_that_fails_leaves_nothing(tmp_path):
    broken = square_tensors()
    broken["model.embed_tokens.weight"][3, 4] = float("nan")
    write_single(tmp_path, broken)
    write_config(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, _, err = run("fit", tmp_path, "--bytes", "60kB", "--out", tmp_path / "deep" / "out")
    assert code == 2 and "embed/embedding: it holds NaN" in err
    assert sorted(tmp_path.iterdir()) == before
