"""write_adapters: what `jaxmem train --task lora` leaves: a folder for PEFT, and a merged model."""

import dataclasses
import pathlib
from typing import Any

import jaxmem as jm

from ..training import Trained
from ..training.training_run import MODEL, PEFT
from .output import Output

MERGED_ROWS = 8  # of the texts: the merged weights are rounded for them, and compared on them


def write_adapters(
    trained: Trained, ids: Any, out: pathlib.Path, output: Output, merge: bool
) -> dict[str, Any]:
    """Writes the adapters below `out`, and with `merge` the merged model; the result is plain data.

    `ids` (rows, tokens) are of the texts that were learnt.
    """
    base, files = dataclasses.replace(trained.model, tensors=trained.base), {}
    try:
        jm.interop.to_peft(out / PEFT, trained.adapters, base)
        files["peft"] = str(out / PEFT)
        output.say(f"PEFT reads {out / PEFT}.")
    except ValueError as error:
        output.say(f"There is no folder for PEFT: {error}.")
    if not merge:
        return files
    batches = [(row[None],) for row in ids[:MERGED_ROWS]]
    with output.step("merging"):
        merged = jm.adapters.merge(trained.base, trained.adapters, fn=base.apply, batches=batches)
    dataclasses.replace(base, tensors=merged.params).save(out / MODEL)
    output.say(f"{merged}. The merged model is in {out / MODEL}.")
    how = {"kl": merged.kl, "nbytes": merged.nbytes, "nbytes_before": merged.nbytes_before}
    return files | {"merged": how | {"out": str(out / MODEL)}}
