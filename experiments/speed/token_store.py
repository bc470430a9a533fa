"""Bytes and speed of token stores, and the padding of packed texts: writes token_store.json.

    python experiments/speed/token_store.py --texts wikitext2_valid.txt tinyshakespeare.txt \
        --sentences sst2_train.tsv

The tokens are those of smollm2-135m, all texts one after the other. Each store is read as a whole
on one thread, seven times; its speed is that of the fastest, by the processor's clock. Beside ours
stand uint16, which nanoGPT keeps, and uint16 by zstd at level 3 in blocks of 4,096 tokens, as MDS
does. SENTENCES has a sentence and a label a line; a whole number of rows of 512 tokens holds them.
"""

import argparse
import json
import pathlib
import platform
import tempfile
import time

import numpy as np
import zstandard

import jaxmem as jm
from jaxmem.formats import gguf, tokenizers
from jaxmem.models import downloading

OUT = pathlib.Path(__file__).with_suffix(".json")
BLOCK = 4096


def store(ids: np.ndarray, folder: pathlib.Path, method: str, block: int) -> dict:
    """A store of ours: its bytes, and the time to write, to read all and to read anywhere."""
    path = folder / "t"
    start = time.process_time()
    nbytes = jm.data.write(path, ids, block=block, method=method)
    wrote, tokens = time.process_time() - start, jm.data.Tokens(path)
    seconds = []
    for _ in range(7):
        start = time.process_time()
        found = tokens[:]
        seconds.append(time.process_time() - start)
    assert np.array_equal(found, ids)
    places = np.random.default_rng(0).integers(0, len(ids) - 64, 200).tolist()
    start = time.process_time()
    for at in places:
        tokens[at : at + 64]
    anywhere = (time.process_time() - start) / len(places)
    speed = {"write_mtokens_per_s": len(ids) / wrote / 1e6}
    speed |= {"read_mtokens_per_s": len(ids) / min(seconds) / 1e6}
    return row(nbytes, ids) | speed | {"read_64_anywhere_us": anywhere * 1e6}


def row(nbytes: float, ids: np.ndarray) -> dict:
    """A size, as bits of a token and beside uint16."""
    bits = 8 * nbytes / len(ids)
    return {"bytes": nbytes, "bits_per_token": bits, "times_under_uint16": 16 / bits}


def rounded(tree: dict) -> dict:
    return {k: rounded(v) if isinstance(v, dict) else round(v, 4) for k, v in tree.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--sentences", type=pathlib.Path, required=True)
    args = parser.parse_args()
    tokenizer = tokenizers.from_gguf(gguf.gguf(downloading.fetch("smollm2-135m")))
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    ids = np.concatenate([np.array(encode(path.read_text()), np.int32) for path in args.texts])

    raw = [ids[i : i + BLOCK].astype("<u2").tobytes() for i in range(0, len(ids), BLOCK)]
    zstd3 = zstandard.ZstdCompressor(level=3)
    codes = jm.data.lzw_encode(ids, int(ids.max()) + 1, most=1 << 24)
    bits = np.ceil(np.log2(np.arange(len(codes)) + int(ids.max()) + 2))  # each grows with the table
    stores = {
        "uint16": row(2 * len(ids), ids),
        "uint16, zstd 3 by block": row(sum(len(zstd3.compress(b)) for b in raw), ids),
        "LZW, one stream": row(float(bits.sum()) / 8, ids),
    }
    with tempfile.TemporaryDirectory() as folder:
        for method in ("deflate", "zstd"):
            for name, block in (("by block", BLOCK), ("one stream", 1 << 22)):
                stores[f"ours, {method}, {name}"] = store(ids, pathlib.Path(folder), method, block)
    peer = stores["uint16, zstd 3 by block"]["bytes"]
    for name, found in stores.items():
        if name.startswith("ours"):
            found["times_under_zstd_3_by_block"] = peer / found["bytes"]

    lines = args.sentences.read_text().splitlines()
    lengths = [len(encode(line.split("\t")[0])) + 1 for line in lines]  # and a token that ends it
    start = time.process_time()
    packing = jm.data.pack(lengths, 512)
    packed = {"sentences": len(lengths), "width": 512, "rows": len(packing)}
    packed |= {"tokens": sum(lengths), "least_rows": -(-sum(lengths) // 512)}
    packed |= {"waste": packing.waste, "waste_of_one_a_row": 1 - np.mean(lengths) / max(lengths)}
    packed |= {"seconds": time.process_time() - start}

    result = {
        "command": "python experiments/speed/token_store.py --texts "
        f"{' '.join(path.name for path in args.texts)} --sentences {args.sentences.name}",
        "jaxmem": jm.__version__,
        "numpy": np.__version__,
        "zstandard": zstandard.__version__,
        "machine": f"{platform.machine()}, one thread; no JAX program runs",
        "seed": 0,
        "tokenizer": "smollm2-135m",
        "tokens": len(ids),
        "block": BLOCK,
        "stores": rounded(stores),
        "packing": rounded(packed),
    }
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(OUT.read_text())


if __name__ == "__main__":
    main()
