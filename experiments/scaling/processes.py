"""Training on 1, 2 and 4 processes: equal losses, also after a kill and on another mesh.

    python experiments/scaling/processes.py

The figures go into processes.json. A small frozen Llama in 4 bits has LoRA pairs of rank 4 that are
trained by 20 steps of Adam on random ids. The processes are on this machine, connected by gloo,
with 8 devices in all. One run is not interrupted. The others are saved after 10 steps, killed (kill
-9) in the middle of a later save, and continued from the file with another number of processes and
another mesh.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

DEVICES, STEPS, SAVE_STEP, SEED = 8, 20, 10, 0
MESHES = {1: {"fsdp": 8}, 2: {"fsdp": 4, "tensor": 2}, 4: {"fsdp": 2, "tensor": 4}}


def prepare(args: argparse.Namespace, optimizer):
    """(The model, a function that returns the first tree, one that returns its shardings)."""
    import jax
    import numpy as np

    import jaxmem as jm
    from jaxmem.adapters.lora import adapters
    from jaxmem.architectures import llama
    from jaxmem.models import Model

    sizes = dict(vocab=256, width=64, ffn=192, layers=2, heads=4, kv_heads=4, head_dim=16)
    config, ids = llama.Config(**sizes, tied=True), np.zeros((1, 4), np.int32)
    module, model = llama.module(config), Model(config, {}, None, "small")
    mesh = jm.mesh(**json.loads(args.mesh))
    rules = jm.layouts.fsdp_tensor(config, mesh)

    def start():
        params = jax.jit(module.init)(jax.random.key(SEED), ids)["params"]
        plan = jm.choose(params, {".*kernel": jm.Int(4, group=16), ".*embedding": jm.Int(8)})
        encoded = jm.encode(params, plan, uses=jm.uses(model.apply, params, ids))
        pairs = adapters(jax.random.key(SEED + 1), encoded, 4, "layers/.*kernel")
        return {"params": encoded, "pairs": pairs, "state": optimizer.init(pairs)}

    def lay_out(tree):
        shardings = {"params": jm.shardings(tree["params"], mesh, rules)}
        shardings["pairs"] = jm.shardings(tree["pairs"], mesh, jm.layouts.adapters(rules))
        state = jm.state_shardings(tree["state"], tree["pairs"], shardings["pairs"])
        return shardings | {"state": state}

    return model, start, lay_out


def worker(args: argparse.Namespace) -> None:
    """One process of a run: trains, evaluates, loads and saves; process 0 writes the results."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import jaxmem as jm
    from jaxmem.adapters.lora import attach

    if args.count > 1:
        jax.distributed.initialize(args.address, args.count, args.index)
    optimizer = optax.adam(1e-2)
    model, start, lay_out = prepare(args, optimizer)
    tree = jm.load(args.load, shardings=lay_out) if args.load else start()
    tree = jm.shard(tree, lay_out(tree))

    @jax.jit
    def step(params, pairs, state, ids):
        def loss(pairs):
            logits = model.apply(attach(params, pairs), ids)
            scores = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], -1)
            return -scores.mean()

        value, slope = jax.value_and_grad(loss)(pairs)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(pairs, updates), state, value

    batch = lambda i: np.random.default_rng([SEED, i]).integers(0, 64, (8, 32)).astype(np.int32)
    losses = []
    for i in range(args.first, args.last):
        pairs, state, value = step(tree["params"], tree["pairs"], tree["state"], batch(i))
        tree |= {"pairs": pairs, "state": state}
        losses.append(float(value))
    joined = attach(tree["params"], tree["pairs"])
    quality = jm.evaluate(model.apply, joined, batch(2**31).reshape(-1), window=32, batch=8)
    if args.die:
        os.fsync = lambda _: os.kill(
            os.getpid(), signal.SIGKILL
        )  # when shards are written and the header is not
    if args.save:
        jm.save(args.save, tree)
    if args.index == 0:
        up_kernel = tree["params"]["layers"]["mlp"]["up"]["kernel"]
        shard_bytes = sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(up_kernel))
        result = {"losses": losses, "perplexity": quality.perplexity.mean}
        result |= {"bytes_of_a_weight": jm.nbytes(up_kernel), "on_one_device": shard_bytes}
        result |= {"jax": jax.__version__, "processes": jax.process_count()}
        pathlib.Path(args.out).write_text(json.dumps(result))


