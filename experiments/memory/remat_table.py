"""Bytes and seconds of each remat policy for eight layers, by two compilers: remat_table.json.

    pip install -e ".[demo,tpu,gpu]"
    python experiments/memory/remat_table.py

The program is one step of Adam on eight Llama layers of width 2,048 and 4 x 2,048 tokens, with
everything in bfloat16 and the state donated. Nothing is run. `cost_seconds` is the estimate of a
step (flops and traffic over published peaks) plus the transfer of offloaded arrays to the host and
back. `chosen` names the policies that no other policy beats in both peak and cost: as the peak
falls, the cost rises. `residual_bytes` are the bytes that the backward pass keeps, counted before
any compiler. A row that is in the file already is not compiled again.
"""

import json
import pathlib

import jax
from eight_layers import MODEL

import jaxmem as jm
from jaxmem.compiler.residuals import residuals
from jaxmem.io.atomic import write_whole
from jaxmem.planner.estimates import HOST
from jaxmem.planner.train_and_serve_steps import Built

DEVICES = ("tpu v5p:1x1x1", "gpu h100")
POLICIES = {
    "none": jm.Remat("none"),
    "dots": jm.Remat("dots"),
    "dots_no_batch": jm.Remat("dots_no_batch"),
    "named attn_out": jm.Remat("named", ("attn_out",)),
    "offload attn_out": jm.Remat("offload", ("attn_out",)),
    "full": jm.Remat("full"),
    "nested": jm.Remat("nested"),
}


def build_step(policy: jm.Remat, device: str) -> Built:
    """The train step with a remat policy."""
    knobs = dict(state="bfloat16", remat=policy, chunk=512)
    return jm.build(jm.Recipe("8 layers", device, "train", 4, 2048, **knobs), model=MODEL)


def measure(policy: jm.Remat, device: str) -> dict:
    """The row of the table for one policy on one device."""
    built_step = build_step(policy, device)
    m = jm.memory(built_step.step, *built_step.arguments, device=device)
    state, ids = built_step.arguments
    transfer_seconds = 2 * m.host / HOST if m.exact else 0.0
    return {
        "fits": m.fits,
        "peak_bytes": m.peak,
        "compiled": m.exact,
        "arguments_bytes": m.arguments,
        "temp_bytes": m.temp,
        "host_bytes": m.host,
        "flops": m.flops,
        "traffic_bytes": m.traffic,
        "residual_bytes": residuals(built_step.loss, state["params"], ids),
        "cost_seconds": None if m.seconds is None else round(m.seconds + transfer_seconds, 6),
        "program": m.hash,
        "versions": m.versions,
    }


def unbeaten(rows: dict) -> list[str]:
    """Names of the rows that no other row beats in peak and cost, the largest peak first."""
    peak_and_cost = {name: (row["peak_bytes"], row["cost_seconds"]) for name, row in rows.items()}
    is_beaten = lambda a: any(
        b != a and b[0] <= a[0] and b[1] <= a[1] for b in peak_and_cost.values()
    )
    names = [name for name in rows if rows[name]["compiled"] and not is_beaten(peak_and_cost[name])]
    return sorted(names, key=lambda name: -rows[name]["peak_bytes"])


def main() -> None:
    path = pathlib.Path(__file__).with_suffix(".json")
    results = {
        "command": "python experiments/memory/remat_table.py",
        "jax": jax.__version__,
        "backend": "TPU and GPU targets, compiled and not run",
        "seed": None,
        "model": "8 Llama layers, shapes only",
        "rows": json.loads(path.read_text())["rows"] if path.exists() else {},
    }
    for device in DEVICES:
        rows = results["rows"].setdefault(device, {})
        for name, policy in POLICIES.items():
            if name in rows:
                continue
            rows[name] = measure(policy, device)
            print(device, name, rows[name], flush=True)
            write_whole(path, (json.dumps(results, indent=1) + "\n").encode())
        results.setdefault("chosen", {})[device] = unbeaten(rows)
        write_whole(path, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
