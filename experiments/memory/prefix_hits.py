"""Hit rates of prefix caches by policy and size, on two traces and one workload: prefix_hits.json.

    python experiments/memory/prefix_hits.py --traces ../shared/data/traces
    python experiments/memory/prefix_hits.py --traces ... --referee VENV/bin/python

The traces are Mooncake's (Apache-2.0): requests with the hashes of their blocks of 512 tokens. The
workload draws 2,000 prompts: one of 64 system prompts of 16 pages by Zipf's law, and 5 pages of its
own. A hit is a token of the longest prefix that the cache holds. "optimum" evicts what is needed
again last, and takes in only what is needed sooner. "sorted" is the batch in depth-first order with
a cache of its longest prompt. The referee is a Python with kvcache-simulator==0.1.3: it counts the
last half of the requests, and so does "last half" here. What the JSON has is not measured again.
"""

import argparse
import hashlib
import itertools
import json
import pathlib
import random
import subprocess

import jax

from jaxmem.kv_cache.eviction_policy import policy_named
from jaxmem.kv_cache.prefix_index import PrefixIndex

BLOCK = 512
SIZES = (500_000, 1_500_000, 5_000_000, 15_000_000)  # tokens
ZIPF_PAGES = (200, 500, 1_000)
POLICIES = ("lru", "aged", "auto")
JSON = pathlib.Path(__file__).with_suffix(".json")
REFEREE = """
import json, sys
from kvcache_sim.plan import build_execution_plan
from kvcache_sim.policies import simulate_policy
from kvcache_sim.trace import parse_trace_file
plan = build_execution_plan(parse_trace_file(sys.argv[1], block_size=512))
rate = lambda policy: simulate_policy(plan, policy, int(sys.argv[2])).hitRate
print(json.dumps({"lru": rate("lru"), "optimum": rate("optimal")}))
"""


def chains(paths, tokens):
    """[(keys of the chains of a request's blocks, tokens of each block)]."""
    edges, requests = {}, []
    for path, count in zip(paths, tokens):
        node, keys = 0, []
        for block in path:
            node = edges.setdefault((node, block), len(edges) + 1)
            keys.append(node)
        requests.append((keys, count))
    return requests


def trace(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    block = lambda row, i: max(1, min(BLOCK, row["input_length"] - i * BLOCK))
    tokens = [[block(row, i) for i in range(len(row["hash_ids"]))] for row in rows]
    return [row["hash_ids"] for row in rows], tokens


def zipf(seed=0, prompts=64, pages=16, own=5, requests=2_000):
    draw, fresh = random.Random(seed), itertools.count(prompts * pages)
    weights = [1 / (i + 1) for i in range(prompts)]
    chosen = draw.choices(range(prompts), weights, k=requests)
    begin = lambda p: [p * pages + i for i in range(pages)]
    paths = [begin(p) + list(itertools.islice(fresh, own)) for p in chosen]
    return paths, [[1] * (pages + own) for _ in paths]


def rates(requests, found):
    """Tokens found of those asked: in all requests, and in their last half."""
    hits = [sum(tokens[:n]) for (_, tokens), n in zip(requests, found)]
    asked = [sum(tokens) for _, tokens in requests]
    half = len(requests) // 2
    return {"all": sum(hits) / sum(asked), "last half": sum(hits[half:]) / sum(asked[half:])}


def by_policy(requests, name, pages):
    index = PrefixIndex(pages, policy_named(name, pages))
    return rates(requests, [index.fetch(keys) for keys, _ in requests])


class NextUse:
    """The policy of one who knows the future: what is needed again last goes first."""

    order = 0

    def __init__(self, requests):
        self.next, self.turn, self.scores = [], -1, {}
        last, never = {}, len(requests)
        for i in range(never - 1, -1, -1):
            self.next.append({key: last.get(key, never) for key in requests[i][0]})
            last |= dict.fromkeys(requests[i][0], i)
        self.next.reverse()

    def asked(self, keys):
        self.turn += 1

    def use(self, key):
        self.scores[key] = -self.next[self.turn][key], -key  # of equal ones the younger chain

    def score(self, key):
        return self.scores[key]

    def evicted(self, key):
        pass

    def forget(self, key):
        self.scores.pop(key, None)


def optimum(requests, pages):
    policy = NextUse(requests)
    index, found = PrefixIndex(pages, policy), []
    for keys, _ in requests:
        policy.asked(keys)
        found.append(index.held(keys))
        for key in keys[: found[-1]]:
            policy.use(key)
            index.touch(key)
        kept = set(keys)
        for i in range(found[-1], len(keys)):
            if index.used >= pages:
                gone = index.tail(kept)
                if gone is None or -policy.score(gone)[0] <= policy.next[policy.turn][keys[i]]:
                    break
                index.remove(gone)
                policy.forget(gone)
            policy.use(keys[i])
            index.add(keys[i], keys[i - 1] if i else None)
    return rates(requests, found)


def in_order(paths, tokens):
    """The batch depth first, with a cache of its longest prompt."""
    order = sorted(range(len(paths)), key=paths.__getitem__)
    requests = chains([paths[i] for i in order], [tokens[i] for i in order])
    longest = max(len(path) for path in paths)
    return {"pages": longest} | {
        name: by_policy(requests, name, longest)["all"] for name in ("lru", "auto")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=pathlib.Path, required=True)
    parser.add_argument("--referee", help="a Python with kvcache-simulator")
    options = parser.parse_args()
    result = json.loads(JSON.read_text()) if JSON.exists() else {}
    result["setting"] = {"jax": jax.__version__, "backend": "none: no model runs", "seed": 0}

    def kept(name, part, measure):
        if part not in result.setdefault(name, {}):
            result[name][part] = measure()
            JSON.write_text(json.dumps(result, indent=1) + "\n")
            print(name, part, result[name][part], flush=True)

    for name in ("zipf", "mooncake_synthetic", "mooncake_conversation"):
        path = options.traces / f"{name}.jsonl"
        paths, tokens = zipf() if name == "zipf" else trace(path)
        requests = chains(paths, tokens)
        if name != "zipf":
            kept(name, "sha256", lambda: hashlib.sha256(path.read_bytes()).hexdigest())  # noqa: B023
        kept(name, "infinite", lambda: by_policy(requests, "lru", 10**9))  # noqa: B023
        kept(name, "sorted", lambda: in_order(paths, tokens))  # noqa: B023
        for size in ZIPF_PAGES if name == "zipf" else SIZES:
            pages = size if name == "zipf" else size // BLOCK
            for policy in POLICIES:
                kept(name, f"{size} {policy}", lambda: by_policy(requests, policy, pages))  # noqa: B023
            kept(name, f"{size} optimum", lambda: optimum(requests, pages))  # noqa: B023
            if options.referee and name != "zipf":
                command = [options.referee, "-c", REFEREE, str(path), str(pages)]
                run = lambda: json.loads(subprocess.check_output(command))  # noqa: B023
                kept(name, f"{size} referee", run)


if __name__ == "__main__":
    main()
