"""A student that learns from a file of kept logits, beside one of all logits: logit_cache.json.

    pip install -e ".[demo]"
    python experiments/quality/logit_cache.py --stories FOLDER --text TEXT

The teacher is stories260K (512 ids; FOLDER holds its llama2.c checkpoint and tokenizer.json), the
student a new Llama of three quarters of its width. It takes STEPS steps of Adam on the first nine
tenths of TEXT, by the forward KL to the teacher, from all logits or from a file with K of each
token. The loss is the cross entropy of the last tenth. All students begin with the same weights and
see the same batches. `file_bytes` are of the whole file; `of_vocabularies` are the bytes of a kept
logit of other vocabularies, in rows of 512 tokens, which the values do not change. A row that is in
the file is not measured again.
"""

import argparse
import hashlib
import json
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.data import kept_codes
from jaxmem.io.atomic import write_whole
from jaxmem.planner.model_head import head_matrix, hidden

STEPS, BATCH, WIDTH, RATE, SEED = 80, 8, 128, 3e-3, 0
ROWS = {f"{kind} {k}": (kind, k) for k in (64, 16) for kind in ("top", "sampled")}
VOCABULARIES = [(49_152, 64), (49_152, 16), (128_256, 64), (128_256, 16), (256_000, 64)]
PATH = pathlib.Path(__file__).with_suffix(".json")


def logits(model, params, ids):
    head, axis = head_matrix(model.config, params)
    return jm.train.Logits(hidden(model.config, params, ids), head, axis=axis)


def trained(student, rows, loss, extra):
    """The params after STEPS steps of loss(student's logits, *extra(rows of the step))."""
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, RATE, 20, STEPS))

    @jax.jit
    def step(params, state, ids, *more):
        mean = lambda p: loss(logits(student, p, ids), *more).mean()
        updates, state = optimizer.update(jax.grad(mean)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = student.params
    state, random = optimizer.init(params), np.random.default_rng(SEED)
    for _ in range(STEPS):
        chosen = random.integers(0, len(rows), BATCH)
        ids = jnp.asarray(rows[chosen])
        params, state = step(params, state, ids, *extra(chosen, ids))
    return params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("stories", "text"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args = parser.parse_args()
    source = args.stories / "stories260K.bin"
    teacher = jm.models.load(source)
    text = args.text.read_text(encoding="utf-8")
    ids = np.asarray(teacher.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    rows = ids[: len(ids) // WIDTH * WIDTH].reshape(-1, WIDTH)
    rows, held_out = rows[: len(rows) * 9 // 10], jnp.asarray(rows[len(rows) * 9 // 10 :])
    sizes = {"width": 48, "ffn": 128, "layers": 5, "heads": 6, "kv_heads": 3, "head_dim": 8}
    config = llama.Config(vocab=512, **sizes)
    blank = jm.models.Model(config, llama.module(config), None, "student")
    student = jm.training.fresh(blank, seed=SEED)
    results = {
        "command": "python experiments/quality/logit_cache.py --stories FOLDER --text TEXT",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": SEED,
        "model": f"stories260K sha256 {hashlib.sha256(source.read_bytes()).hexdigest()}",
        "text": args.text.name,
        "steps": STEPS,
        "of_vocabularies": [
            {"vocabulary": v, "k": k, "bytes": (kept_codes.id_nbytes(k, v) + k + 2 + 4 / 512) / k}
            for v, k in VOCABULARIES
        ],
        "rows": json.loads(PATH.read_text())["rows"] if PATH.exists() else {},
    }

    @jax.jit
    def held_out_loss(params):
        output = logits(student, params, held_out)
        return jm.train.next_token_loss(output.x, output.head, held_out, axis=output.axis)

    def add(name, train):
        if name in results["rows"]:
            return
        start = time.perf_counter()
        params, about = train()
        row = {"loss": float(held_out_loss(params))} | about
        results["rows"][name] = row | {"seconds": round(time.perf_counter() - start, 1)}
        print(name, results["rows"][name], flush=True)
        write_whole(PATH, (json.dumps(results, indent=1) + "\n").encode())

    def from_all():
        divergence = jm.train.teacher_divergence()
        states = jax.jit(lambda ids: logits(teacher, teacher.params, ids).x)
        head, axis = head_matrix(teacher.config, teacher.params)

        def loss(mine, x):
            return jm.train.chunked(divergence, (mine, jm.train.Logits(x, head, axis=axis)))

        return trained(student, rows, loss, lambda _, ids: (states(ids),)), {}

    def from_file(kind, k):
        keep = jax.jit(
            lambda ids, key: jm.train.keep_logits(
                logits(teacher, teacher.params, ids), k, kind=kind, key=key
            )
        )
        keys = jax.random.split(jax.random.key(SEED + 1), len(rows))
        parts = (keep(jnp.asarray(row[None]), key) for row, key in zip(rows, keys))
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "kept")
            size = jm.data.write_kept(path, parts, vocabulary=512, kind=kind, seed=SEED)
            kept = jm.data.KeptLogits(path)
            divergence = jm.train.kept_divergence(**kept.options)

            def said(chosen, _):
                found = [kept[int(i)].values() for i in chosen]
                return [jnp.asarray(np.stack(x)) for x in zip(*found)]

            loss = lambda mine, *more: jm.train.chunked(divergence, mine, *more)
            params = trained(student, rows, loss, said)
        return params, {"file_bytes": size, "bytes_per_logit": size / (rows.size * k)}

    add("all logits", from_all)
    for name, (kind, k) in ROWS.items():
        add(name, lambda kind=kind, k=k: from_file(kind, k))


if __name__ == "__main__":
    main()
