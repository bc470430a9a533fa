"""The commands, run in this process on a tiny random Llama."""

import contextlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
import tokenizers
from checkpoints import HF, VOCAB, D, random_tensors, write_sharded, write_single
from tokenizers import decoders, pre_tokenizers

import jaxmem as jm
from jaxmem import cli
from jaxmem.commands.output import Output
from jaxmem.commands.sizes import parse, show

CONTEXT = 96  # shorter than a window of 1,024, which so is the whole context
TEXT = "It was the best of times, it was the worst of times. " * 8
OTHER = "Call me Ishmael. Some years ago, never mind how long. " * 8


def square_tensors():
    """A random Llama whose matrices all have 64 columns, so that a codec compiles once."""
    cut = lambda name, w: w[:D, :D] if "mlp" in name else w
    return {name: np.ascontiguousarray(cut(name, w)) for name, w in random_tensors().items()}


LITTLE = 20_000  # bytes that the model takes only without a layer
DENSE = 4 * sum(w.size for w in square_tensors().values())


def write_config(folder):
    changes = {"intermediate_size": D, "max_position_embeddings": CONTEXT}
    (folder / "config.json").write_text(json.dumps(HF | changes))


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the checkpoint `model` in shards, `small` encoded from it, and two texts."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "model").mkdir()
    write_sharded(folder / "model", square_tensors())
    write_config(folder / "model")
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    model = jm.models.load(folder / "model")
    plan = jm.choose(model.tensors, {".*/kernel": jm.Int(8)})
    model.save(folder / "small", jm.encode(model.tensors, plan))
    (folder / "a.txt").write_text(TEXT)
    (folder / "b.txt").write_text(OTHER)
    (folder / "short.txt").write_text(TEXT[:50])
    return folder


def run(*line):
    """The exit code of a command, and what it wrote to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([str(word) for word in line])
        except SystemExit as done:
            code = done.code
    return code, out.getvalue(), err.getvalue()


def found(*line):
    """The JSON of a command, alone on stdout."""
    code, out, err = run(*line, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def fitted(here):
    """What `fit` found; it wrote the folder `fitted`."""
    texts = "--text", here / "a.txt", "--calibrate", here / "b.txt", "--windows", 4
    texts = *texts, "--tune", 2
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
    assert done["tuning_steps"] == 2
    assert done["plans_kl"][done["plan"]] == min(done["plans_kl"].values()) > 0


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
    code, _, err = run(*line.split())
    assert code == 2 and err.count("jaxmem: ") == 1
    assert err.splitlines()[-1].startswith("jaxmem: ") and message in err.splitlines()[-1]
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    "line",
    ["", "frob", "inspect", "fit model --bytes 10x --out new", "fit model --out new", "plan model"],
)
def test_a_wrong_line_says_how_it_should_be(line):
    code, out, err = run(*line.split())
    assert code == 2 and "jaxmem" in out + err


def test_a_fit_that_fails_leaves_nothing(tmp_path):
    broken = square_tensors()
    broken["model.embed_tokens.weight"][3, 4] = float("nan")
    write_single(tmp_path, broken)
    write_config(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, _, err = run("fit", tmp_path, "--bytes", "60kB", "--out", tmp_path / "deep" / "out")
    assert code == 2 and "embed/embedding: it holds NaN" in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_fit_that_is_interrupted_leaves_nothing(number, here):
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    source = f"{heard}; import sys; from jaxmem.cli import main; sys.exit(main())"
    line = "fit", "model", "--bytes", "60kB", "--out", "new", "--calibrate", "a.txt"
    command = [sys.executable, "-u", "-c", source, *line]
    before = sorted(here.iterdir())
    env = os.environ | {"PYTHONPATH": str(pathlib.Path(cli.__file__).parents[1])}
    with subprocess.Popen(command, cwd=here, env=env, stderr=subprocess.PIPE, text=True) as fit:
        next(text for text in fit.stderr if text.startswith("calibrating"))
        fit.send_signal(number)
        assert fit.stderr.read().splitlines()[-1].startswith("jaxmem: interrupted")
    assert fit.returncode == 130
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("unit", ["B", "kB", "MB", "GB"])
def test_a_size_that_is_shown_reads_back(unit):
    assert show(parse(f"2.5 {unit}" if unit != "B" else "2 B")).endswith(f" {unit}")


@pytest.mark.parametrize("text", ["", "MB", "0", "-1MB", "1e6", "10x", "1 000", "1,5GB", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is no size, expected such as 100MB"):
        parse(text)


def test_a_table_of_80_columns_cuts_no_codec(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    codec = jm.Chain((jm.SparseGPT(jm.NM(2, 4)), jm.Int(4, group=24)))
    heads = ("weight", "codec", "bytes", "bits/weight", "error")
    Output().table(
        "", heads, [("layers/mlp/down/kernel[0:15]", codec, "102.3 MB", "4.50", "0.1034")]
    )
    out = capsys.readouterr().out
    assert "…" not in out and all(part in out for part in ("NM(2, 4)", "Int(4,", "group=24"))


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


@pytest.mark.slow
def test_a_mesh_spreads_what_fit_and_generate_hold(here, tmp_path):
    axes = "fsdp=2,tensor=2"
    line = ("fit", here / "model", "--bytes", DENSE // 2, "--text", here / "a.txt")
    whole = found(*line, "--out", tmp_path / "whole")
    apart = found(*line, "--out", tmp_path / "apart", "--mesh", axes)
    assert apart["bytes_per_device"] < whole["bytes"] / 2 and apart["plan"] == whole["plan"]
    got, want = (x["evaluation"]["perplexity"]["mean"] for x in (apart, whole))
    assert got == pytest.approx(want, rel=1e-3)
    write = ("generate", tmp_path / "whole", "--prompt", "It was", "--max-new-tokens", 4)
    alone, together = found(*write), found(*write, "--mesh", axes)
    assert together["ids"] == alone["ids"]
    assert together["bytes_per_device"] == apart["bytes_per_device"]
    assert found("generate", tmp_path / "apart", *write[2:])["ids"] == alone["ids"]


@pytest.mark.parametrize(
    ("axes", "message"),
    [("fsdp=16", "takes 16 devices, there are 8"), ("rows=2", "--mesh 'rows=2': expected"),
     ("fsdp=x", "--mesh 'fsdp=x'"), ("fsdp=0", "expected at least 1")],
)  # fmt: skip
def test_a_mesh_that_cannot_be_is_told_before_any_work(here, tmp_path, axes, message):
    line = ("fit", here / "model", "--bytes", DENSE, "--out", tmp_path / "x", "--mesh", axes)
    code, _, err = run(*line)
    assert code and message in err and not (tmp_path / "x").exists()


def test_a_warning_is_one_line_without_code(capsys):
    with cli._warnings_on_a_line():
        warnings.simplefilter("always")
        warnings.warn("the head\nis left out", stacklevel=1)
    assert capsys.readouterr().err == "jaxmem: warning: the head is left out\n"
