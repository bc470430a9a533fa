"""Every family of encoder-decoders computes and generates what transformers does."""

import dataclasses
import functools
import json
import pathlib
import tempfile
import wave

import cheap_jit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import jaxmem as jm
from jaxmem.architectures import seq2seq
from jaxmem.architectures.attention import seq2seq_positions
from jaxmem.architectures.families.seq2seq_families import CHOSEN
from jaxmem.commands.eval import measure
from jaxmem.evaluation.embeddings import sentence_embedder
from jaxmem.io.json_fields import JsonFields
from jaxmem.models.output_tokens import with_output_tokens

FOLDER = pathlib.Path(__file__).parents[1] / "reference/encoder_decoders"
MEMBERS = sorted(path.stem for path in FOLDER.glob("*.npz"))
SPECTROGRAMS = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 8}
SPECTROGRAMS |= {"hop_length": 800, "chunk_length": 1}
T5 = {"model_type": "t5", "vocab_size": 64, "d_model": 32, "d_ff": 48, "num_layers": 2}
T5 |= {"num_heads": 4, "d_kv": 8, "is_encoder_decoder": True}


def loaded(file, change=lambda tensors: tensors):
    """The model that is loaded from the checkpoint of a reference, with changed tensors."""
    with tempfile.TemporaryDirectory() as folder:
        for text in ("config", "generation_config"):
            pathlib.Path(folder, f"{text}.json").write_text(str(file[text]))
        if "mask" not in file:  # a model of sounds
            pathlib.Path(folder, "preprocessor_config.json").write_text(json.dumps(SPECTROGRAMS))
        shapes = json.loads(str(file["shapes"]))
        tensors = change({path: drawn(path, shape) for path, shape in shapes.items()})
        save_file(tensors, pathlib.Path(folder, "model.safetensors"), {"format": "pt"})
        model = jm.models.load(folder)
        return dataclasses.replace(model, tensors=model.params)


@functools.cache
def member(name):
    """The model, loaded from a checkpoint, and the file with what transformers computes."""
    file = dict(np.load(FOLDER / f"{name}.npz"))
    return loaded(file), file


def inputs(file):
    """The source, the ids of the decoder, and the mask of the source, if there is one."""
    return [jnp.asarray(file[x]) for x in ("source", "ids", "mask") if x in file]


@pytest.mark.parametrize("name", MEMBERS)
def test_logits_equal_the_reference(name):
    model, file = member(name)
    logits = cheap_jit.jit(model.apply)(model.params, *inputs(file))
    atol = 1e-4 * np.abs(file["logits"]).max()
    np.testing.assert_allclose(logits, file["logits"], rtol=0, atol=atol)


@pytest.mark.parametrize("names", [["model.decoder.embed_tokens.weight"],
    ["model.shared.weight", "encoder.embed_tokens.weight", "lm_head.weight"]])  # fmt: skip
def test_the_embedding_may_have_the_names_of_those_that_read_it(names):
    model, file = member("bart")
    table = np.asarray(model.params["embed"]["embedding"])
    others = lambda tensors: {k: x for k, x in tensors.items() if k != "model.shared.weight"}
    again = loaded(file, lambda tensors: others(tensors) | dict.fromkeys(names, table))
    assert again.config == model.config
    np.testing.assert_array_equal(again.params["embed"]["embedding"], table)


def test_embeddings_that_differ_are_refused_and_a_head_of_its_own_is_used():
    _, file = member("bart")
    other = lambda tensors: {"encoder.embed_tokens.weight": tensors["model.shared.weight"] + 1}
    with pytest.raises(ValueError, match=r"embed_tokens\.weight differs from model\.shared"):
        loaded(file, lambda tensors: tensors | other(tensors))
    model, file = member("whisper")
    head = np.asarray(model.params["embed"]["embedding"]) + 1
    untied = loaded(file, lambda tensors: tensors | {"proj_out.weight": head})
    np.testing.assert_array_equal(untied.params["head"]["kernel"], head.T)
    assert seq2seq.weights(untied.config)["head/kernel"].names == ("proj_out.weight",)


def test_a_table_of_other_positions_than_sinusoids_is_refused():
    model, file = member("pegasus")
    rows = seq2seq_positions.sinusoids(jnp.arange(9)[None], model.config)[0]
    name = "model.encoder.embed_positions.weight"
    table = lambda x: lambda tensors: tensors | {name: np.asarray(x)}
    assert loaded(file, table(rows.astype(jnp.bfloat16).astype(jnp.float32))).config == model.config
    with pytest.raises(ValueError, match=r"embed_positions\.weight holds other positions than"):
        loaded(file, table(rows + 0.1))


