"""The part of peft_lora.py that torch runs: PEFT trains the first pairs, and both are measured.

python experiments/quality/peft_lora_torch.py FOLDER
"""

import argparse
import importlib.metadata
import json
import math
import pathlib
import time

import numpy as np
import torch
import transformers
from peft import PeftModel

PATH = pathlib.Path(__file__).with_name("peft_lora.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    args = parser.parse_args()
    arrays = np.load(args.folder / "rows.npz")
    windows = torch.tensor(arrays["windows"], dtype=torch.long)
    rate, warm_up = float(arrays["rate"]), int(arrays["warm_up"])

    def adapted(name: str, **options) -> PeftModel:
        base = transformers.AutoModelForCausalLM.from_pretrained(
            args.folder / "base", dtype=torch.float32
        )
        return PeftModel.from_pretrained(base, args.folder / name, **options)

    def perplexity(model: PeftModel) -> float:
        with torch.no_grad():
            losses = [model(input_ids=x, labels=x).loss.item() for x in windows.split(4)]
        return math.exp(sum(losses) / len(losses))

    ours = perplexity(adapted("ours").eval())
    print("ours", ours, flush=True)
    model = adapted("start", is_trainable=True)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    rise = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / max(1, warm_up))
    )
    begin, losses = time.perf_counter(), []
    for i, rows in enumerate(torch.tensor(arrays["steps"], dtype=torch.long)):
        optimizer.zero_grad()
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        rise.step()
        if i % 10 == 9:
            losses.append(loss.item())
            print("step", i + 1, f"{loss.item():.4f}", time.strftime("%X"), flush=True)
    seconds = time.perf_counter() - begin
    model.eval().save_pretrained(args.folder / "theirs")
    theirs = perplexity(model)
    found = json.loads(PATH.read_text())
    names = ("torch", "transformers", "peft")
    found["versions"] = {name: importlib.metadata.version(name) for name in names}
    found["rows"].setdefault(f"{rate:g}, warm-up {warm_up}", {}).update(
        perplexity_here=ours,
        perplexity_of_peft=theirs,
        difference=ours / theirs - 1,
        losses_of_peft=losses,
        seconds_of_peft=seconds,
    )
    PATH.write_text(json.dumps(found, indent=1) + "\n")
    print(ours, theirs, ours / theirs - 1)


if __name__ == "__main__":
    main()
