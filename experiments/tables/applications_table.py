"""Writes the tables of docs/applications.md from the experiments' JSON.

python experiments/tables/applications_table.py
"""

from pages import fill, read


def rows_of(name):
    return read(name)["rows"].items()


def bits(r):
    return f"{r['bits_per_weight']:.2f}" if r["bits_per_weight"] else ""


def searches():
    for name, r in rows_of("search_sentiment.json"):
        search, mood = r["search"], r["sentiment"]
        found = f"{search['ndcg@10']:.3f} | {search['overlap_of_10']:.1%}"
        answers = f"{mood['accuracy']:.3f} | {mood['changed']:.1%} | {mood['ece']:.3f}"
        yield f"{name} | {r['bytes']:,} | {bits(r)} | {found} | {answers}"


def texts():
    for name, r in rows_of("summaries_chat.json"):
        cells = [f"{r['summaries']['rouge_l']:.3f} | {r['summaries']['to_dense']:.3f}"]
        cells += [f"{r['answers']['f1']:.3f} | {r['answers']['to_dense']:.3f}"]
        chat = r["chat"]
        cells += [f"{chat['to_dense']:.3f} | {chat['agreed']:.1f} | {chat['same']:.0%}"]
        yield f"{name} | {bits(r)} | {' | '.join(cells)}"


def languages():
    for name, r in rows_of("calibrate_languages.json"):
        kl = [f"{r['kl'][text]['mean']:.3f}" for text in ("wikitext2", "sst2", "tnews", "eprstmt")]
        means = f"{r['kl_en']:.3f} | {r['kl_zh']:.3f} | {r['zh_over_en']:.2f}"
        yield f"{name} | {r['bytes']:,} | {' | '.join(kl)} | {means} | {r['changed']:.0%}"


def headlines():
    for name, r in rows_of("chinese_answers.json"):
        cells = [f"{r['bytes']:,}"]
        for x in (r["tnews"], r["eprstmt"]):
            ways = f"{x['right_to_wrong']} / {x['wrong_to_right']}" if "changed" in x else ""
            share = f"{x['changed']:.1%}" if "changed" in x else ""
            cells.append(f"{x['accuracy']['mean']:.3f} | {share} | {ways}")
        yield f"{name} | {' | '.join(cells)}"


def captions():
    for name, r in rows_of("translate_multi30k.json"):
        scores = f"{r['chrf']:.3f} | {r['bleu']:.3f} | {r['to_dense']:.3f}"
        yield f"{name} | {r['bytes']:,} | {scores} | {r['changed']:.1%} | {r['kl']:.5f}"


def flipped():
    rates = ("1e-05", "0.0001", "0.001")
    cell = lambda x: "" if x["kl"] is None else f"{x['kl']:.4f}"
    for name, r in rows_of("flip_bits.json"):
        for part in ("codes", "scales", "masks"):
            if part in r:
                yield f"{name} | {part} | {' | '.join(cell(r[part][rate]) for rate in rates)}"


TABLES = {
    searches: " | bytes | bits a weight | nDCG@10 | first ten | SST-2 | changed | ECE",
    texts: " | bits a weight | summaries | to dense | answers | to dense | chat to dense | "
    "agreed | same",
    languages: "calibrated on | bytes | WikiText-2 | SST-2 | tnews | eprstmt | English | "
    "Chinese | ratio | changed",
    headlines: " | bytes | tnews | changed | to wrong / right | eprstmt | changed | "
    "to wrong / right",
    captions: " | bytes | chrF | BLEU | to dense | changed | KL",
    flipped: " | part | 1e-5 | 1e-4 | 1e-3",
}


if __name__ == "__main__":
    fill("applications.md", "applications_table.py", TABLES)
