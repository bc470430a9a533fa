"""A spoken sentence, written by Whisper-tiny.en: dense, and fitted into 4.5 bits a weight.

    pip install -e ".[demo]"
    pip download --no-deps moonshine-voice==0.1.5
    python experiments/quality/transcribe_whisper.py moonshine_voice*.whl

The figures go into transcribe_whisper.json. The weights (MIT, float16) are a named model. The wheel
holds the sound: a sentence of Samuel Beckett's Worstward Ho. It is written with 5 beams, as Radford
et al. (2022) do, and by the most probable token of each step. `fit` gets no text.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import tempfile
import zipfile

import jax

import jaxmem as jm
from jaxmem.formats.wav import read_wav

NAME, BITS, MOST, BEAMS = "whisper-tiny.en", 4.5, 60, 5
SPOKEN = "Ever tried. Ever failed. No matter. Try again. Fail again. Fail better."
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
            write = functools.partial(jm.models.generate, of_params, sound, max_new_tokens=MOST)
            text = write(beams=jm.models.BeamSearch(BEAMS)).text.strip()
            row = {"bytes": nbytes, "bits": round(8 * nbytes / count, 3), "text": text}
            row |= {"as_spoken": text == SPOKEN, "greedy_text": write().text.strip()}
            rows.append(row)
            print(row, flush=True)
    figures = {
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seed": None,
        "model": model.source,
        "weights": count,
        "beams": BEAMS,
        "spoken": SPOKEN,
        "seconds": len(samples) / rate,
        "rows": rows,
    }
    text = json.dumps(figures, indent=1)
    pathlib.Path(__file__).with_suffix(".json").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
