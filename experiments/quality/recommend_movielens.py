"""A sequence model of MovieLens in fewer bits, by NDCG@10: writes recommend_movielens.json.

    pip install -e ".[demo]"
    python experiments/quality/recommend_movielens.py ratings.csv DIR

A causal transformer with a table of films that is also its head (SASRec: Kang and McAuley, 2018)
learns each user's films in the order of their times. A user's last film is the test; all films that
were not seen are ranked. Films with fewer than five ratings are left out. The matrices and the
table are encoded, its rows in two parts: the films that are rated most, and the others. GPTQ reads
the users' training films. Bytes are those of all parameters. DIR keeps the trained model.
"""

import collections
import csv
import hashlib
import json
import operator
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.core.pictures import new_figure

LENGTH, BATCH, STEPS, RATE, TOP, LEAST_RATINGS = 64, 32, 400, 2e-3, 10, 5
SIZES = {"width": 64, "ffn": 128, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 32}
WEIGHTS, FREQUENT = ".*/kernel", 0.25
group = lambda bits: jm.Int(bits, group=32, symmetric=bits > 3)
CODECS = {  # bits of the matrices; of the frequent films, a quarter of all; of the others
    **{str(bits): (group(bits),) * 3 for bits in (4, 3, 2)},
    "8": (jm.Int(8),) * 3,
    "4, rare films 3": (group(4), group(4), group(3)),
    "4, rare films 2": (group(4), group(4), group(2)),
    "4, frequent films 8, rare films 2": (group(4), jm.Int(8), group(2)),
}


def histories(path: pathlib.Path) -> tuple[list[np.ndarray], int]:
    """(each user's films in order, as numbers from 1, the most frequent; the numbers, with 0)."""
    with path.open(encoding="utf-8") as file:
        fields = operator.itemgetter("userId", "timestamp", "movieId")
        rows = sorted(tuple(map(int, fields(row))) for row in csv.DictReader(file))
    counts = collections.Counter(film for *_, film in rows)
    films = [film for film, count in counts.most_common() if count >= LEAST_RATINGS]
    number, by_user = {film: i + 1 for i, film in enumerate(films)}, collections.defaultdict(list)
    for user, _, film in rows:
        by_user[user] += [number[film]] if film in number else []
    return [np.array(x, np.int32) for x in by_user.values() if len(x) >= 5], len(films) + 1


def windows(users: list[np.ndarray]) -> np.ndarray:
    """The training films of all users in rows (n, LENGTH + 1), filled up with 0 at the end."""
    parts = [x[i:-1][: LENGTH + 1] for x in users for i in range(0, len(x) - 2, LENGTH)]
    return np.stack([np.pad(part, (0, LENGTH + 1 - len(part))) for part in parts])


def trained(model: jm.models.Model, rows: np.ndarray) -> dict:
    """The params after `STEPS` of Adam; films that fill a row up do not count."""
    optimizer = optax.adamw(optax.cosine_decay_schedule(RATE, STEPS), weight_decay=0.05)

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            logits, films = model.apply(params, batch[:, :-1]), batch[:, 1:]
            found = optax.softmax_cross_entropy_with_integer_labels(logits, films)
            return found.mean(where=films > 0)

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = model.params, optimizer.init(model.params)
    for few in np.random.default_rng(0).integers(0, len(rows), (STEPS, BATCH)):
        params, state = step(params, state, rows[few])
    return params


def ndcg(run, params: dict, users: list[np.ndarray]) -> float:
    """The mean NDCG@10 of each user's last film among those not seen: 1 / log2(1 + rank), or 0."""
    found = []
    for few in (users[i : i + BATCH] for i in range(0, len(users), BATCH)):
        seen = [films[:-1][-LENGTH:] for films in few]
        ids = np.stack([np.pad(films, (0, LENGTH - len(films))) for films in seen])
        last = [len(films) - 1 for films in seen]
        for films, scores in zip(few, np.array(run(params, ids)[np.arange(len(few)), last])):
            target = scores[films[-1]]
            scores[[0, *films[:-1]]] = -np.inf
            rank = 1 + int((scores > target).sum())
            found.append(1 / np.log2(1 + rank) if rank <= TOP else 0.0)
    return float(np.mean(found))


def encoded(params: dict, codecs: tuple, stats: dict | None, uses: dict) -> tuple[dict, int]:
    """(the decoded params, their bytes as codes); the table's rows are encoded in two parts."""
    matrix, frequent, others = codecs if stats is None else map(jm.Search, codecs)
    matrix = matrix if stats is None else jm.GPTQ(matrix)
    table, rest = params["embed"]["embedding"], {k: v for k, v in params.items() if k != "embed"}
    rest = jm.encode(rest, jm.choose(rest, {WEIGHTS: matrix}), uses=uses, stats=stats)
    cut = int(FREQUENT * len(table))
    parts = [frequent.encode(table[:cut]), others.encode(table[cut:])]
    whole = jnp.concatenate(jm.decode(parts))
    return {**jm.decode(rest), "embed": {"embedding": whole}}, jm.nbytes([rest, parts])


def main() -> None:
    ratings, keep = map(pathlib.Path, sys.argv[1:])
    users, films = histories(ratings)
    rows = windows(users)
    config = llama.Config(vocab=films, context=LENGTH, tied=True, **SIZES)
    model = jm.training.fresh(jm.models.Model(config, None, None, "SASRec of MovieLens"), seed=0)
    if not (kept := keep / "recommend.jm").exists():
        jm.save(kept, trained(model, rows))
    params = jm.load(kept)
    batches = [(jnp.asarray(few),) for few in rows[: 8 * BATCH, :-1].reshape(8, BATCH, LENGTH)]
    stats, uses = jm.stats(model.apply, params, batches), jm.uses(model.apply, params, *batches[0])
    run, whole = jax.jit(model.apply), jm.nbytes(params)
    results = {
        "command": "python experiments/quality/recommend_movielens.py ratings.csv DIR",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": 0,
        "ratings_sha256": hashlib.sha256(ratings.read_bytes()).hexdigest(),
        "users": len(users),
        "films": films - 1,
        "dense": {"bytes": whole, "ndcg@10": (dense := ndcg(run, params, users))},
        "rows": {},
    }
    for bits, codecs in CODECS.items():
        for name, calibrated in (("RTN", None), ("GPTQ", stats)):
            decoded, size = encoded(params, codecs, calibrated, uses)
            row = {"bytes": size, "ndcg@10": ndcg(run, decoded, users)}
            row |= {"share_of_bytes": size / whole, "share_of_ndcg": row["ndcg@10"] / dense}
            results["rows"][f"{bits} bits {name}"] = row
            print(bits, name, row, flush=True)
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    axes = (figure := new_figure(6, 4)).subplots()  # beside the JSON
    for name, row in results["rows"].items():
        axes.plot(row["share_of_bytes"], row["share_of_ndcg"], "C0o" if "RTN" in name else "C1s")
    axes.set(xlabel="bytes, of dense", ylabel="NDCG@10, of dense (squares: GPTQ)")
    figure.savefig(path.with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    main()
