"""Writes the tables of docs/quality.md from the experiments' JSON.

python experiments/tables/quality_table.py
"""

from pages import fill, read

import jaxmem as jm

BASICS = ("RTN", "Search", "HQQ", "numpy GPTQ", "GPTQ")  # rows of methods that build on them follow
TURNS = "GPTQ of a weighted search, 4 turns"
STEP_BEFORE = {  # method: the method that it adds a step to
    "Search": "RTN",
    "HQQ": "RTN",
    "GPTQ": "RTN",
    "GPTQ of a weighted search": "GPTQ",
    TURNS: "GPTQ of a weighted search",
    f"{TURNS}, rank 8": TURNS,
    f"{TURNS}, scales tuned": TURNS,
    f"{TURNS}, by blocks": TURNS,
    f"{TURNS}, by blocks, codes learned": TURNS,
    f"{TURNS}, by blocks, codes learned, scales tuned": f"{TURNS}, by blocks, codes learned",
    "GPTQ, by blocks": "GPTQ",
}
NAME_SUFFIXES = ("", ", control", ", all parameters")


def rows_of(name):
    rows = read(name)["rows"]
    return rows.items() if isinstance(rows, dict) else rows


def interval(estimate):
    return f"{estimate['mean']:.4f} ({estimate['low']:.4f}–{estimate['high']:.4f})"


def quality(r):
    return f"{r['perplexity']['mean']:.2f} | {interval(r['kl'])}"


def integers(*suffixes):
    def order(row):
        bits, _, method = row[0].partition(" bits ")
        place = BASICS.index(method) if method in BASICS else len(BASICS)
        return NAME_SUFFIXES.index(name_suffix(row[0])), -int(bits), place, len(method)

    rows = read("quantize_smollm2.json")["rows"]
    for name, r in sorted(rows.items(), key=order):
        if name_suffix(name) not in suffixes:
            continue
        bits, _, method = name.partition(" bits ")
        method = method.removesuffix(", all parameters")
        cost = f"{r['seconds']:.0f} s | {r['peak_rss'] / 2**30:.1f}" if "seconds" in r else " | "
        kl_gain = gain(rows, name)
        yield f"{bits} | {method} | {r['bits_per_weight']:.3f} | {quality(r)} | {kl_gain} | {cost}"


def blocks():
    return integers("", ", control")


def everything():
    return integers(", all parameters")


def name_suffix(name):
    return next((suffix for suffix in NAME_SUFFIXES[1:] if name.endswith(suffix)), "")


def gain(rows, name):
    """KL that a step takes away, with the interval of the windows' differences."""
    suffix = name_suffix(name)
    bits, _, method = name.removesuffix(suffix).partition(" bits ")
    before = rows.get(f"{bits} bits {STEP_BEFORE.get(method)}{suffix}", {}).get("kl_by_window")
    after = rows[name].get("kl_by_window")
    if not before or not after:
        return ""
    before, after = (jm.Evaluation(1, 1, kl_by_window=kl) for kl in (before, after))
    kl_gain = after.gain(before)
    return f"{kl_gain.mean:.4f} ({kl_gain.low:.4f}, {kl_gain.high:.4f})"


def encoder():
    for name, r in rows_of("quantize_minilm.json"):
        scores = f"{r['spearman']['mean']:.4f} | {r['cosine']['mean']:.4f}"
        yield f"{name} | {r['bits_per_weight'] or 32:.3f} | {scores}"


def encoders():
    order = lambda row: (row[0].split(",")[0], -row[1]["bits"])
    for name, r in sorted(rows_of("fit_encoders.json"), key=order):
        scores = f"{r['pairs']:,} | {interval(r['spearman'])} | {r['cosine']['mean']:.4f}"
        yield f"{name} | {r['bytes']:,} | {r['bits']:.2f} | {scores}"


def phonemes():
    for r in rows_of("pronounce_g2p.json"):
        yield f"{r['name']} | {r['bytes']:,} | {r['bits']:.2f} | {r['phoneme_error']:.2%}"


def translations():
    for name, r in rows_of("translate_cn2en.json"):
        yield f"{name} | {r['bytes']:,} | {r['bits']:.2f} | {r['kl']:.5f} | {r['same']:.1%}"


def speech():
    spoken = read("transcribe_whisper.json")["spoken"]
    for name, r in rows_of("transcribe_whisper.json"):
        exact = ["no", "yes"]
        said = f"{exact[r['as_spoken']]} | {exact[r['greedy_text'] == spoken]}"
        yield f"{name} | {r['bytes']:,} | {r['bits']:.2f} | {r['kl']:.4f} | {said}"


def cache():
    for name, r in rows_of("kv_cache.json"):
        sizes = f"{r['cache_bytes']:,} | {r['cache_and_temp_bytes']:,}"
        grown_bytes, ratio = r["generation"]["grown_bytes"], r["speed_ratio"]
        yield f"{name} | {sizes} | {grown_bytes:,} | {r['kl']['mean']:.5f} | {ratio:.2f}×"


def planes():
    for name, r in rows_of("planes.json"):
        yield f"{name} | {r['bits_per_weight']:.3f} | {quality(r)}"


def pruned():
    order = {"50%": 0, "60%": 1, "70%": 2, "2:4": 3, "4:8": 4}
    results = read("prune_smollm2.json")
    dense = results["rows"][0]["dense_perplexity"]["mean"]
    yield f" | dense | {results['dense_block_bytes']:,} | {dense:.2f} | 0"
    for r in sorted(results["rows"], key=lambda r: order[r["pattern"]]):
        yield f"{r['pattern']} | {r['method']} | {r['block_bytes']:,} | {quality(r)}"


