"""jaxmem plan writes a recipe that builds into what it measured."""

import json

import pytest
from command_lines import model_folder, run

import jaxmem as jm


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("cli"))


@pytest.mark.slow
def test_plan_writes_a_recipe_that_builds_into_what_it_measured(here, tmp_path):
    line = "plan", here / "model", "--device", "cpu", "--task", "serve", "--batch", 1, "--seq", 64
    code, out, err = run(
        *line,
        "--limit",
        "4MiB",
        "--out",
        tmp_path / "recipe.json",
        "--plot",
        tmp_path / "parts.png",
        "--json",
    )
    assert code == 0, err
    plan, recipe = json.loads(out), jm.Recipe.from_json((tmp_path / "recipe.json").read_text())
    assert plan["chosen"]["compiled"] and plan["chosen"]["recipe"] == json.loads(recipe.to_json())
    peaks = [jm.memory(fn, *args).peak for fn, args in jm.build(recipe).programs.values()]
    assert plan["chosen"]["peak_bytes"] == max(peaks) <= plan["limit_bytes"] == 4 * 2**20
    parts = plan["parts"]["step"]["parts"]
    assert parts["KV cache"] > 0 and (tmp_path / "parts.png").exists() and "fits" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--device", "tpu v9:1x1", "--limit", "4MiB"), "unknown device 'tpu v9:1x1'"),
        (("--device", "cpu"), "the CPU has no limit of its own"),
        (("--device", "tpu v5e:2x4", "--task", "train"), "a batch of 1 rows in 1 micro-batches on"),
        (("--device", "cpu", "--limit", "4MiB", "--out", "no/where.json"), "no directory no"),
    ],
)
def test_plan_refuses_in_a_line_what_it_cannot_plan(here, change, message):
    line = "plan", here / "model", "--task", "serve", "--batch", 1, "--seq", 64
    code, out, err = run(*line, *change)
    assert (code, out) == (2, "") and message in err.splitlines()[-1]
