"""llama.cpp opens each type of GGUF file that we write, and writes the tokens that we write."""

import json
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import jaxmem as jm
from jaxmem.architectures import llama

SCRIPT = pathlib.Path(__file__).with_name("llama_cpp_greedy.mjs")
SIZES = dict(vocab=257, width=256, ffn=256, layers=1, heads=4, kv_heads=4, head_dim=64, context=64)
CODECS = {f"Q{bits}_K": jm.KQuant(bits) for bits in (2, 3, 4, 5, 6)}
CODECS |= {f"Q{bits}_0": jm.Int(bits, group=32) for bits in (4, 5, 8)}
CODECS |= {f"Q{bits}_1": jm.Affine(bits, group=32) for bits in (4, 5)}
PROMPTS, TOKENS = 32, 32


def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["</s>"])
    return made


def random_model():
    config = llama.Config(**SIZES, eos=(256,))
    init = llama.module(config).init
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    draw = lambda x: (rng.standard_normal(x.shape) / x.shape[-1] ** 0.5).astype(np.float32)
    params = jax.tree.map(draw, shapes)
    return jm.models.Model(config, params, tokenizer(), "random")


def ours(model):
    """Params -> ids (PROMPTS, 1 + TOKENS) from one token each, and how sure all of them are."""

    def run(params):
        first = jnp.arange(PROMPTS, dtype=jnp.int32)[:, None]
        ids = jnp.pad(first, ((0, 0), (0, TOKENS)))

        def step(i, ids):
            logits = jnp.take(model.apply(params, ids), i, axis=1)
            return ids.at[:, i + 1].set(logits.argmax(-1).astype(jnp.int32))

        ids = jax.lax.fori_loop(0, TOKENS, step, ids)
        logits = model.apply(params, ids)[:, :-1]
        second, best = jnp.moveaxis(jax.lax.top_k(logits, 2)[0], -1, 0)[::-1]
        return ids, ((best - second) / logits.std(-1)).min(-1)

    return jax.jit(run)


@pytest.mark.client
def test_llama_cpp_writes_our_tokens_from_every_type_of_block(llama_cpp, tmp_path):
    model, tasks, texts = random_model(), [], {}
    greedy = ours(model)
    for kind, codec in CODECS.items():
        rules = {".*kernel": codec, ".*embedding": jm.Int(8, group=32)}
        plan = jm.choose(model.tensors, rules)
        path = tmp_path / f"{kind}.gguf"
        written = jm.interop.to_gguf(path, model, jm.encode(model.tensors, plan))
        assert written.types["layers/mlp/up/kernel"] == kind and not written.decoded
        ids, certainty = greedy(jm.models.load(path).params)
        surest = int(certainty.argmax())
        texts[kind] = ids[surest, 1:].tolist()
        tasks += [path, json.dumps([int(ids[surest, 0])]), str(TOKENS)]
    run = ["node", SCRIPT, llama_cpp, *tasks]
    done = subprocess.run(run, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert dict(zip(CODECS, map(json.loads, lines), strict=True)) == texts
