"""A spoken sentence, written by Whisper-tiny.en: dense, and fitted into 4.5 bits a weight.

    pip install -e ".[demo]"
    pip download --no-deps moonshine-voice==0.1.5
    python experiments/quality/transcribe_whisper.py moonshine_voice*.whl

The figures go into transcribe_whisper.json. The weights (MIT, float16) are a named model. The wheel
holds the sound: a sentence of Samuel Beckett's Worstward Ho. `fit` gets no text.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import tempfile
import zipfile

import jax

import jaxmem as jm
from jaxmem.formats.wav import read_wav

NAME, BITS, MOST = "whisper-tiny.en", 4.5, 60
SOUND = "moonshine_voice/assets/beckett.wav"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sounds", type=zipfile.ZipFile)
    args = parser.parse_args()
    model = jm.models.load(NAME)
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(model.params))
    fitted = jm.fit(model, int(count * BITS / 8))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sound = pathlib.Path(args.sounds.extract(SOUND, folder))
        samples, rate = read_wav(sound)
        for params in (model.params, fitted.params):
            nbytes = jm.nbytes(params)
            of_params = dataclasses.replace(model, tensors=params)
            text = jm.models.generate(of_params, sound, max_new_tokens=MOST).text
            row = {"bytes": nbytes, "bits": round(8 * nbytes / count, 3), "text": text.strip()}
            rows.append(row)
            print(row, flush=True)
    figures = {
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": None,
        "model": model.source,
        "weights": count,
        "seconds": len(samples) / rate,
        "rows": rows,
    }
    text = json.dumps(figures, indent=1)
    pathlib.Path(__file__).with_suffix(".json").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