def contest():
    for r in sorted(rows_of("iso_bytes.json"), key=lambda r: -r["bits_per_weight"]):
        basis = {"turned": "rotated", "plain": "as it came"}[r["basis"]]
        yield f"{r['form']} | {basis} | {r['bits_per_weight']:.3f} | {quality(r)}"


def budgets():
    for r in sorted(rows_of("budget_plans.json"), key=lambda r: -r["limit"]):
        plan = f"{r['bytes']:,} | {r['least_bits']} to 8 | by {r['sensitivity']}"
        yield f"{plan} | {interval(r['kl']['before'])} | {interval(r['kl']['after'])}"


def structured():
    peak = read("structured.json")["dense_v5e_peak_bytes"]
    yield f"nothing | | | | | | | {peak / 2**20:.0f} MiB"
    for r in sorted(rows_of("structured.json"), key=lambda r: (r["removed_from"], r["removed"])):
        speed = f"{r['speed']['decode']:.2f}× | {r['speed']['prompt']:.2f}×"
        distillation = f"{r['steps']} steps" if r["steps"] else ""
        removal = f"{r['removed_from']} | {r['removed']:.1%} | {distillation}"
        yield f"{removal} | {quality(r)} | {speed} | {r['v5e_peak_bytes'] / 2**20:.0f} MiB"


CARDS = " | bytes | STS-B | SST-2 | changed | to wrong / right | typos | ECE | ρ | same top word"
TEXT_CARDS = " | bytes | KL | changed | to wrong / right | CrowS-Pairs | typos | ρ | same top word"
CARD_ORDER = ("RTN", "GPTQ", "%", "2:4", "narrower")


def cards_of(model, full=False):
    """(Name, row) of a model's cards: the most bits first, then what is pruned."""
    kind = lambda name: next(i for i, end in enumerate(CARD_ORDER) if name.endswith(end))
    rows = read("card_table.json")["models"][model]["rows"]
    rows = {name.removesuffix(" full"): r for name, r in rows.items() if "tasks" in r
            and name.endswith(" full") == full}  # fmt: skip
    bits = lambda name: float(name.split(" bits")[0]) if " bits" in name else 0.0
    return sorted(rows.items(), key=lambda row: (-bits(row[0]), kind(row[0])))


def changed(cells):
    """Answers that changed, and of these how many became wrong and right."""
    counts = (sum(x[way] for x in cells) for way in ("right_to_wrong", "wrong_to_right"))
    return f"{sum(x['changed'] for x in cells) / len(cells):.1%} | {' / '.join(map(str, counts))}"


def card_rank(r):
    found = r["attribution"]["occlusion"]
    return f"{found['rank_correlation']['mean']:.3f} | {found['same_top_word']:.0%}"


def cards():
    for name, r in cards_of("smollm2-135m"):
        tasks = [r["tasks"][task] for task in ("arc_easy", "piqa", "sst2")]
        crows, typos = r["tasks"]["crows_pairs"], r["robustness"]["sst2.typo"]
        few = f"{crows['changed']:.1%} | {typos['changed']:.1%}"
        size = f"{r['space']['resident']:,} | {r['loss']['kl']['mean']:.4f}"
        yield f"{name} | {size} | {changed(tasks)} | {few} | {card_rank(r)}"


def flips():
    for row, r in read("card_table.json")["models"]["smollm2-135m"]["rows"].items():
        if row.endswith(" flips"):
            few = [r[task]["changed"] for task in ("arc_easy", "piqa", "sst2", "winobias")]
            few = " | ".join(f"{x:.1%}" for x in (*few, r["winobias_type2"]["changed"]))
            mean = r["changed_of_all_but_crows_pairs"]
            name = row.removesuffix(" flips")
            yield f"{name} | {few} | {mean:.1%} | {r['crows_pairs']['changed']:.1%}"


def small_cards(full=False):
    for name, r in cards_of("minilm-l6", full):
        stsb, probe = r["tasks"]["stsb"], r["tasks"]["sst2_probe"]
        typos, ece = r["robustness"]["sst2_probe.typo"], r["calibration"]["sst2_probe"]["ece"]
        size = f"{r['space']['resident']:,} | {stsb['score']['mean']:.3f}"
        asked = f"{probe['score']['mean']:.3f} | {changed([probe])} | {typos['changed']:.1%}"
        yield f"{name} | {size} | {asked} | {ece:.3f} | {card_rank(r)}"


def full_cards():
    return small_cards(full=True)


TABLES = {
    flips: " | ARC-Easy | PIQA | SST-2 | WinoBias 1 | WinoBias 2 | mean | CrowS-Pairs",
    cards: TEXT_CARDS,
    small_cards: CARDS,
    full_cards: CARDS,
    blocks: "bits | method | bits a weight | perplexity | KL | gain of the step | took | GiB",
    everything: "bits | method | bits a weight | perplexity | KL | gain of the step | took | GiB",
    encoder: " | bits a weight | Spearman | cosine",
    encoders: " | bytes | bits a weight | pairs | Spearman | cosine",
    phonemes: " | bytes | bits a weight | phoneme error",
    translations: " | bytes | bits a weight | KL | same",
    speech: " | bytes | bits a weight | KL | with 5 beams | greedy",
    cache: "cache | bytes | with a step's temporaries | grown | KL | speed",
    planes: " | bits a weight | perplexity | KL",
    pruned: "pattern | method | bytes | perplexity | KL",
    contest: "form | basis | bits a weight | perplexity | KL",
    budgets: "bytes | bits | weighed | KL where it calibrates | KL",
    structured: "removed | of the parameters | distilled | perplexity | KL | decode | prompt | v5e",
}


if __name__ == "__main__":
    fill("quality.md", "quality_table.py", TABLES)
