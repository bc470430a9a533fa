"""Right calls of what loads, runs, serves and judges models."""

import dataclasses
import json
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
from flax import linen

import jaxmem as jm
from jaxmem.evaluation.item_files import write_items
from right_calls.objects import text_file


def adapter(folder: pathlib.Path) -> pathlib.Path:
    """A folder with a LoRA adapter of the queries of one layer, as PEFT writes it."""
    path = folder / "adapter"
    path.mkdir(exist_ok=True)
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (path / "adapter_config.json").write_text(json.dumps(said))
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    pair = {f"{stem}A.weight": np.ones((2, 32), "f4"), f"{stem}B.weight": np.ones((32, 2), "f4")}
    safetensors.numpy.save_file(pair, path / "adapter_model.safetensors")
    return path


def sentence_transformer(folder: pathlib.Path) -> pathlib.Path:
    """A folder with the files that say how texts become vectors."""
    (folder / "1_Pooling").mkdir(parents=True)
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    config = json.dumps({"pooling_mode_mean_tokens": True})
    (folder / "1_Pooling" / "config.json").write_text(config)
    return folder


def calls(o: types.SimpleNamespace) -> dict[str, dict[str, Any]]:
    """{public name: keyword arguments}."""
    folder, params, encoded, ids, model = o.folder, o.params, o.encoded, o.ids, o.model
    model_stats = o.model_stats
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chatting = dataclasses.replace(model, tokenizer=tokenizer, chat_template=template)
    embedding = linen.Sequential([linen.Embed(64, 32), linen.Dense(64)])
    embedding_params = embedding.init(jax.random.key(0), ids)
    answers = [
        {"item": i, "score": 1.0, "answer": 0, "right": 0, "logprobs": [0.0, -1.0], "group": "a"}
        for i in range(5)
    ]
    write_items(folder / "old/items/model/mood.jsonl", {"key": "weights task"}, answers)
    item = {"text": "w1 w2", "answer": 0}
    task = jm.evaluation.Task("mood", "choice", (item,), "{text}", ("w3", "w4"))
    jm.evaluation.write_task(folder / "task.jsonl", task)
    queries = ".*attn/q/kernel"
    query_pairs = jm.adapters.adapters(jax.random.key(0), model.params, 2, queries)
    pool = jm.Pages(size=8).empty(model.config, pages=9, rows=2, most=4)
    pool, _ = jm.pages.alloc(pool, jnp.array([20, 0]))
    pages = {"pool": pool, "ids": jnp.array([1, 2])}
    local = dataclasses.replace(model.config, local=(True, True), window=8)
    of_bits = lambda bits: jm.Pages(bits, size=8).empty(local, pages=9, rows=2, most=4)
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "w1 w2"}')
    return {
        "Pages": {"bits": 8, "size": 8, "rotate": False},
        "Prefixes": {"device": 8, "host": "1MB", "disk": "1MB", "path": folder / "prefixes",
                     "policy": "auto", "size": 4, "chunk": 8, "of": params, "salt": "a"},
        "evaluate": {"apply": model.apply, "params": model.params, "ids": np.arange(40) % 64,
                     "reference": (model.apply, model.params), "window": 8, "windows": 1,
                     "batch": 1, "progress": None},
        "card": {"model": chatting, "reference": chatting, "suite": "quick", "data": [task],
                 "text": None, "seen": None, "unseen": None,
                 "words": None, "explain": ("occlusion",), "out": folder / "card", "progress": None,
                 "writer": None},
        "evaluation.document_losses": {"apply": model.apply, "params": model.params,
                                       "rows": jm.data.PackedRows([[1, 2, 3]], 4), "batch": 1},
        "evaluation.Task": {"name": "mood", "kind": "choice", "items": (item,), "prompt": "{text}",
                            "choices": ("w3", "w4"), "metric": "acc_norm", "group": "text",
                            "delimiter": " ", "max_new_tokens": 4, "until": (".",)},
        "evaluation.answer_flips": {"before": answers, "after": answers},
        "evaluation.calibration_of": {"items": answers, "bins": 5},
        "evaluation.compare_cards": {"first": folder / "old", "second": folder / "old"},
        "evaluation.flip_bits": {"tree": encoded, "rate": 0.01, "key": jax.random.key(0),
                                 "parts": ("codes",)},
        "evaluation.group_gaps": {"before": answers, "after": answers, "least": 2},
        "evaluation.integrated_gradients": {"value": lambda x: (x**2).sum(), "x": jnp.ones(3),
                                            "baseline": jnp.zeros(3), "steps": 2},
        "evaluation.kernel_shap": {"value": lambda chosen: chosen.sum(1), "n": 3, "samples": 4,
                                   "seed": 0},
        "evaluation.membership": {"seen": [1.0, 2.0], "unseen": [2.0, 3.0], "false_positives": 0.1},
        "evaluation.published_tasks": {"folder": folder},
        "evaluation.read_task": {"path": folder / "task.jsonl"},
        "evaluation.score_task": {"task": task, "model": chatting, "progress": None},
        "evaluation.write_task": {"path": folder / "new.jsonl", "task": task},
        "interop.from_peft": {"path": adapter(folder), "model": model},
        "interop.to_peft": {"path": folder / "written", "pairs": query_pairs, "model": model,
                            "alpha": 8.0, "root": True, "base": "tiny"},
        "interop.from_qwix": {"array": jm.interop.to_qwix(encoded["w"]), "dtype": "float32"},
        "interop.read_params": {"path": adapter(folder) / "adapter_model.safetensors"},
        "interop.to_compressed_tensors": {"path": folder / "ct", "model": model,
                                          "params": model.params, "packed": True},
        "interop.to_gguf": {"path": folder / "m.gguf", "model": model, "params": model.params,
                            "half": False},
        "interop.to_hf": {"model": model, "path": folder / "hf", "params": model.params,
                          "dtype": "bfloat16", "shard_bytes": 2**20},
        "interop.to_qwix": {"leaf": encoded["w"]},
        "models.BeamSearch": {"beams": 2, "length_penalty": 1.0, "early_stopping": "never"},
        "models.ImageProcessor": {"resize": (4, 4), "crop": (4, 4), "filter": 2, "scale": 1.0,
                                  "mean": (0.5,), "std": (0.5,), "rgb": True},
        "models.KVCache": {"bits": 8, "rotate": False},
        "models.LogMelProcessor": {"mels": 80, "rate": 16_000, "window": 400, "hop": 160,
                                   "seconds": 30},
        "models.Pooling": {"mode": "mean", "normalized": True, "length": 0},
        "models.WaveformProcessor": {"rate": 16_000, "normalised": True, "masked": True},
        "models.awq": {"model": model, "stats": model_stats, "codec": jm.Int(4)},
        "models.chat": {"model": chatting, "messages": "w1 w2", "variables": None,
                        "max_new_tokens": 2},
        "models.chat_prompt": {"model": chatting, "messages": "w1 w2", "variables": None},
        "models.documents": {"model": chatting, "files": text_file(folder), "separator": None,
                             "folder": folder / "corpus"},
        "models.generated_documents": {"model": model, "prompts": [[1, 2]], "max_new_tokens": 2,
                                       "temperature": 1.0, "top_p": 0.9, "batch": 1, "seed": 0},
        "models.packed_batches": {"model": chatting, "files": text_file(folder), "width": 8,
                                  "batch": 1, "longer": "split", "seed": 0, "shard": (0, 1),
                                  "separator": None, "folder": folder / "corpus"},
        "models.from_flax": {"module": embedding, "params": embedding_params, "context": 16,
                             "eos": (1,), "inputs": (), "cache": None, "options": None},
        "models.generate": {"model": model, "prompt": [1, 2, 3], "max_new_tokens": 2,
                            "temperature": 1.0, "top_k": 4, "top_p": 0.9, "min_p": 0.1, "seed": 0,
                            "cache": jm.models.KVCache(8), "stream": None},
        "models.load": {"source": "llama-8b", "dtype": None, "encoded": False},
        "models.read_pooling": {"folder": sentence_transformer(folder / "sentences")},
        "models.rotate": {"model": model, "seed": 0, "basis": "random"},
        "models.rotate_heads": {"model": model, "seed": 0, "basis": "hadamard"},
        "models.smooth": {"model": model, "stats": model_stats, "strength": 0.5},
        "Ladder": {"params": {"w": jm.Planes().encode(params["w"])}, "high": 0.9, "low": 0.7,
                   "rungs": [jm.Rung(2, weight_bits=8), jm.Rung(4, weight_bits=4)]},
        "Rung": {"rows": 2, "weight_bits": 4, "cache_bits": 8},
        "pages.alloc": {"pool": pool, "tokens": jnp.array([1, 1])},
        "pages.attach": {**pages, "row": 1, "tokens": 16},
        "pages.drop": pages,
        "pages.fewer_bits": {"pages": of_bits(8), "bits": 4},
        "pages.grow": {"pool": pool, "pages": 3},
        "pages.hold": pages,
        "pages.put": {**pages, "blob": jm.pages.take(**pages)},
        "pages.put_row": {"pool": pool, "row": 1, "blob": jm.pages.take_row(pool, 0)},
        "pages.release": {"pool": pool, "rows": jnp.array([0])},
        "pages.release_behind": {"pool": of_bits(None)},
        "pages.reserve": {"pool": pool, "count": 2, "most": 3},
        "pages.share": {"pool": pool, "src": 0, "dst": 1, "tokens": 0},
        "pages.shrink": {"pool": pool},
        "pages.take": pages,
        "pages.take_row": {"pool": pool, "row": 0},
        "pages.usage": {"pool": pool},
        "serving.Engine": {"model": model, "nbytes": 10**6, "rows": 2, "pages": jm.Pages(size=8),
                           "chunk": 16, "length": 64, "host": 0,
                           "prefixes": jm.Prefixes(8, size=8, chunk=16)},
        "serving.GenerationRequest": {"id": "a", "prompt": "w1 w2", "messages": None, "ids": None,
                                      "max_new_tokens": 2, "temperature": 0.5, "top_k": 3,
                                      "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1,
                                      "seed": 0, "stop": ("w3",), "logprobs": True},
        "serving.depth_first": {"prompts": [np.array([2, 1]), np.array([1])]},
        "serving.read_requests": {"path": prompts, "defaults": {"seed": 1}},
    }  # fmt: skip
