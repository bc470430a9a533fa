"""Our models compute what the reference implementations compute: writes reference_logits.json.

    pip install -e ".[demo]" accelerate torch transformers
    python experiments/quality/reference_logits.py --data FOLDER

FOLDER holds stories260K/ (stories260K.bin, tokenizer.json: the llama2.c checkpoint of that name),
stsb_en_dev.csv (lines of sentence, sentence, score) and wikitext2_valid.txt.
"""

import argparse
import csv
import hashlib
import importlib.metadata
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from scipy.stats import spearmanr

from jaxmem import models
from jaxmem.architectures import bert
from jaxmem.models import downloading
from jaxmem.models.generation import generate

GREEDY_TOKENS = 200


def smollm2(text: str) -> dict:
    """The largest difference of logits over two windows of 512 tokens, with dense f32 weights."""
    model, path = models.load("smollm2-135m"), downloading.fetch("smollm2-135m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    ids = np.asarray(model.tokenizer.encode(text).ids)[: 2 * 512].reshape(2, 512)
    ours = np.asarray(jax.jit(model.apply)(model.params, ids))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    return {
        "sha256": sha256(path),
        "tokens": ids.size,
        "max_abs_logit": float(np.abs(expected).max()),
        "max_abs_logit_difference": float(np.abs(ours - expected).max()),
        "same_most_likely_token": float((ours.argmax(-1) == expected.argmax(-1)).mean()),
    }


def minilm(pairs: list[list[str]]) -> dict:
    """Our hidden states and Spearman correlation of cosine with human scores, against theirs."""
    model, path = models.load("minilm-l6"), downloading.fetch("minilm-l6")
    theirs = transformers.BertModel.from_pretrained(
        path.parent, dtype=torch.float32, attn_implementation="eager"
    )
    apply, difference, vectors = jax.jit(model.apply), 0.0, ([], [])
    model.tokenizer.enable_padding(length=128)
    sentences = [sentence for pair in pairs for sentence in pair[:2]]
    for start in range(0, len(sentences), 64):
        encoded = model.tokenizer.encode_batch(sentences[start : start + 64])
        ids = np.asarray([e.ids for e in encoded])
        mask = np.asarray([e.attention_mask for e in encoded])
        longest = -mask.sum(1).max() // 16 * -16
        ids, mask = ids[:, :longest], mask[:, :longest]
        ours = apply(model.params, ids, mask)
        with torch.no_grad():
            expected = theirs(torch.tensor(ids), torch.tensor(mask)).last_hidden_state
            weight = torch.tensor(mask)[..., None]
            mean = (expected * weight).sum(1) / weight.sum(1)
        differences = np.abs(np.asarray(ours) - expected.numpy())[mask.astype(bool)]
        difference = max(difference, float(differences.max()))
        vectors[0].append(np.asarray(bert.embed(ours, jnp.asarray(mask))))
        vectors[1].append(torch.nn.functional.normalize(mean).numpy())
    scores = [float(pair[2]) for pair in pairs]
    ours, expected = (_spearman(np.concatenate(v), scores) for v in vectors)
    return {
        "sha256": sha256(path),
        "pairs": len(pairs),
        "max_abs_hidden_difference": difference,
        "stsb_dev_spearman": round(ours, 4),
        "stsb_dev_spearman_reference": round(expected, 4),
    }


def stories(path: pathlib.Path) -> dict:
    """Our greedy text, with a KV cache, against that of a plain NumPy loop on the file's floats."""
    model = models.load(path)
    ours = generate(model, "Once upon a time", max_new_tokens=GREEDY_TOKENS)
    start = ours.prompt[0].tolist()
    expected = llama2c_greedy(path, start, GREEDY_TOKENS)
    length = len(ours.ids[0])  # our text ends at the end token, the loop goes on
    return {
        "sha256": sha256(path),
        "tokens": length,
        "greedy_ids_equal": ours.ids[0].tolist() == expected[:length],
        "text": ours.text,
    }


def llama2c_greedy(path: pathlib.Path, ids: list[int], count: int) -> list[int]:
    """`run.c` of llama2.c (Karpathy, 2023) in NumPy, reading the whole prefix at every token."""
    raw = path.read_bytes()
    dim, ffn, layers, heads, kv_heads, vocab, _ = np.frombuffer(raw, np.int32, 7).tolist()
    floats, at = np.frombuffer(raw, np.float32, offset=28), 0
    width = dim // heads

    def read_floats(*shape):
        nonlocal at
        at += int(np.prod(shape))
        return floats[at - int(np.prod(shape)) : at].reshape(shape)

    embed, norm1 = read_floats(vocab, dim), read_floats(layers, dim)
    wq, wk = read_floats(layers, dim, dim), read_floats(layers, kv_heads * width, dim)
    wv, wo = read_floats(layers, kv_heads * width, dim), read_floats(layers, dim, dim)
    norm2, w1 = read_floats(layers, dim), read_floats(layers, ffn, dim)
    w2, w3, last = read_floats(layers, dim, ffn), read_floats(layers, ffn, dim), read_floats(dim)
    norm = lambda x, g: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * g

    def rotate_pairs(x):  # (T, heads, width): neighbours form a pair
        angle = np.arange(len(x))[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
        z = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
        return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)

    ids = list(ids)
    for _ in range(count):
        x = embed[ids]
        steps = len(ids)
        for i in range(layers):
            y = norm(x, norm1[i])
            q = rotate_pairs((y @ wq[i].T).reshape(steps, heads, width))
            k = rotate_pairs((y @ wk[i].T).reshape(steps, kv_heads, width))
            v = (y @ wv[i].T).reshape(steps, kv_heads, width)
            k, v = (np.repeat(a, heads // kv_heads, axis=1) for a in (k, v))
            scores = np.einsum("thw,shw->hts", q, k) / np.sqrt(width)
            scores = np.where(np.tri(steps, dtype=bool), scores, -np.inf)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            x = x + np.einsum("hts,shw->thw", shares, v).reshape(steps, dim) @ wo[i].T
            y = norm(x, norm2[i])
            gate = y @ w1[i].T
            x = x + (gate / (1 + np.exp(-gate)) * (y @ w3[i].T)) @ w2[i].T
        ids.append(int((norm(x[-1], last) @ embed.T).argmax()))
    return ids[-count:]


def sha256(path: pathlib.Path) -> str:
    """The file's checksum."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _spearman(vectors: np.ndarray, scores: list[float]) -> float:
    cosine = (vectors[::2] * vectors[1::2]).sum(-1)
    return float(spearmanr(cosine, scores).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    data = parser.parse_args().data
    with (data / "stsb_en_dev.csv").open(newline="", encoding="utf-8") as file:
        pairs = list(csv.reader(file))
    text = (data / "wikitext2_valid.txt").read_text(encoding="utf-8")
    result = {
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "torch", "transformers")
        },
        "backend": jax.default_backend(),
        "smollm2-135m": smollm2(text[: len(text) // 8]),
        "minilm-l6": minilm(pairs),
        "stories260K": stories(data / "stories260K" / "stories260K.bin"),
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
