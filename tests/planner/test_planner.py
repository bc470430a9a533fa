"""Plans: the compiler's bytes of the recipe, the Pareto rows, and messages if nothing fits."""

import dataclasses
import functools
import json
import pathlib

import pytest

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.compiler.devices import Device
from jaxmem.models import Model
from jaxmem.planner.equal_loss import ABOVE_FLOAT32, is_measured
from jaxmem.planner.estimates import arithmetic
from jaxmem.planner.planned import as_data
from jaxmem.planner.planner import kept
from jaxmem.planner.price import noise, price
from jaxmem.planner.search import Candidate, prove

MIB = 2**20
V5E = "tpu v5e:1x1"
SIZES = dict(vocab=512, width=64, ffn=128, layers=2, heads=4, kv_heads=2, head_dim=16, tied=True)
CONFIG = llama.Config(**SIZES)
TINY = Model(CONFIG, llama.module(CONFIG), None, "tiny")
PLAN = functools.partial(jm.plan, TINY, device="cpu", most=1, batch=2, seq=128)


@pytest.fixture(autouse=True, scope="module")
def temporary_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXMEM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize(
    ("task", "limit"),
    [pytest.param("train", 5 * MIB, marks=pytest.mark.slow), ("serve", MIB)],
)
def test_what_is_planned_is_what_the_compiler_says_of_the_recipe_built_again(task, limit):
    planned = PLAN(task=task, limit=limit)
    recipe = jm.Recipe.from_json(json.dumps(planned.to_data()["chosen"]["recipe"]))
    programs = jm.build(recipe, model=TINY).programs.values()
    assert max(jm.memory(fn, *args).peak for fn, args in programs) == planned.chosen.peak <= limit
    assert planned.chosen.certificate()["programs"]["step"]
    assert all(row.bound <= row.peak for row in planned.rows)  # arithmetic is a lower bound
    if task != "serve":
        assert planned.baseline.peak > limit
        assert recipe.micro > 1 or recipe.remat.kind != "none"


def test_a_step_that_releases_gradients_takes_at_least_what_arithmetic_says():
    options = dict(release=True, optimizer="scale", encoding=jm.Int(8), state="bfloat16", micro=2)
    recipe = jm.Recipe(
        "tiny", "cpu", "train", 2, 128, remat=jm.Remat("full", held="int8"), **options
    )
    build = functools.partial(jm.build, model=TINY)
    step, arguments = build(recipe).programs["step"]
    bound, seconds = arithmetic(recipe, CONFIG, build, Device(MIB, 1e12, 1e11, 1e10))
    assert jm.nbytes(arguments) < bound <= jm.memory(step, *arguments).peak and seconds > 0


def test_adapters_are_planned_beside_encoded_weights_and_built_again():
    config = llama.Config(**SIZES | dict(layers=1, heads=2, kv_heads=1))
    model = Model(config, llama.module(config), None, "one layer")
    options = dict(device="cpu", task="lora", batch=1, seq=32, limit=MIB, most=1)
    planned = jm.plan(model, encodings=[jm.Int(8)], states=["float32"], **options)
    recipe = planned.recipe
    assert (recipe.task, recipe.encoding, recipe.state) == ("lora", jm.Int(8), "float32")
    assert all(row.bound <= row.peak for row in planned.rows)
    step, arguments = jm.build(recipe, model=model).programs["step"]
    assert jm.memory(step, *arguments).peak == planned.chosen.peak < planned.baseline.peak


@pytest.mark.slow
@pytest.mark.parametrize("state", ["int8", "int4"])
def test_a_state_in_codes_is_planned_where_it_is_asked_for(state):
    planned = PLAN(task="train", limit=6 * MIB, states=[state])
    assert planned.recipe.state == state and planned.chosen.peak <= 6 * MIB


@pytest.mark.slow
def test_a_plan_for_a_mesh_is_compiled_on_that_mesh():
    axes = {"fsdp": 4, "tensor": 2}
    planned = PLAN(task="train", batch=8, seq=64, limit=64 * MIB, meshes=[axes])
    assert planned.recipe.mesh == axes and all(row.bound <= row.peak for row in planned.rows)
    assert planned.chosen.memory.collectives


def test_a_limit_that_nothing_meets_says_what_would_do():
    options = dict(task="serve", batch=8, seq=512, encodings=[None])
    with pytest.raises(ValueError, match=r"nothing fits 1,048,576 bytes .* needs [\d,]+ ") as error:
        PLAN(limit=MIB, **options)
    needs = int(str(error.value).split(" needs ")[1].split()[0].replace(",", ""))
    assert PLAN(limit=needs, **options).chosen.peak <= needs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(device="tpu v9:1x1"), "unknown device 'tpu v9:1x1'"),
        (dict(limit=None), "the CPU has no limit"),
        (dict(device="tpu v5e:1x1", limit=0), "limit is 0 bytes"),
        (dict(task="dream"), "unknown task 'dream'"),
        (dict(batch=0), "batch is 0"),
        (dict(device="tpu v5e:2x2", batch=5), "a batch of 5 rows .* on 4 chips"),
    ],
)
def test_bad_input_is_one_clear_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        PLAN(**dict(task="train", limit=MIB) | change)
    assert "\n" not in str(error.value)


