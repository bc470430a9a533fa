"""Each of 87 kinds of checkpoint that transformers writes: which load, and how equal the output is.

    pip install torch transformers
    python experiments/quality/every_kind.py make FOLDER
    pip install -e ".[demo]"          # there or in another environment
    python experiments/quality/every_kind.py compare FOLDER

The first command makes a tiny model of each kind with the weights of transformers' own
initialisation (seed 0), saves it in FOLDER, and writes what it computes of drawn inputs in float32.
The second loads each with jaxmem, and writes every_kind.json: the largest difference of the output
over its largest number, or why a kind is refused. A kind whose file or row is there is not made or
compared again, unless it was refused.
"""

import json
import pathlib
import sys
import warnings

import numpy as np

RESULT = pathlib.Path(__file__).with_suffix(".json")
SEED, TOKENS, EQUAL = 0, 12, 1e-4
ENDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
PLAIN = dict(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
             num_attention_heads=4, max_position_embeddings=64) | ENDS  # fmt: skip
GROUPED = PLAIN | dict(num_key_value_heads=2)
HEADS = GROUPED | dict(head_dim=8)
GPT = dict(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64) | ENDS
EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)
QWEN = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
LATENT = PLAIN | dict(
    num_key_value_heads=4, first_k_dense_replace=1, moe_intermediate_size=16, n_routed_experts=4,
    num_experts_per_tok=2, n_group=2, topk_group=1, kv_lora_rank=12, q_lora_rank=16,
    qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_shared_experts=1)  # fmt: skip
STATES = dict(vocab_size=99, hidden_size=32, state_size=8, num_hidden_layers=2) | ENDS
FULL, LOCAL, LINEAR = "full_attention", "sliding_attention", "linear_attention"
ROPE = dict(rope_theta=10_000.0)
YARN = ROPE | dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
LONG = ROPE | dict(rope_type="longrope", short_factor=[1.0, 1.5, 2.0, 3.0],
                   long_factor=[2.0, 3.0, 5.0, 8.0])  # fmt: skip
LLAMA3 = ROPE | dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                     original_max_position_embeddings=32)  # fmt: skip
BART = dict(vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48,
            decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4,
            max_position_embeddings=64, decoder_start_token_id=2) | ENDS  # fmt: skip
