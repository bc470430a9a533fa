"""Every command on a tiny random Llama: wrong lines, and what each writes."""

import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from command_lines import DENSE, found, model_folder, run

import jaxmem as jm
from jaxmem import cli
from jaxmem.commands.output import Output


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("cli"))


def test_inspect_counts_the_bytes_of_each_part(here):
    parts = found("inspect", here / "small")["parts"]
    assert parts["total"]["bytes"] == jm.nbytes(jm.models.load(here / "small").params)
    assert parts["total"]["weights"] == DENSE // 4
    assert sum(part["bytes"] for part in parts.values()) == 2 * parts["total"]["bytes"]


def test_weights_are_loaded_in_the_type_that_is_asked_for(here):
    parts = found("inspect", here / "model", "--dtype", "bfloat16")["parts"]
    assert parts["total"]["bytes"] == DENSE // 2


def test_generate_goes_on_from_the_prompt(here):
    line = "generate", here / "small", "--prompt", "It was", "--max-new-tokens", 5
    one = found(*line)
    assert len(one["ids"]) == 5 and one["ids"] == found(*line)["ids"]
    assert f"It was{one['text']}".startswith(run(*line)[1][:-1])  # no half of a character


def test_generate_holds_its_cache_in_the_bits_that_are_asked_for(here):
    line = "generate", here / "small", "--prompt", "It was", "--max-new-tokens", 5
    model, cache = jm.models.load(here / "small"), jm.models.KVCache(2, rotate=True)
    want = jm.models.generate(model, "It was", max_new_tokens=5, cache=cache).ids[0].tolist()
    assert found(*line, "--cache-bits", 2, "--cache-rotated")["ids"] == want != found(*line)["ids"]


def test_inspect_of_shapes_says_what_would_fit():
    formats = {f["format"]: f for f in found("inspect", "llama-8b")["formats"]}
    assert formats["bf16"]["bytes"] == 16_060_522_496
    assert formats["bf16"]["fits_gib"] == [24, 40, 80]
    assert 4 < formats["4 bits"]["bits_per_weight"] < 4.05


@pytest.mark.parametrize("form", ["gguf", "compressed-tensors"])
def test_export_writes_the_codes_that_fit_made(form, here, tmp_path):
    out = tmp_path / "out.gguf"
    told = found("export", here / "small", "--format", form, "--out", out)
    assert told["types"]["layers/mlp/up/kernel"] in ("Q8_0", "int8") and not told["decoded"]
    again = found("export", out, "--format", form, "--out", tmp_path / "again.gguf")
    assert again["types"] == told["types"]
    back, ours = (jm.models.load(p).params for p in (tmp_path / "again.gguf", here / "small"))
    for got, want in zip(jax.tree.leaves(back), jax.tree.leaves(jm.decode(ours)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_export_to_hf_writes_the_numbers_of_what_fit_made(here, tmp_path):
    told = found("export", here / "small", "--format", "hf", "--out", tmp_path / "w")
    assert "layers/mlp/up/kernel" in told["decoded"]
    back, ours = jm.models.load(tmp_path / "w"), jm.models.load(here / "small")
    jax.tree.map(np.testing.assert_array_equal, back.params, jm.decode(ours.params))
    assert back.config == ours.config


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("export small --format gguf --out a.txt", "a.txt exists; choose another --out"),
        ("export llama-8b --format gguf --out new", "has shapes only, expected weights"),
        ("export small --format gguf --dtype float16 --out new", "--dtype goes with --format hf"),
        ("inspect nowhere", "no model 'nowhere': expected smollm2-135m"),
        ("fit model --bytes 1kB --out new", "the smallest reachable size is"),
        ("fit model --bytes 60kB --out a.txt", "a.txt exists and was not written by jaxmem fit"),
        ("fit model --bytes 60kB --out small", "small exists; --force replaces it"),
        ("fit model --bytes 60kB --out model --force", "was not written by jaxmem fit"),
        ("fit small --bytes 60kB --out new", "expected a model with dense weights"),
        ("fit llama-8b --bytes 4GB --out new", "expected a model with dense weights"),
        ("fit model --bytes 60kB --out new --text a.txt --calibrate a.txt", "expected two texts"),
        ("fit model --bytes 60kB --out new --among int layers", "give --calibrate"),
        ("fit model --bytes 60kB --out new --among layers --calibrate a.txt", "wants a form for"),
        ("fit model --bytes 60kB --out new --judge task:a", "give --calibrate"),
        ("fit model --bytes 60kB --out new --calibrate a.txt --judge f1", "expected kl or task:FI"),
        ("fit model --bytes 60kB --out new --calibrate a.txt a.txt", "names a text twice"),
        ("fit model --bytes 60kB --out new --calibrate short.txt", "short.txt has 50 tokens"),
        ("fit model --bytes 60kB --out new --text a.txt --windows 99", "99 windows of 96 tokens"),
        ("fit model --bytes 60kB --out new --calibrate a.txt --tune -1", "at least 0 steps"),
        ("fit model --bytes 60kB --out new --tune 5", "--tune 5 wants a text to tune on"),
        ("eval model --text nowhere.txt", "no text file nowhere.txt"),
        ("eval llama-8b --text a.txt", "llama-8b, shapes only"),
        ("generate model --prompt x --cache-rotated", "of --cache-bits, which is not given"),
        ("generate model --prompt x --temperature -1", "temperature is -1.0, expected at least 0"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(line, message, here, monkeypatch):
    monkeypatch.chdir(here)
    before = sorted(here.iterdir())
    code, out, err = run(*line.split())
    assert code == 2 and err.count("jaxmem: ") == 1
    assert not line.startswith("generate") or not out  # the prompt comes with the answer
    assert err.splitlines()[-1].startswith("jaxmem: ") and message in err.splitlines()[-1]
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    "line",
    ["", "frob", "inspect", "fit model --bytes 10x --out new", "fit model --out new", "plan model"],
)
def test_a_wrong_line_says_how_it_should_be(line):
    code, out, err = run(*line.split())
    assert code == 2 and "jaxmem" in out + err


def test_a_table_of_80_columns_cuts_no_codec(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    codec = jm.Chain((jm.SparseGPT(jm.NM(2, 4)), jm.Int(4, group=24)))
    heads = ("weight", "codec", "bytes", "bits/weight", "error")
    Output().table(
        "", heads, [("layers/mlp/down/kernel[0:15]", codec, "102.3 MB", "4.50", "0.1034")]
    )
    out = capsys.readouterr().out
    assert "…" not in out and all(part in out for part in ("NM(2, 4)", "Int(4,", "group=24"))


def test_a_warning_is_one_line_without_code(capsys):
    with cli._warnings_on_a_line():
        warnings.simplefilter("always")
        warnings.warn("the head\nis left out", stacklevel=1)
    assert capsys.readouterr().err == "jaxmem: warning: the head is left out\n"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["jaxmem", "jaxmem.cli"])
def test_a_module_is_the_command(module):
    line = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == (f"jaxmem {jm.__version__}", 0)