@pytest.mark.parametrize("name, value", [("dense_act_fn", "silu"), ("is_gated_act", True)])
def test_an_activation_that_t5_says_twice_must_be_one(name, value):
    assert seq2seq.Config.from_hf(T5 | {"dense_act_fn": "relu"}).activation == "relu"
    with pytest.raises(ValueError, match=name):
        seq2seq.Config.from_hf(T5 | {name: value})


@pytest.mark.parametrize("name", MEMBERS)
def test_every_parameter_is_made_of_tensors(name):
    config, params = member(name)[0].config, member(name)[0].params
    args = config.example_inputs(4)
    init = jax.eval_shape(seq2seq.module(config).init, jax.random.key(0), *args)["params"]
    expected = {path: x.shape for path, x in flatten_dict(init, sep="/").items()}
    assert expected == {path: x.shape for path, x in seq2seq.weights(config).items()}
    assert expected == {path: x.shape for path, x in flatten_dict(params, sep="/").items()}


@pytest.mark.parametrize("name", ["t5", "bart", "m2m_100"])
def test_token_by_token_it_computes_what_it_computes_at_once(name):
    model, file = member(name)
    source, ids, mask = inputs(file)

    @cheap_jit.jit
    def by_token(params):
        memory = model.apply(params, source, mask, method="encode")

        def step(carry, token):
            cache, position = carry
            args = (token[:, None], memory, mask, cache, position)
            logits, cache = model.apply(params, *args, method="decode")
            return (cache, position + 1), logits[:, 0]

        start = model.config.cache(len(ids), 9), jnp.int32(0)
        return jax.lax.scan(step, start, ids.T)[1].swapaxes(0, 1)

    atol = 1e-4 * np.abs(file["logits"]).max()
    np.testing.assert_allclose(by_token(model.params), file["logits"], rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["t5", "marian", "whisper"])
def test_generated_texts_equal_the_reference(name):
    model, file = member(name)
    sources = file["source"]
    if "mask" in file:
        sources = [row[real] for row, real in zip(sources, file["mask"])]
    forced, searches = model.config.forced, json.loads(str(file["searches"]))
    for search in ("greedy", *searches):
        options = dict(searches.get(search, {}))
        beams = jm.models.BeamSearch(options.pop("num_beams"), **options) if options else None
        texts = jm.models.generate(model, sources, max_new_tokens=10 - len(forced), beams=beams).ids
        reference = file[search][:, 1 + len(model.config.prefix) :]
        for text, expected in zip(texts.tolist(), reference.tolist()):
            ends = [i for i, token in enumerate(expected) if token in model.config.eos]
            length = ends[0] + 1 if ends else len(expected)
            assert text[:length] == expected[:length], search
            assert set(text[length:]) <= {text[length - 1]}


def test_a_whisper_chooses_the_language_of_each_sound_unless_it_is_forced():
    model, file = member("whisper")
    with_prefix = lambda *ids: dataclasses.replace(
        model, config=dataclasses.replace(model.config, prefix=ids)
    )
    run = functools.partial(jm.models.generate, prompt=file["source"], max_new_tokens=2)
    languages = run(with_prefix(), max_new_tokens=1).ids[:, 0]
    chosen = run(with_prefix(CHOSEN, 8)).ids
    searched = run(with_prefix(CHOSEN, 8), beams=jm.models.BeamSearch(1)).ids
    for row, language in enumerate(languages):
        forced = run(with_prefix(CHOSEN, 8), forced=[language, 8]).ids[row, 2:]
        np.testing.assert_array_equal(chosen[row], forced)
        np.testing.assert_array_equal(searched[row], forced)


def test_a_null_language_is_chosen_whatever_config_json_says():
    whisper = json.loads(str(member("whisper")[1]["config"])) | {"forced_decoder_ids": [[1, 5]]}
    config = seq2seq.Config.from_hf(whisper)
    read = lambda **fields: with_output_tokens(config, JsonFields(fields)).prefix
    null = [[1, None], [2, 6]]
    assert config.prefix == (5,)
    assert read(forced_decoder_ids=null, no_timestamps_token_id=9) == (CHOSEN, 6, 9)
    assert read(is_multilingual=True, task_to_id={"transcribe": 6}) == (CHOSEN, 6)
    assert read(forced_decoder_ids=[[1, 7]], no_timestamps_token_id=9) == (7,)