T5 = dict(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
WHISPER = {name: x for name, x in BART.items() if name != "max_position_embeddings"}
WHISPER |= dict(num_mel_bins=8, max_source_positions=10, max_target_positions=64)
DECODERS = {
    "bloom": dict(vocab_size=99, hidden_size=32, n_layer=2, n_head=4),
    "codegen": GPT | dict(rotary_dim=4),
    "cohere": GROUPED,
    "cohere2": GROUPED | dict(sliding_window=5),
    "deepseek_v2": LATENT | dict(topk_method="group_limited_greedy"),
    "deepseek_v3": LATENT,
    "exaone4": GROUPED | dict(layer_types=[LOCAL, FULL], sliding_window=5),
    "falcon": dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "gemma": HEADS,
    "gemma2": HEADS | dict(sliding_window=5),
    "gemma3_text": HEADS | dict(layer_types=[LOCAL, FULL], sliding_window=5),
    "glm4": HEADS,
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": dict(vocab_size=99, hidden_size=32, num_layers=2, num_heads=4, window_size=5,
                    attention_types=[[["global", "local"], 1]], max_position_embeddings=64) | ENDS,
    "gpt_neox": PLAIN,
    "gpt_oss": HEADS | EXPERTS | dict(sliding_window=5),
    "gptj": GPT | dict(rotary_dim=4),
    "granite": GROUPED,
    "granitemoe": GROUPED | EXPERTS,
    "helium": HEADS,
    "jamba": GROUPED | dict(num_hidden_layers=4, attn_layer_period=3, attn_layer_offset=1,
                            num_experts=4, num_experts_per_tok=2, mamba_d_state=8, mamba_dt_rank=4),
    "lfm2": GROUPED | dict(layer_types=["conv", FULL], block_multiple_of=8),
    "llama": GROUPED,
    "llama3_rope": ("llama", GROUPED | dict(rope_parameters=LLAMA3)),
    "llama4_text": HEADS | EXPERTS | dict(intermediate_size_mlp=48, interleave_moe_layer_step=2),
    "llama_dynamic": ("llama", GROUPED | dict(rope_parameters=ROPE | dict(
        rope_type="dynamic", factor=2.0))),
    "llama_linear": ("llama", GROUPED | dict(rope_parameters=ROPE | dict(
        rope_type="linear", factor=2.0))),
    "llama_mlp_attn_bias": ("llama", GROUPED | dict(attention_bias=True, mlp_bias=True)),
    "llama_tied": ("llama", GROUPED | dict(tie_word_embeddings=True)),
    "llama_yarn": ("llama", GROUPED | dict(rope_parameters=YARN)),
    "mamba": STATES,
    "mamba2": STATES | dict(num_heads=8, head_dim=8, n_groups=2),
    "ministral3": HEADS,
    "mistral": GROUPED | dict(sliding_window=5),
    "mistral_headdim32": ("mistral", GROUPED | dict(head_dim=32)),
    "mixtral": GROUPED | EXPERTS,
    "mpt": dict(vocab_size=99, d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
    "nemotron": HEADS,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED | dict(layer_types=[LOCAL, FULL], sliding_window=5),
    "olmoe": GROUPED | dict(num_experts=4, num_experts_per_tok=2),
    "opt": dict(vocab_size=99, hidden_size=32, ffn_dim=48, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=32),
    "phi": GROUPED,
    "phi3": GROUPED,
    "phi3_longrope": ("phi3", GROUPED | dict(original_max_position_embeddings=32,
                                             rope_parameters=LONG)),
    "phimoe": GROUPED | EXPERTS,
    "qwen2": GROUPED,
    "qwen2_moe": GROUPED | QWEN | dict(shared_expert_intermediate_size=16),
    "qwen2_sliding": ("qwen2", GROUPED | dict(use_sliding_window=True, sliding_window=5,
                                              max_window_layers=1)),
    "qwen3": HEADS,
    "qwen3_moe": HEADS | QWEN,
    "qwen3_next": HEADS | QWEN | dict(
        layer_types=[LINEAR, FULL], linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=8, shared_expert_intermediate_size=16),
    "recurrent_gemma": PLAIN | dict(num_hidden_layers=3, lru_width=32, attention_window_size=5),
    "rwkv": dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, context_length=64),
    "smollm3": GROUPED,
    "stablelm": GROUPED,
    "starcoder2": GROUPED,
}  # fmt: skip
SPECIAL = dict(cls_token_id=1, sep_token_id=2)
ENCODERS = {
    "albert": PLAIN | dict(embedding_size=16),
    "bert": PLAIN,
    "bert_mlm": ("bert", PLAIN, "MaskedLM"),
    "bert_seqcls": ("bert", PLAIN, "SequenceClassification"),
    "camembert": PLAIN,
    "deberta_v2": ("deberta-v2", PLAIN | dict(
        relative_attention=True, position_buckets=8, norm_rel_ebd="layer_norm",
        pos_att_type=["p2c", "c2p"], share_att_key=True)),
    "distilbert": dict(vocab_size=99, dim=32, hidden_dim=48, n_layers=2, n_heads=4),
    "electra": PLAIN | dict(embedding_size=16),
    "esm": PLAIN | dict(position_embedding_type="rotary", mask_token_id=5),
    "modernbert": PLAIN | SPECIAL,
    "mpnet": PLAIN | dict(pad_token_id=1),
    "nomic_bert": PLAIN,
    "roberta": PLAIN,
    "roberta_mlm": ("roberta", PLAIN, "MaskedLM"),
    "xlm_roberta": ("xlm-roberta", PLAIN),
}  # fmt: skip
ENCODER_DECODERS = {
    "bart": BART,
    "blenderbot": BART,
    "flan_t5": ("t5", T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "m2m100": ("m2m_100", BART),
    "marian": BART | dict(decoder_vocab_size=99),
    "mbart": BART,
    "mt5": T5,
    "pegasus": BART,
    "t5": T5,
    "whisper": WHISPER,
}
IMAGE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             image_size=12, patch_size=4)  # fmt: skip
SOUND = {name: x for name, x in PLAIN.items() if name != "max_position_embeddings"}
SIGNALS = {
    "clip": dict(text_config=PLAIN, vision_config=IMAGE, projection_dim=20),
    "vit": IMAGE,
    "wav2vec2": SOUND | dict(conv_dim=(8, 12), conv_kernel=(5, 3), conv_stride=(3, 2),
                             num_feat_extract_layers=2, num_conv_pos_embeddings=4,
                             num_conv_pos_embedding_groups=2),
}  # fmt: skip
WORDS = {"ids": "input_ids", "mask": "attention_mask", "pixels": "pixel_values"}
WORDS |= {"samples": "input_values"}
GROUPS = {"decoder": DECODERS, "encoder": ENCODERS, "seq2seq": ENCODER_DECODERS, "": SIGNALS}


