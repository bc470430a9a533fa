"""Writes encoder_decoders/*.npz: tiny encoder-decoders, and what transformers computes with them.

Wants `pip install torch transformers` (made with torch 2.13, transformers 5.24); the tests do not.
Each file holds the `config.json`, the `generation_config.json` and the tensors' names and shapes as
text, a source, its mask, ids of the decoder, their f32 logits, and the tokens that greedy search
and beam search generate. Script and test draw the weights alike, from names and shapes.
processed_spectrograms.npz holds what the processor of Whisper makes of two sounds.
"""

import functools
import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers as tf
from safetensors.numpy import load_file, save_file

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from drawn_weights import drawn

FOLDER = pathlib.Path(__file__).with_name("encoder_decoders")
LENGTHS = (14, 9)  # of the sources in the batch; the second is padded
TOKENS = 10  # that are generated, at most
# Beam search with and without ends that come early.
SEARCHES = {
    "beams": dict(num_beams=3, length_penalty=1.5),
    "early": dict(num_beams=3, length_penalty=0.4, early_stopping=True),
    "never": dict(num_beams=3, length_penalty=-0.5, early_stopping="never"),
}
T5 = dict(vocab_size=37, d_model=24, d_kv=6, d_ff=28, num_layers=3, num_decoder_layers=2,
          num_heads=3, relative_attention_num_buckets=8,
          relative_attention_max_distance=12, decoder_start_token_id=0)  # fmt: skip
GATED = dict(feed_forward_proj="gated-gelu")
BART = dict(vocab_size=37, d_model=24, encoder_layers=3, decoder_layers=2, encoder_ffn_dim=28,
            decoder_ffn_dim=20, encoder_attention_heads=3, decoder_attention_heads=4,
            max_position_embeddings=24, forced_eos_token_id=None)  # fmt: skip
SCALED = dict(scale_embedding=True)
MARIAN = dict(decoder_vocab_size=37, pad_token_id=36, decoder_start_token_id=36)
WHISPER = {name: x for name, x in BART.items() if name != "max_position_embeddings"}
WHISPER |= dict(num_mel_bins=8, max_source_positions=10, max_target_positions=24, pad_token_id=0,
                bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)  # fmt: skip
PREFIX = (7, 8)  # tokens that Whisper's decoder reads after the first one
HEAD = {"lm_head.weight": (37, 24)}
MODELS = {  # (model_type, options, tensors beside those that transformers writes)
    "t5": ("t5", T5 | dict(eos_token_id=20), {}),
    "flan_t5": ("t5", T5 | GATED | dict(tie_word_embeddings=False, eos_token_id=28), HEAD),
    "mt5": ("mt5", T5 | dict(d_kv=8, tie_word_embeddings=False, eos_token_id=[31, 25]), HEAD),
    "bart": ("bart", BART, {}),
    "mbart": ("mbart", BART | SCALED | dict(decoder_start_token_id=4, eos_token_id=[2, 9]), {}),
    "pegasus": ("pegasus", BART | SCALED | dict(activation_function="relu"), {}),
    "marian": ("marian", BART | MARIAN | dict(activation_function="swish"), {}),
    "m2m_100": ("m2m_100", BART | SCALED, {}),
    "blenderbot": ("blenderbot", BART, {}),
    "whisper": ("whisper", WHISPER, {}),
}

GENERATION = {  # what generation_config.json says more
    "bart": dict(forced_bos_token_id=0),
    "m2m_100": dict(forced_bos_token_id=5),
    "marian": dict(bad_words_ids=[[36], [24]]),
    "whisper": dict(suppress_tokens=[7, 8], begin_suppress_tokens=[9]),
}


def make(kind, options, more, generation):
    """One model's configurations, tensors' names and shapes, inputs and outputs."""
    config = tf.AutoConfig.for_model(kind, **options)
    speech = kind == "whisper"
    classes = tf.AutoModelForSpeechSeq2Seq if speech else tf.AutoModelForSeq2SeqLM
    with tempfile.TemporaryDirectory() as folder:  # tensors have other names in a file
        classes.from_config(config).save_pretrained(folder)
        file = pathlib.Path(folder, "model.safetensors")
        tensors = load_file(file)
        constant = {n: x for n, x in tensors.items() if kind == "pegasus" and "positions" in n}
        shapes = {n: x.shape for n, x in tensors.items() if n not in constant} | more
        weights = {n: drawn(n, shape) for n, shape in shapes.items()}
        save_file(constant | weights, file, {"format": "pt"})
        config_file = pathlib.Path(folder, "generation_config.json")
        config_file.write_text(json.dumps(json.loads(config_file.read_text()) | generation))
        texts = {x: pathlib.Path(folder, f"{x}.json") for x in ("config", "generation_config")}
        texts = {name: json.dumps(json.loads(x.read_text())) for name, x in texts.items()}
        model = classes.from_pretrained(folder, attn_implementation="eager").eval()
    rng = np.random.default_rng(0)
    mask = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
    source = np.where(mask, rng.integers(3, config.vocab_size - 1, mask.shape), config.pad_token_id)
    ids = rng.integers(3, config.vocab_size - 1, (len(mask), 7))
    inputs = dict(input_ids=torch.tensor(source), attention_mask=torch.tensor(mask).long())
    arrays, start = dict(source=source, mask=mask), {}
    if speech:
        shape = (len(mask), config.num_mel_bins, 2 * config.max_source_positions)
        arrays = {"source": rng.standard_normal(shape, np.float32)}
        inputs = {"input_features": torch.tensor(arrays["source"])}
        start = {"decoder_input_ids": torch.tensor([[1, *PREFIX]] * len(mask))}
        prefix = {"forced_decoder_ids": [[i + 1, token] for i, token in enumerate(PREFIX)]}
        texts["generation_config"] = json.dumps(json.loads(texts["generation_config"]) | prefix)
    generate = functools.partial(tf.GenerationMixin.generate, model, **inputs, **start)
    with torch.no_grad():
        logits = model(**inputs, decoder_input_ids=torch.tensor(ids)).logits.numpy()
        run = lambda **search: generate(max_new_tokens=TOKENS, **search).numpy()
        outputs = {name: run(**search) for name, search in ({"greedy": {}} | SEARCHES).items()}
    arrays |= dict(ids=ids, logits=logits)
    texts |= {"shapes": json.dumps(shapes), "searches": json.dumps(SEARCHES)}
    return {k: np.array(x) for k, x in texts.items()} | arrays | outputs


def make_spectrograms():
    """What the processor of Whisper makes of two sounds that script and test draw alike."""
    process = tf.WhisperFeatureExtractor(feature_size=16, hop_length=500, chunk_length=1)
    sounds = [drawn(f"sound {length}", (length,)) for length in (9000, 16_000)]
    out = process(sounds, sampling_rate=16_000, return_tensors="np")["input_features"]
    return {"config": np.array(process.to_json_string()), "output": out}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or MODELS:
        made = make(*MODELS[name], GENERATION.get(name, {}))
        np.savez_compressed(FOLDER / f"{name}.npz", **made)
        print(name, (FOLDER / f"{name}.npz").stat().st_size, "bytes")
        print({x: made[x].tolist() for x in ("greedy", *SEARCHES)})
    np.savez_compressed(FOLDER.with_name("processed_spectrograms.npz"), **make_spectrograms())
