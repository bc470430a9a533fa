"""A right call of each public name: its keyword arguments, on small trees and models."""

import dataclasses
import json
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
import tokenizers
from flax import linen

import jaxmem as jm
from jaxmem.architectures import gpt2, llama
from jaxmem.evaluation.item_files import write_items


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


def text_file(folder: pathlib.Path) -> pathlib.Path:
    """A file with a text."""
    path = folder / "text.txt"
    path.write_text("w1 w2 w3")
    return path


def uniform(*shape: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), shape, minval=-1.0)


def apply(params: dict, x: jax.Array) -> jax.Array:
    return x @ params["w"]


def loss(params: dict, x: jax.Array) -> jax.Array:
    return (apply(params, x) ** 2).mean()


def layers(w: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def blank_model(family: types.ModuleType, **sizes: int) -> jm.models.Model:
    config = family.Config(**sizes)
    module, ids = family.module(config), jnp.ones((1, 8), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ids)["params"]
    return jm.models.Model(config, jax.tree.map(lambda s: uniform(*s.shape), shapes), None, "blank")


def sentence_transformer(folder: pathlib.Path) -> pathlib.Path:
    """A folder with the files that say how texts become vectors."""
    (folder / "1_Pooling").mkdir(parents=True)
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    config = json.dumps({"pooling_mode_mean_tokens": True})
    (folder / "1_Pooling" / "config.json").write_text(config)
    return folder


def right_calls(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """{public name: the keyword arguments of a right call; "*args": the others, one by one}."""
    params, x, int8 = {"w": uniform(32, 8)}, uniform(4, 32), jm.Int(8)
    plan, sparse, batches = {"w": jm.Int(8)}, {"w": jm.Bitmask(0.5)}, [(x,), (x + 1,)]
    uses, stats = jm.uses(apply, params, x), jm.stats(apply, params, batches)
    encoded, sgd = jm.encode(params, plan), optax.sgd(0.1)
    sizes = {"vocab": 64, "width": 32, "ffn": 48, "layers": 2, "heads": 4, "kv_heads": 2}
    model = blank_model(llama, **sizes, head_dim=8)
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chatting = dataclasses.replace(model, tokenizer=tokenizer, chat_template=template)
    gpt = blank_model(gpt2, vocab=64, width=32, layers=3, heads=4)
    ids = jnp.arange(30).reshape(1, 30)
    model_stats, gpt_stats = (jm.stats(m.apply, m.params, [(ids,)]) for m in (model, gpt))
    mesh, stages, spec = jm.mesh(fsdp=8), jm.mesh(stage=4), jax.sharding.PartitionSpec()
    embedding = linen.Sequential([linen.Embed(64, 32), linen.Dense(64)])
    embedding_params = embedding.init(jax.random.key(0), ids)
    w, rows = uniform(4, 8, 8), uniform(6, 8)
    compiled = jm.memory(layers, w, rows)
    jm.save(folder / "saved", params)
    jm.data.write(folder / "w.tokens", np.arange(9))
    pairs = jm.adapters.adapters(jax.random.key(0), params, 2, where="w")
    kept = jm.train.keep_logits(jm.train.Logits(uniform(1, 8, 4), uniform(4, 16)), 3)
    jm.data.write_kept(folder / "kept", [kept], vocabulary=16)
    placed = jm.shardings(params, mesh, {"w": spec})
    logits, labels = uniform(3, 8), jnp.arange(3)
    solver = {"codec": jm.Int(4)}
    density = {"density": 0.5}
    knobs = {"n": [8, 4]}
    small = lambda n: (jnp.sin, (jax.ShapeDtypeStruct((n, 128), jnp.float32),))
    inner = {"inner": sgd, "plan": sparse}
    tree = {"tree": params}
    layout = {"config": model.config, "mesh": mesh}
    answers = [
        {"item": i, "score": 1.0, "answer": 0, "right": 0, "logprobs": [0.0, -1.0], "group": "a"}
        for i in range(5)
    ]
    item = {"text": "w1 w2", "answer": 0}
    queries = ".*attn/q/kernel"
    query_pairs = jm.adapters.adapters(jax.random.key(0), model.params, 2, queries)
    task = jm.evaluation.Task("mood", "choice", (item,), "{text}", ("w3", "w4"))
    jm.evaluation.write_task(folder / "task.jsonl", task)
    pairs = jm.adapters.adapters(jax.random.key(0), params, 4, "w")
    write_items(folder / "old/items/model/mood.jsonl", {"key": "weights task"}, answers)
    pool = jm.Pages(size=8).empty(model.config, pages=9, rows=2, most=4)
    pool, _ = jm.pages.alloc(pool, jnp.array([20, 0]))
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "w1 w2"}')
    pages = {"pool": pool, "ids": jnp.array([1, 2])}
    local = dataclasses.replace(model.config, local=(True, True), window=8)
    of_bits = lambda bits: jm.Pages(bits, size=8).empty(local, pages=9, rows=2, most=4)
    calls = {
        "Affine": {"bits": 4, "group": 16},
        "Basis": {"rank": 4, "groups": 1, "order": "sequence", "codec": int8},
        "Bitmask": density,
        "Blocks": {**density, "block": (8, 8)},
        "Cast": {"dtype": "bfloat16"},
        "Chain": {"codecs": (jm.LowRank(4), int8)},
        "Codebook": {"levels": "nf4", "group": 16},
        "Coo": density,
        "Csr": density,
        "DoubleQuant": {"codec": jm.Int(4, group=16), "scales": jm.Float("e4m3", group=16)},
        "Dynamic": {"codec": int8, "to": "int8"},
        "Fake": {"codec": int8, "learn": False},
        "FitOptions": {"among": ("int",), "rotate": False, "tune_steps": 2, "windows": 1,
                       "target": None, "speed": None},
        "Float": {"format": "e4m3", "group": 16},
        "GPTQ": {**solver, "damping": 0.01, "act_order": True, "turns": 0},
        "HQQ": solver,
        "Inputs": {**density, "size": 1},
        "KQuant": {"bits": 4},
        "Int": {"bits": 4, "group": 16, "symmetric": True},
        "KMeans": {"bits": 4, "group": 16},
        "Keep": {},
        "LowRank": {"rank": 4},
        "NM": {"n": 2, "m": 4},
        "Outputs": {**density, "size": 1},
        "Pages": {"bits": 8, "size": 8, "rotate": False},
        "Permute": {"codec": jm.NM(2, 4), "steps": 4},
        "Plan": {"items": plan, "axes": {"w": (-2,)}},
        "Planes": {"group": 16},
        "Prune": {"codec": jm.Bitmask(0.5), "score": lambda w, stats: abs(w)},
        "QERA": {**solver, "rank": 4, "factors": int8, "rounds": 1},
        "RIA": {"codec": jm.Bitmask(0.5)},
        "Recipe": {"model": "tiny", "device": "cpu", "task": "train", "batch": 1, "seq": 8,
                   "encoding": None, "cache_bits": 16, "state": "float32", "remat": jm.Remat(),
                   "offload": False, "micro": 1, "chunk": 8, "rank": 4, "prompt": 4,
                   "shared": True, "mesh": {"fsdp": 2}, "optimizer": "scale", "release": False},
        "Refit": {"codec": jm.Bitmask(0.5), "steps": 2, "damping": 0.01},
        "Prefixes": {"device": 8, "host": "1MB", "disk": "1MB", "path": folder / "prefixes",
                     "policy": "auto", "size": 4, "chunk": 8, "of": params, "salt": "a"},
        "Remat": {"kind": "named", "names": ("attn_out",), "held": "int8"},
        "Search": solver,
        "Shared": {"groups": 2, "order": "sequence", "codec": int8},
        "Smallest": {"codecs": (jm.Int(4), int8)},
        "SecondsLimit": {"of": lambda path, leaf: 1e-6, "limit": 1e-5},
        "Smooth": {"codec": int8, "strength": 0.5},
        "SparseGPT": {"codec": jm.Bitmask(0.5), "damping": 0.01},
        "Sum": {"codecs": (jm.Int(4), jm.LowRank(4))},
        "Wanda": {"codec": jm.Bitmask(0.5)},
        "at_bits": {"tree": {"w": jm.Planes().encode(params["w"])}, "bits": 4},
        "breakdown": {"m": compiled, "arguments": {"w": w, "x": rows}},
        "budget": {"params": params, "nbytes": 600, "candidates": [int8], "uses": uses,
                   "stats": stats, "sensitivity": {"w": 1.0}, "runs": 1, "known": None,
                   "seconds": None},
        "build": {"recipe": jm.Recipe("tiny", "cpu", "train", 1, 8), "model": model,
                  "mesh": None, "optimizer": sgd},
        "calibration.choose_texts": {"texts": [0.1, 0.3], "n": 1, "disagreement": float},
        "calibration.mix_texts": {"texts": {"a": [1, 2], "b": [3, 4]}, "window": 1},
        "choose": {"params": params, "rules": plan, "uses": uses},
        "constrain": {"x": x},
        "data.Batches": {"rows": jm.data.PackedRows([[1, 2], [3, 4]], 2), "batch": 2, "seed": 0,
                         "shuffle": False, "shard": (0, 1)},
        "data.Documents": {"ids": np.arange(5), "lengths": [2, 3], "mask": np.ones(5, bool)},
        "data.JoinedRows": {"*args": ([{"a": 1}], [{"b": 2}])},
        "data.KeptLogits": {"path": folder / "kept"},
        "data.write_kept": {"path": folder / "x.kept", "kept": [kept], "vocabulary": 16,
                            "kind": "top", "temperature": 1.0, "seed": 0},
        "data.MaskedBatches": {"batches": jm.data.Batches(jm.data.PackedRows([[1] * 8], 8), 1),
                               "mask_id": 3, "vocab": 32, "never": [0], "seed": 0},
        "data.PackedRows": {"documents": [[1, 2], [3, 4, 5]], "width": 4, "longer": "split",
                            "seed": 0},
        "data.Tokens": {"path": folder / "w.tokens"},
        "data.Reservoir": {"most": 1000, "vocabulary": 64, "seed": 0},
        "data.difference_sampling": {"small": [2.0, 3.0], "large": [1.0, 3.0], "keep": 0.5},
        "data.lzw_decode": {"codes": [1, 2], "alphabet": 4, "most": 16, "longest": 9},
        "data.lzw_encode": {"symbols": [1, 2], "alphabet": 4, "most": 16},
        "data.lzw_nbytes": {"codes": 36, "most": 512},
        "data.pack": {"lengths": [3, 9], "width": 4, "longer": "split"},
        "data.read": {"files": text_file(folder), "encode": lambda text: list(text.encode()),
                      "begin": [1], "end": [2], "chat": None, "separator": None,
                      "folder": folder / "corpus"},
        "data.write": {"path": folder / "x.tokens", "ids": np.arange(9), "block": 4,
                       "method": "deflate"},
        "decode": {"tree": encoded},
        "distillation": {"student": logits, "teacher": logits, "labels": labels, "alpha": 0.5,
                         "temperature": 1.0},
        "divergence": {"target": logits, "found": logits},
        "allocations": {"fn": jnp.sin, "*args": (x,), "donate_argnums": (), "least": 16,
                        "calls": 1, "timeout": 60.0},
        "donations": {"fn": jnp.sin, "*args": (x,), "donate_argnums": 0},
        "dot_general": {"x": x, "w": encoded["w"], "dims": (((1,), (0,)), ((), ()))},
        "encode": {"params": params, "plan": plan, "uses": uses, "stats": stats},
        "encode_by_block": {"model": model, "plan": {"layers/mlp/up/kernel": jm.Int(4)},
                            "batches": [(ids,)], "passes": 0, "learning_rate": 0.01,
                            "progress": None},
        "erdos_renyi": {"params": params, "density": 0.5, "where": "w", "uses": uses},
        "errors": {"params": params, "candidates": [int8], "uses": uses, "stats": stats,
                   "known": None, "white": False},
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
        "evolve": {**inner, "every": 1, "end": 10, "share": 0.3, "seed": 0, "uses": uses},
        "export": {"tree": encoded},
        "fewer": {"model": gpt, "kinds": ["layers"], "stats": gpt_stats, "ids": ids},
        "fisher": {"fn": apply, "params": params, "batches": batches, "seed": 0},
        "fit": {"model": (apply, params), "nbytes": 600, "calibrate": batches,
                "options": jm.FitOptions(tune_steps=1), "progress": None, "writer": None},
        "from_bcoo": {"matrix": jm.to_bcoo(jm.Coo(0.1).encode(params["w"])), "axes": (-2,)},
        "from_host": {"fn": layers},
        "gradients": {"loss": loss, "params": params, "batches": batches, "uses": uses},
        "gradual": {"plan": sparse, "begin": 0, "end": 10, "every": 1, "power": 3.0, "uses": uses},
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
        "is_encoded": {"x": 3},
        "iterated": {"params": params, "plans": [sparse, sparse], "measure": lambda p: stats,
                     "uses": uses},
        "layers_on_host": {"params": {"w": w}},
        "layouts.adapters": {"rules": {"w": spec}},
        "layouts.cache": {**layout, "batch": 8},
        "layouts.data": layout,
        "layouts.expert": {"pattern": ".*experts/.*", "stacked": True},
        "layouts.fsdp": layout,
        "layouts.fsdp_tensor": layout,
        "layouts.sequence": layout,
        "layouts.tensor": layout,
        "learn_rounding": {"fn": apply, "params": params, "batches": batches,
                           "enc": jm.encode(params, {"w": jm.Int(4)}), "targets": None,
                           "loss": jm.train.squared,
                           "learning_rate": 0.02, "progress": None},
        "least_missed": {"model": gpt, "count": 1, "ids": ids},
        "least_worth": {"model": gpt, "count": 1, "score": lambda w, stats: abs(w), "stats": None},
        "lift": {"fn": apply, "on_decode": "allow"},
        "load": {"path": folder / "saved", "classes": (), "functions": None, "shardings": placed},
        "measured": {"fn": jnp.sin, "*args": (x,), "donate_argnums": ()},
        "memory": {"fn": jnp.sin, "*args": (x,), "device": "cpu", "donate_argnums": 0,
                   "limit": 2**20, "quick": False, "timeout": 60.0},
        "merge": {"first": jm.split(params, lambda path: path == "w")[0],
                  "second": jm.split(params, lambda path: path == "w")[1]},
        "mesh": {"stage": 1, "data": 1, "fsdp": 8, "sequence": 1, "expert": 1, "tensor": 1,
                 "devices": None, "device": "tpu v5e:2x4"},
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
        "movement": {**inner, "begin": 0, "end": 10, "rate": 1.0, "uses": uses},
        "native": {},
        "nbytes": tree,
        "once": {"fn": apply, "*args": (params, x), "known": (0,)},
        "one_f_one_b": {"loss": loss, "mesh": stages, "micro": 2},
        "optimizers.adam_mini": {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.99, "eps": 1e-8,
                                 "heads": {"w": 2}, "uses": uses},
        "optimizers.apollo": {"learning_rate": 1e-2, "rank": 1, "scaled": "matrix", "alpha": 128,
                              "period": 100, "dense": "w", "b1": 0.9, "b2": 0.99,
                              "eps": 1e-8, "seed": 1, "uses": uses},
        "optimizers.apply_rounded": {"params": params, "updates": params, "step": 1},
        "optimizers.in_bfloat16": {"optimizer": sgd},
        "optimizers.in_float32": {"optimizer": sgd},
        "optimizers.in_int4": {"optimizer": sgd},
        "optimizers.in_int8": {"optimizer": sgd, "code": "cubic"},
        "optimizers.joined_weights": {"params": params},
        "optimizers.scale_sgd": {"learning_rate": 1e-3, "momentum": 0.9, "head": "w", "uses": uses,
                                 "b1": 0.9, "b2": 0.99, "eps": 1e-8},
        "optimizers.split_weights": {"params": params},
        "optimizers.stochastic_round": {"x": x, "seed": 1},
        "adapters.adaptive_rank": {"optimizer": sgd, "rank": 2.0, "begin": 0, "end": 10,
                                   "every": 2},
        "adapters.orthogonality": {"pairs": pairs},
        "adapters.shrink": {"pairs": jm.adapters.triples(jax.random.key(0), params, 4, "w")},
        "adapters.truncate": {"pairs": pairs, "ranks": {"w": 2}, "stats": stats},
        "bits_and_ranks": {"params": params, "pairs": pairs, "nbytes": 2000, "codecs": [int8],
                           "ranks": [0, 2], "stats": stats, "sensitivity": None},
        "adapters.triples": {"key": jax.random.key(0), "params": params, "rank": 4, "where": "w"},
        "adapters.adapters": {"key": jax.random.key(0), "params": params, "rank": 4, "where": "w"},
        "adapters.attach": {"params": params, "pairs": pairs},
        "adapters.bottlenecks": {"key": jax.random.key(0), "params": params, "width": 2,
                                 "where": "w"},
        "adapters.freeze_v": {"pairs": pairs},
        "adapters.loftq": {"params": params, "codec": int8, "rank": 2, "where": "w", "rounds": 1,
                           "stats": None},
        "adapters.merge": {"params": encoded, "pairs": pairs, "codec": None, "stats": stats,
                           "fn": apply, "batches": batches, "most": 1.0},
        "adapters.pissa": {"params": params, "rank": 2, "where": "w"},
        "adapters.qera": {"params": encoded, "dense": params, "rank": 2, "where": "w",
                          "stats": None},
        "adapters.with_alpha": {"pairs": pairs, "alpha": 8.0, "root": True},
        "adapters.with_magnitudes": {"params": params, "pairs": pairs},
        "paths": tree,
        "pipelined": {"fn": layers, "mesh": stages, "micro": 2},
        "placement": {**tree, "mesh": mesh, "rules": {"w": spec}},
        "plan": {"model": model, "device": "cpu", "task": "serve", "batch": 1, "seq": 16,
                 "limit": 2**24, "encodings": [int8], "states": ["float32"], "meshes": None,
                 "rank": 4, "adapter": "lora", "load": [(8, 4)],
                 "most": 1, "timeout": 60.0, "tell": lambda row: None},
        "relative": {"target": logits, "found": logits},
        "remat": {"fn": layers, "policy": jm.Remat()},
        "remove_heads": {"model": model, "stats": model_stats, "heads": 2, "kv_heads": None},
        "remove_layers": {"model": gpt, "gone": [1]},
        "remove_neurons": {"model": model, "ffn": 32, "stats": model_stats},
        "remove_width": {"model": model, "width": 16, "stats": model_stats},
        "replicated": {"m": compiled, "least": 1},
        "report": {"params": params, "enc": encoded, "uses": uses},
        "Ladder": {"params": {"w": jm.Planes().encode(params["w"])}, "high": 0.9, "low": 0.7,
                   "rungs": [jm.Rung(2, weight_bits=8), jm.Rung(4, weight_bits=4)]},
        "Rung": {"rows": 2, "weight_bits": 4, "cache_bits": 8},
        "Reuse": {"memory": 1000, "disk": 10_000, "path": folder / "results", "codec": None},
        "reuse": {"fn": apply, "results": jm.Reuse(memory=1000), "on": 1, "sizes": (1, 4)},
        "rewind": {**inner, "rounds": 1, "steps": 2, "to": 0, "uses": uses},
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
        "rigl": {**inner, "every": 1, "end": 10, "share": 0.3, "uses": uses},
        "save": {"path": folder / "out", **tree, "compress": False},
        "search": {"build": small, "knobs": knobs, "device": "cpu", "limit": 2**20, "most": 1,
                   "timeout": 60.0},
        "shard": {**tree, "shardings": placed},
        "shardings": {**tree, "mesh": mesh, "rules": {"w": spec}},
        "sparse": density,
        "speeds": {"device": "tpu v5e:1x1"},
        "split": {**tree, "keep": lambda path: True},
        "state_shardings": {"state": sgd.init(params), "params": params, "shardings": placed},
        "static": {"tree": {"w": jm.Dynamic(int8).encode(params["w"])}, "fn": apply,
                   "batches": batches, "method": "minmax"},
        "stats": {"fn": apply, "params": params, "batches": batches, "moments": "gram"},
        "straight_through": {**inner, "decay": 2e-4, "uses": uses},
        "techniques": {"params": params, "kinds": ["int"], "uses": uses, "stats": stats},
        "to_bcoo": {"leaf": jm.Coo(0.1).encode(params["w"])},
        "together": {"params": params, "density": 0.5, "where": "w",
                     "score": lambda w, stats: abs(w), "stats": stats, "uses": uses},
        "train.accumulate": {"loss": loss, "count": 2},
        "train.Precision": {"params": jnp.float32, "compute": jnp.float16, "output": jnp.float32},
        "train.in_precision": {"fn": jnp.sin, "precision": jm.train.Precision()},
        "train.scale_of": {"state": jm.train.scaled(sgd).init(params)},
        "train.scaled": {"optimizer": sgd, "start": 8.0, "every": 10, "least": 1.0},
        "train.Logits": {"x": uniform(1, 8, 4), "head": uniform(4, 16), "axis": 0,
                         "finish": jnp.tanh},
        "train.chunked": {"loss": jm.train.cross_entropy(), "chunk": 4,
                          "logits": jm.train.Logits(uniform(1, 8, 4), uniform(4, 16)),
                          "mask": jnp.ones((1, 8), bool),
                          "*args": (jnp.zeros((1, 8), jnp.int32),)},
        "train.cross_entropy": {"smoothing": 0.1, "z": 1e-4},
        "train.odds_ratio": {"chosen": -uniform(4), "rejected": -uniform(4)},
        "train.preference": {"chosen": -uniform(4), "rejected": -uniform(4), "beta": 0.1,
                             "reference": (-uniform(4), -uniform(4)), "smoothing": 0.0},
        "train.teacher_divergence": {"temperature": 2.0, "kind": "jsd", "beta": 0.3},
        "train.distilled_cross_entropy": {"alpha": 0.5, "temperature": 2.0, "kind": "reverse"},
        "train.tiled_cross_entropy": {
            "logits": jm.train.Logits(uniform(1, 8, 4), uniform(4, 16)),
            "targets": jnp.zeros((1, 8), jnp.int32), "smoothing": 0.1, "z": 1e-4, "tile": 8},
        "train.tiled_divergence": {
            "student": jm.train.Logits(uniform(1, 8, 4), uniform(4, 16)),
            "teacher": jm.train.Logits(uniform(1, 8, 8), uniform(8, 16)), "tile": 8,
            "kind": "jsd", "beta": 0.3, "temperature": 2.0},
        "train.keep_logits": {"teacher": jm.train.Logits(uniform(1, 8, 4), uniform(4, 16)), "k": 3,
                              "kind": "sampled", "key": jax.random.key(0), "chunk": 4},
        "train.kept_divergence": {"vocabulary": 16, "kind": "sampled", "temperature": 2.0},
        "train.hidden_loss": {"student": uniform(1, 4, 8), "teacher": uniform(1, 4, 16),
                              "projection": uniform(8, 16)},
        "train.attention_loss": {"student": uniform(1, 2, 4, 4), "teacher": uniform(1, 2, 4, 4)},
        "train.relation_loss": {"student": uniform(1, 4, 8), "teacher": uniform(1, 4, 16),
                                "heads": 2, "causal": True},
        "train.squared_gradients": {"loss": lambda w, x: (w * x).sum(), "params": jnp.ones(2),
                                    "batch": jnp.ones((3, 2))},
        "train.anchor": {"params": params, "fisher": params, "before": None, "decay": 1.0},
        "train.anchor_penalty": {"params": params, "anchor": jm.train.anchor(params, params)},
        "train.adapter_directions": {"pairs": pairs, "rank": 1, "before": None},
        "train.orthogonality": {"pairs": pairs,
                                "directions": jm.train.adapter_directions(pairs, 1)},
        "training.ContinualMemory": {"most": 4096, "pairs": pairs, "vocabulary": 64, "elastic": 1.0,
                                  "orthogonal": 1.0, "rank": 1, "seed": 0},
        "train.Privacy": {"epsilon": 8.0, "delta": 1e-3, "examples": 100, "batch": 10, "steps": 3,
                          "clip": 1.0, "micro": 2},
        "train.private_gradient": {
            "loss": loss, "privacy": jm.train.Privacy(8.0, 1e-3, examples=99, batch=9, steps=3)},
        "train.audited_epsilon": {"seen": [1.0, 2.0], "unseen": [2.0, 3.0], "delta": 1e-5,
                                  "significance": 0.05},
        "train.kl_divergence": {"target": logits, "found": logits},
        "train.next_token_loss": {"x": uniform(1, 8, 4), "head": uniform(4, 16),
                                  "ids": jnp.zeros((1, 8), jnp.int32), "axis": 0, "chunk": 4,
                                  "mask": jnp.ones((1, 8), bool), "smoothing": 0.1, "z": 1e-4},
        "train.polynomial": {"step": 1, "begin": 0, "end": 10, "power": 3.0},
        "train.released": {"loss": lambda w, x: layers(w, x).mean(), "optimizer": sgd, "micro": 2,
                           "clip": 1.0, "held": "int8", "skip_nonfinite": True},
        "train.squared": {"target": logits, "found": logits},
        "train.train_state": {"params": params, "optimizer": sgd, "counts_skipped": True},
        "training.JsonLines": {"path": folder / "scalars.jsonl", "after": 1},
        "training.TensorBoard": {"folder": folder / "events"},
        "training.TrainingOptions": {"steps": 1, "learning_rate": 1e-3, "weight_decay": 0.0,
                                     "clip": 1.0, "evaluate_every": None, "save_every": None,
                                     "seed": 0},
        "training.DistillOptions": {"steps": 1, "batch": 1, "width": 8, "share": 1.0, "kind": "jsd",
                                    "beta": 0.5, "temperature": 1.0, "sampling_temperature": 1.0,
                                    "chunk": 8, "seed": 0},
        "training.distill": {"student": model, "teacher": model, "prompts": [[1, 2]],
                             "options": jm.training.DistillOptions(1, batch=1, width=4),
                             "optimizer": sgd, "texts": None, "progress": None},
        "training.fresh": {"model": model, "seed": 0},
        "training.run": {"model": model, "recipe": jm.Recipe("tiny", "cpu", "train", 1, 8),
                         "batches": jm.data.Batches(jm.data.PackedRows([[1] * 8], 8), 1),
                         "out": folder / "run", "options": jm.training.TrainingOptions(1),
                         "held_out": None, "mesh": None, "limit": None, "writer": None,
                         "progress": None},
        "tune": {"fn": apply, "params": params, "enc": encoded, "batches": batches,
                 "learning_rate": 1e-3, "dense": None, "progress": None},
        "uniform": {"params": params, "density": 0.5, "where": "w"},
        "uses": {"fn": apply, "params": params, "*args": (x,)},
    }  # fmt: skip
    return calls