def test_noise_grows_with_every_bit_that_goes():
    serve = functools.partial(jm.Recipe, "tiny", "cpu", "serve", 1, 64)
    choices = [(None, 16), (None, 8), (jm.Int(8), 8), (jm.Int(4, group=128), 8), (jm.Int(4), 4)]
    noises = [noise(serve(encoding=codec, cache_bits=bits)) for codec, bits in choices]
    assert noises == sorted(noises) and noises[0] == 0 and len(set(noises)) == 5
    assert price(1.0, noises[-1]) > price(1.0, noises[0])


def test_the_costs_of_forms_are_those_that_were_measured():
    path = pathlib.Path(__file__).parents[2] / "experiments/quality/equal_loss.json"
    lines = {line["form"]: line for line in json.loads(path.read_text())["summary"]}
    names = {"adamw": "Adam", "scale": "SCALE"}
    for (weights, optimizer, state), cost in ABOVE_FLOAT32.items():
        form = f"{weights}, {names[optimizer]}" + ("" if state == "any" else f" in {state}")
        assert lines[form]["seeds"] >= 3 and abs(lines[form]["above_float32"] - cost) < 1e-4
    train = functools.partial(jm.Recipe, "tiny", "cpu", "train", 1, 64)
    assert noise(train()) == 0 < noise(train(state="int8")) < 0.01
    assert is_measured(train(state="int8")) and not is_measured(train())
    assert noise(train(optimizer="scale")) == ABOVE_FLOAT32["bfloat16", "scale", "any"]


def test_the_pareto_rows_are_beaten_by_none():
    rows = []
    for peak, state in ((300, "float32"), (200, "bfloat16"), (250, "bfloat16"), (200, "float32")):
        recipe = jm.Recipe("tiny", "cpu", "train", 1, 64, state=state)
        memory = jm.Memory("cpu", peak, 0, 0, 0, 0, limit=400)
        rows.append(Candidate(recipe, "fits", 0, {"step": memory}))
    planned = jm.Planned((*rows, Candidate(recipe, "too large", 900)), memory, 400, 1.0)
    assert planned.pareto == [rows[3]] and planned.chosen is rows[0]
    assert "certificate" not in as_data(planned.rows[-1])


@pytest.mark.slow
def test_a_policy_that_computes_more_keeps_less_on_any_number_of_chips():
    recipe = jm.Recipe("tiny", "cpu", "lora", 8, 64, encoding=jm.Int(8), chunk=64)
    sizes = kept(recipe, model=TINY)
    assert sizes["none"] > sizes["dots_no_batch"] > sizes["named"] > sizes["full"] > 0
    assert kept(dataclasses.replace(recipe, device="tpu v5e:2x4"), model=TINY) == sizes
    assert kept(dataclasses.replace(recipe, micro=2), model=TINY)["full"] < sizes["full"]
    assert kept(jm.Recipe("tiny", "cpu", "serve", 8, 64)) == {}


def test_weights_that_chips_share_take_less_memory_and_more_traffic():
    recipe = jm.Recipe("tiny", "tpu v5e:2x4", "train", 8, 64, chunk=64)
    estimates = {}
    for shared in (True, False):
        build = functools.partial(jm.build, model=TINY)
        changed = dataclasses.replace(recipe, shared=shared)
        estimates[shared] = arithmetic(changed, CONFIG, build, Device(MIB, 1e15, 1e15, 1e9))
    assert estimates[True][0] < estimates[False][0] and estimates[True][1] > estimates[False][1]


def test_a_compiler_that_is_lost_costs_its_candidate_only():
    def programs(n):
        if n == 1:
            raise jm.CompileError("it died")
        return {
            "step": jm.build(jm.Recipe("tiny", "cpu", "serve", 1, 64), model=TINY).programs["step"]
        }

    rows = prove([(1, None), (2, 2**40), (3, 5), (4, 5)], programs, "cpu", 2**30)
    assert [row.status for row in rows] == ["lost", "too large", "fits", "untried"]
    assert rows[2].peak == rows[2].programs["step"].peak


@pytest.mark.slow
def test_a_plan_for_a_tpu_was_compiled_for_it_at_the_limit():
    pytest.importorskip("libtpu")
    config = llama.Config(**SIZES | dict(vocab=4096, width=512, ffn=2048, head_dim=128))
    model = Model(config, llama.module(config), None, "small")
    options = dict(task="serve", batch=2, seq=512, encodings=[jm.Int(8)], most=1)
    planned = jm.plan(model, device=V5E, limit=16 * MIB, **options)
    assert planned.chosen.memory.exact
    assert planned.chosen.peak <= 16 * MIB < planned.baseline.needed
    assert planned.chosen.memory.versions["libtpu"]