def inputs_of(group: str, kind: str) -> dict[str, np.ndarray]:
    """The inputs of a kind, by the words and in the order of `Model.apply`."""
    rng = np.random.default_rng(SEED)
    ids = rng.integers(3, 99, (2, TOKENS)).astype(np.int32)
    pixels = rng.standard_normal((2, 3, 12, 12)).astype(np.float32)
    if group == "seq2seq":
        spectrogram = rng.standard_normal((2, 8, 20)).astype(np.float32)
        return {"source": spectrogram if kind == "whisper" else ids[:, ::-1].copy(), "ids": ids}
    if group:
        mask = np.arange(TOKENS) < np.array([[TOKENS], [8]])
        return {"ids": ids} | ({"mask": mask} if group == "encoder" else {})
    samples = rng.standard_normal((2, 80)).astype(np.float32)
    return {"clip": {"ids": ids, "pixels": pixels}, "vit": {"pixels": pixels}}.get(
        kind, {"samples": samples}
    )


def make(folder: pathlib.Path) -> None:
    """Writes the checkpoint of each kind, its inputs and its output."""
    import torch
    import transformers as tf

    for group, kinds in GROUPS.items():
        for kind, entry in kinds.items():
            if (folder / kind / "computed.npz").exists():
                continue
            name, options, *head = entry if isinstance(entry, tuple) else (kind, entry)
            auto = {"decoder": "ForCausalLM", "seq2seq": "ForSeq2SeqLM"}.get(group, "")
            auto = "ForSpeechSeq2Seq" if kind == "whisper" else f"For{head[0]}" if head else auto
            torch.manual_seed(SEED)
            config = tf.AutoConfig.for_model(name, **options)
            model = getattr(tf, f"AutoModel{auto}").from_config(config)
            model.save_pretrained(folder / kind)
            eager = dict(attn_implementation="eager", experts_implementation="eager")
            model = getattr(tf, f"AutoModel{auto}").from_pretrained(folder / kind, **eager).eval()
            arrays = inputs_of(group, kind)
            words = WORDS
            if group == "seq2seq":
                source = "input_features" if kind == "whisper" else "input_ids"
                words = {"source": source, "ids": "decoder_input_ids"}
            tensor = lambda x: torch.tensor(x.astype(x.dtype if x.dtype.kind == "f" else np.int64))
            given = {words[name]: tensor(x) for name, x in arrays.items()}
            cache = {"use_cache": False} if group == "decoder" else {}
            with torch.no_grad():
                out = model(**given, **cache)
            keys = ("logits", "logits_per_image", "last_hidden_state")
            output = out[next(key for key in keys if key in out)].numpy()
            np.savez(folder / kind / "computed.npz", **arrays, output=output)
            print(kind, output.shape, flush=True)


def compare(folder: pathlib.Path) -> dict[str, dict]:
    """How equal each kind's output is, or why it is refused."""
    import jax

    import jaxmem as jm

    rows = {}
    if RESULT.exists():
        rows = json.loads(RESULT.read_text())["rows"]
    for group, kinds in GROUPS.items():
        for kind in kinds:
            if "refused" not in rows.get(kind, {"refused": ""}):
                continue
            file = dict(np.load(folder / kind / "computed.npz"))
            expected = file.pop("output")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model = jm.models.load(folder / kind)
            except ValueError as error:
                rows[kind] = {"refused": str(error).replace(f"{folder / kind}", kind)}
                continue
            output = jax.jit(model.apply)(model.params, *file.values())
            output = np.asarray(getattr(output, "logits", output))
            if group == "encoder":  # hidden states of padding are not compared
                real = file["mask"] if output.ndim == 3 else ...
                output, expected = output[real], expected[real]
            difference = float(np.abs(output - expected).max() / np.abs(expected).max())
            rows[kind] = {"family": model.config.family, "relative_difference": difference}
            print(kind, rows[kind], flush=True)
    return rows


def main() -> None:
    command, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    if command == "make":
        return make(folder)
    rows = compare(folder)
    equal = [kind for kind, row in rows.items() if row.get("relative_difference", 1) <= EQUAL]
    summary = {
        "kinds": len(rows),
        "load": sum("refused" not in row for row in rows.values()),
        "equal": len(equal),
        "not_equal": sorted(set(rows) - set(equal)),
    }
    result = {"seed": SEED, "equal_to": EQUAL} | summary | {"rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