def test_a_whisper_writes_what_a_file_of_sound_makes_it_write(tmp_path):
    model, _ = member("whisper")
    process = jm.models.LogMelProcessor(mels=8, hop=800, seconds=1)
    assert model.processor == process
    samples = (1000 * drawn("sound", (8000,))).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    floats = samples.astype(np.float32) / 2**15
    run = functools.partial(jm.models.generate, model, max_new_tokens=4)
    expected = run(process([floats], rate=16_000)).ids
    for sound in (tmp_path / "a.wav", [str(tmp_path / "a.wav")], floats, [floats]):
        np.testing.assert_array_equal(run(sound).ids, expected)
    np.testing.assert_array_equal(run([floats, floats]).ids, np.repeat(expected, 2, 0))
    with pytest.raises(TypeError, match="a sound holds int16"):
        run(samples)
    for nothing in ([], 3, None, np.zeros((0, 8, 20))):
        with pytest.raises(TypeError, match=r"^prompt is .* expected WAV files"):
            run(nothing)
    with pytest.raises(ValueError, match="give the ids"):
        jax.eval_shape(model.apply, model.params, model.config.example_inputs(1)[0])


@pytest.mark.parametrize("name", MEMBERS)
def test_a_layout_divides_the_parameters_over_four_devices(name):
    model, _ = member(name)
    mesh = jm.mesh(fsdp=2, tensor=2)
    rules = jm.layouts.fsdp_tensor(model.config, mesh)
    shardings = flatten_dict(jm.shardings(model.params, mesh, rules), sep="/")
    for path, x in flatten_dict(model.params, sep="/").items():
        if path.endswith(("up/kernel", "down/kernel", "out/kernel")):
            assert shardings[path].shard_shape(x.shape) != x.shape, path


@functools.cache
def encoded():
    """(a T5, its params with every kernel in 4 bits, the arguments of apply, the weights' uses)."""
    model, file = member("t5")
    uses = jm.uses(model.apply, model.params, *inputs(file))
    plan = jm.choose(model.params, {".*kernel": jm.Int(4, group=2)})
    encode = cheap_jit.jit(lambda params: jm.encode(params, plan, uses=uses))
    return model, encode(model.params), inputs(file), uses


def test_every_kernel_is_used_in_one_product_and_has_statistics():
    model, _, args, uses = encoded()
    kernels = {path for path in uses if path.endswith("kernel")}
    assert len(kernels) == 16
    assert all([use.op for use in uses[path]] == ["dot_general"] for path in kernels)
    assert kernels <= set(jm.stats(model.apply, model.params, [tuple(args)], moments="diag"))


def test_in_4_bits_it_is_saved_and_loaded_and_runs_without_a_dense_copy(tmp_path):
    model, params, args, _ = encoded()
    model.save(tmp_path / "saved", params)
    saved = jm.models.load(tmp_path / "saved")
    assert saved.config == model.config

    @cheap_jit.jit
    def both(params):
        run = jm.lift(saved.apply, on_decode="error")
        return run(params, *args), model.apply(jm.decode(params), *args)

    logits, dense = both(saved.params)
    np.testing.assert_allclose(logits, dense, rtol=0, atol=1e-4 * np.abs(dense).max())


def test_a_source_that_was_read_has_no_perplexity_and_gives_no_vectors():
    model, _ = member("t5")
    with pytest.raises(ValueError, match="has no perplexity of a text that it has read"):
        measure(None, model, "a text")
    with pytest.raises(ValueError, match="is no encoder of texts"):
        sentence_embedder(model)


def test_without_ids_the_decoder_reads_the_source():
    model, file = member("t5")
    source, _, mask = inputs(file)
    run = cheap_jit.jit(lambda: (model.apply(model.params, source, None, mask),
                                 model.apply(model.params, source, source, mask)))  # fmt: skip
    np.testing.assert_array_equal(*run())


@pytest.mark.parametrize("change", [{"encoder_attention_heads": 5}, {"scale_embedding": 2},
    {"share_encoder_decoder_embeddings": False}])  # fmt: skip
def test_a_value_of_a_marian_that_is_not_computed_is_refused_by_name(change):
    marian = json.loads(str(member("marian")[1]["config"]))
    with pytest.raises(ValueError, match=f"^{next(iter(change))} is "):
        seq2seq.Config.from_hf(marian | change)


@pytest.mark.parametrize(
    "change",
    [{"feed_forward_proj": "gated-tanh"}, {"is_encoder_decoder": False}, {"num_layers": 0},
     {"adapters": 3}, {"bad_words_ids": 3}],
)  # fmt: skip
def test_a_value_that_is_not_computed_is_refused_by_name(change):
    with pytest.raises(ValueError, match=f"^{next(iter(change))} is "):
        seq2seq.Config.from_hf(T5 | change)


@pytest.mark.parametrize("change", [{"positions": "rotary"}, {"encoder_heads": 3}, {"start": 64},
    {"encoder_layers": -1}, {"buckets": 8}, {"position_offset": -1}, {"pad": 1},
    {"positions": "relative", "buckets": 6}])  # fmt: skip
def test_a_configuration_that_cannot_be_is_refused_by_name(change):
    with pytest.raises(ValueError, match=f"^{[*change][-1]} is "):
        seq2seq.Config(vocab=64, width=32, ffn=48, layers=2, heads=4, **change)
