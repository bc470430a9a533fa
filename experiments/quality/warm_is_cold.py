"""Prompts whose beginning a cache had against the same ones read whole: warm_is_cold.json.

    python experiments/quality/warm_is_cold.py --requests 10000
    python experiments/quality/warm_is_cold.py --model MODEL --requests 20

Each prompt is one that came before, some of its beginning, or a new one; it is read through a cache
of few device pages, a little host memory and files, and again without a cache, by the same program.
A MODEL that `jm.models.load` downloads is in f32; the hash of its file is in the JSON.
The logits of its last chunk are compared bit by bit. What the JSON has is gone on with.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import random
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.models import downloading

JSON = pathlib.Path(__file__).with_suffix(".json")
SMALL = llama.Config(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)


def small_model():
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    shapes = jax.eval_shape(llama.module(SMALL).init, jax.random.key(0), ids)["params"]
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda x: jnp.asarray(draw(x.shape, np.float32) * 0.3), shapes)
    return jm.models.Model(SMALL, params, None, "random weights, seed 0")


class Reader:
    """Reads prompts into row 0 of a pool by one program, with a cache or with none."""

    def __init__(self, model, bits, size, chunk, most):
        self.model, self.size, self.chunk, self.most = model, size, chunk, most
        pages = jm.Pages(bits=None if bits == 16 else bits, size=size)
        self.empty = pages.empty(model.config, 4 * most, 1, most, dtype=jnp.bfloat16)
        page = jax.eval_shape(jm.pages.take, self.empty, jnp.zeros(1, jnp.int32))
        self.page_bytes = jm.nbytes(page)

        def read(params, pool, ids, tokens):
            pool, ok = jm.pages.alloc(pool, tokens[None])
            logits, pool = model.apply(params, ids, pool, rows=jnp.zeros(1, jnp.int32))
            return logits, pool, ok.all()

        self.program = jax.jit(read)
        self.put, self.take = jax.jit(jm.pages.put), jax.jit(jm.pages.take)
        self.attach, self.drop, self.hold, self.release = map(
            jax.jit, (jm.pages.attach, jm.pages.drop, jm.pages.hold, jm.pages.release)
        )
        self.reserve = jax.jit(lambda pool, count: jm.pages.reserve(pool, count, most=most))

    def padded(self, ids):
        return np.array([*ids, *[0] * (self.most - len(ids))], np.int32)

    def read(self, pool, prompt, cache=None):
        """(logits of the last chunk, tier of the hit, pool without the row)."""
        hit = cache.match(prompt) if cache else jm.PrefixHit(0, (), (), None)
        pool, new, _ = self.reserve(pool, len(hit.blobs))
        new = [int(i) for i in np.asarray(new) if i]
        for page, blob in zip(new, hit.blobs):
            pool = self.put(pool, np.array([page], np.int32), blob)
        pool, _ = self.attach(pool, 0, self.padded([*hit.ids, *new]), hit.tokens)
        pool = self.drop(pool, self.padded(new))
        for start in range(hit.tokens, len(prompt), self.chunk):
            ids = np.asarray(prompt[start : start + self.chunk], np.int32)
            row = np.pad(ids, (0, self.chunk - len(ids)))[None]
            logits, pool, ok = self.program(self.model.params, pool, row, jnp.int32(len(ids)))
            assert ok, "the pool has no page left"
        if cache:
            take = lambda page: jax.device_get(self.take(pool, np.array([page], np.int32)))
            pages = np.asarray(pool.table)[0, : len(prompt) // self.size]
            moves = cache.insert(prompt, pages, take=take)
            pool = self.hold(pool, self.padded(moves.held))
            pool = self.drop(pool, self.padded(moves.freed))
        return np.asarray(logits)[0, : len(ids)], hit.tier, self.release(pool, np.array([0]))


def prompts(seed, vocab, longest):
    """Prompts without end; of three, two begin like one of the last 40."""
    draw, before = random.Random(seed), []
    while True:
        begin = (
            draw.choice(before)[: draw.randrange(longest)]
            if before and draw.random() < 0.67
            else []
        )
        rest = draw.randrange(1, longest - len(begin) + 1)
        tokens = [*begin, *(draw.randrange(vocab) for _ in range(rest))]
        before = [*before[-39:], tokens]
        yield np.array(tokens, np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--bits", type=int, nargs="*", default=[16, 8, 4])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model, of_model = small_model(), {}
    if options.model:
        model = jm.models.load(options.model, dtype="float32")
        file = downloading.fetch(options.model)
        of_model = {"model_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    size, chunk, most = (64, 128, 16) if options.model else (8, 16, 16)
    every = 5 if options.model else 50  # requests between two writings of the JSON
    for bits in options.bits:
        result = json.loads(JSON.read_text()) if JSON.exists() else {}
        name = f"{options.model or 'small'}, {bits} bits"
        counts = collections.Counter(result.get(name, {}).get("counts", {}))
        done, reader = counts["requests"], Reader(model, bits, size, chunk, most)
        stream = prompts(options.seed + done, model.config.vocab, most * size - 1)
        with tempfile.TemporaryDirectory() as folder:
            limits = {"host": 8 * reader.page_bytes, "disk": 100 * reader.page_bytes + 10**6}
            cache = jm.Prefixes(most, **limits, path=folder, size=size, chunk=chunk, of=bits)
            pool = reader.empty
            while counts["requests"] < options.requests:
                prompt = next(stream)
                warm, tier, pool = reader.read(pool, prompt, cache)
                cold, _, _ = reader.read(reader.empty, prompt)
                differing = int((warm.view(np.uint32) != cold.view(np.uint32)).sum())
                counts.update({"requests": 1, str(tier): 1, "differing logits": differing})
                if counts["requests"] % every and counts["requests"] < options.requests:
                    continue
                setting = {"jax": jax.__version__, "backend": jax.default_backend()}
                setting |= {
                    "seed": options.seed,
                    "model": model.source,
                    "page": size,
                    "chunk": chunk,
                } | of_model
                allocated = jm.pages.usage(pool).allocated
                result[name] = {"setting": setting, "counts": counts, "pages": allocated}
                JSON.write_text(json.dumps(result, indent=1) + "\n")
                print(name, dict(counts), flush=True)


if __name__ == "__main__":
    main()