def run(folder, count, first, last, *, load=None, save=None, die=False) -> dict:
    """Steps [first, last) on `count` processes; the results of process 0, or {} after a kill."""
    with socket.socket() as probe_socket:
        probe_socket.bind(("localhost", 0))
        address = f"localhost:{probe_socket.getsockname()[1]}"
    out = folder / "found.json"
    out.unlink(missing_ok=True)
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={DEVICES // count}"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, "worker", "--address", address, "--out", str(out)]
    command += ["--count", str(count), "--mesh", json.dumps(MESHES[count])]
    command += ["--first", str(first), "--last", str(last)]
    command += ["--load", str(load)] if load else []
    command += ["--save", str(save)] if save else []
    workers = []
    for i in range(count):
        die_flag = ["--die"] if die and i == count - 1 else []
        with open(folder / f"log.{i}", "w") as log:
            workers.append(
                subprocess.Popen(
                    [*command, "--index", str(i), *die_flag], env=env, stderr=log, stdout=log
                )
            )
    if die:
        code = workers[-1].wait(600)
        assert code == -signal.SIGKILL, (folder / f"log.{count - 1}").read_text()[-2000:]
        for process in workers:  # the others wait for the killed process, so kill them too
            process.kill()
        [process.wait() for process in workers]
        return {}
    codes = [process.wait(600) for process in workers]
    assert codes == [0] * count, (folder / "log.0").read_text()[-2000:]
    return json.loads(out.read_text())


def interrupted(folder, before, after, steps, half) -> dict:
    """A run saved at `half`, killed in its last save, and continued by `after` processes."""
    path = folder / f"{before}-{after}.jm"
    first_half = run(folder, before, 0, half, save=path)
    saved_bytes = path.read_bytes()
    run(folder, before, half, steps, load=path, save=path, die=True)
    file_is_whole = path.read_bytes() == saved_bytes
    unfinished_files = len(list(folder.glob(f".{path.name}.*.tmp")))
    second_half = run(folder, after, half, steps, load=path, save=path)
    all_removed = not list(folder.glob(f".{path.name}.*.tmp"))
    return {
        "processes": [before, after],
        "meshes": [MESHES[before], MESHES[after]],
        "old_file_whole_after_kill": file_is_whole,
        "unfinished_files_after_kill": unfinished_files,
        "next_save_removed_them": all_removed,
        "file_bytes": len(saved_bytes),
        "losses": first_half["losses"] + second_half["losses"],
        "perplexity": second_half["perplexity"],
        "bytes_of_a_weight": second_half["bytes_of_a_weight"],
        "on_one_device": second_half["on_one_device"],
    }


def compare(folder, pairs, steps, half) -> dict:
    """A run that is not interrupted, and the differences of the interrupted runs from it."""
    reference = run(folder, 1, 0, steps)
    rows = []
    for before, after in pairs:
        row = interrupted(folder, before, after, steps, half)
        differences = [
            abs(a / b - 1) for a, b in zip(row["losses"], reference["losses"], strict=True)
        ]
        row["largest_relative_difference_of_losses"] = max(differences)
        row["relative_difference_of_perplexity"] = abs(
            row["perplexity"] / reference["perplexity"] - 1
        )
        rows.append(row)
        print(row, flush=True)
    return {"through": reference, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "worker", "small"), default="all")
    for name in ("address", "mesh", "load", "save", "out"):
        parser.add_argument(f"--{name}")
    for name in ("count", "index", "first", "last"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--die", action="store_true")
    args = parser.parse_args()
    if args.what == "worker":
        worker(args)
        return
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if args.what == "small":
            results = compare(folder, [(2, 1)], 4, 2)
        else:
            results = compare(folder, [(2, 4), (4, 2), (4, 1)], STEPS, SAVE_STEP)
    results = {
        "command": " ".join(["python", "experiments/scaling/processes.py", *sys.argv[1:]]),
        "jax": results["through"].pop("jax"),
        "backend": f"cpu, {DEVICES} virtual devices over the processes, gloo",
        "seed": SEED,
        "seconds": round(time.perf_counter() - start),
        **results,
    }
    out_path = args.out or pathlib.Path(__file__).with_suffix(".json")
    pathlib.Path(out_path).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
