"""Optimizers of bitsandbytes, torchao and FlashOptim, in PyTorch: equal_loss_peers.json.

    pip install torch bitsandbytes torchao
    python experiments/quality/equal_loss.py --text TEXT --start start.npz
    python experiments/quality/equal_loss_peers.py --start start.npz

The same first params, batches, schedule and measure, in PyTorch on a CPU. FlashOptim's kernels need
a GPU, so its published algorithm is computed here: weights of bfloat16 and int8, moments in groups
of 32, all rounded to nearest. torchao runs uncompiled. A run that is in the file is not made again.
"""

import argparse
import json
import math
import pathlib
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

HEADS, EPS, THETA, BETAS = 3, 1e-5, 10_000.0, (0.9, 0.99)
PEERS = {  # learning rates of seed 0
    "torch AdamW, float32": (4e-3, 2e-3),
    "bitsandbytes AdamW8bit, float32 weights": (4e-3, 2e-3),
    "torchao AdamW4bit, bfloat16 weights": (4e-3, 2e-3),
    "FlashOptim AdamW, split weights": (4e-3, 2e-3),
}


def logits(params: dict, ids: torch.Tensor) -> torch.Tensor:
    """The Llama of `equal_loss.py`, from its params by path."""
    norm = lambda x, scale: functional.rms_norm(x, x.shape[-1:], scale, EPS)
    x, layers = params["embed/embedding"][ids], params["layers/attn/q/kernel"].shape[0]
    rows, length, width = x.shape
    size = width // HEADS
    angle = torch.arange(length)[:, None] * THETA ** (-torch.arange(0, size, 2) / size)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    turn = lambda x: torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1)
    rotate = lambda x: x * cos + turn(x) * sin
    for i in range(layers):
        w = lambda name, i=i: params[f"layers/{name}"][i]
        h = norm(x, w("attn_norm/scale"))
        q, k, v = (
            (h @ w(f"attn/{n}/kernel")).view(rows, length, HEADS, size).transpose(1, 2)
            for n in "qkv"
        )
        y = functional.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + y.transpose(1, 2).reshape(rows, length, width) @ w("attn/out/kernel")
        h = norm(x, w("mlp_norm/scale"))
        up = functional.silu(h @ w("mlp/gate/kernel")) * (h @ w("mlp/up/kernel"))
        x = x + up @ w("mlp/down/kernel")
    return norm(x, params["final_norm/scale"]) @ params["head/kernel"]


class Flash:
    """FlashOptim's AdamW (Gonzalez Ortiz et al., 2026), as it is described."""

    GROUP = 32

    def __init__(self, params: list, start: list, lr: float):
        self.params, self.lr, self.count = params, lr, 0
        self.rest = [self.split(w)[1] for w in start]
        zeros = lambda: [self.encode(torch.zeros(w.numel()), signed) for w in start]
        signed = True
        self.mu = zeros()
        signed = False
        self.nu = zeros()

    def half_step(self, high):
        return torch.exp2(torch.floor(torch.log2(high.float().abs().clamp(1e-30))) - 8)

    def split(self, w):
        high = w.bfloat16()
        rest = torch.round((w - high.float()) / self.half_step(high) * 127)
        return high, rest.clamp(-127, 127).to(torch.int8)

    def encode(self, x, signed):
        groups = functional.pad(x.flatten(), (0, -x.numel() % self.GROUP)).view(-1, self.GROUP)
        groups = groups if signed else groups.sqrt()
        scale = groups.abs().amax(1, keepdim=True).half()
        share = groups / scale.float().clamp(1e-30)
        if signed:
            return torch.round(2 * share / (1 + share.abs()) * 127).clamp(-127, 127).char(), scale
        return torch.round(share * 255).clamp(0, 255).byte(), scale

    def decode(self, code, shape, signed):
        c, scale = code[0].float() / (127 if signed else 255), code[1].float()
        x = c / (2 - c.abs()) * scale if signed else (c * scale) ** 2
        return x.flatten()[: math.prod(shape)].view(shape)

    def step(self):
        self.count += 1
        b1, b2 = BETAS
        for i, p in enumerate(self.params):
            g = p.grad.float()
            mu = b1 * self.decode(self.mu[i], p.shape, True) + (1 - b1) * g
            nu = b2 * self.decode(self.nu[i], p.shape, False) + (1 - b2) * g * g
            w = p.data.float() + self.rest[i].float() / 127 * self.half_step(p.data)
            root = (nu / (1 - b2**self.count)).sqrt() + 1e-8
            high, self.rest[i] = self.split(w - self.lr * mu / (1 - b1**self.count) / root)
            p.data.copy_(high)
            self.mu[i], self.nu[i] = self.encode(mu, True), self.encode(nu, False)

    def state_bytes(self):
        arrays = [a for code in self.mu + self.nu for a in code]
        return sum(a.numel() * a.element_size() for a in arrays)


def made(peer: str, start: list) -> tuple[list, object, str]:
    """(the parameters, their optimizer) of a peer."""
    dtype = torch.float32 if "float32" in peer else torch.bfloat16
    params = [nn.Parameter(w.to(dtype)) for w in start]
    options = dict(lr=1e-3, betas=BETAS, eps=1e-8, weight_decay=0.0)
    if peer.startswith("torch "):
        return params, torch.optim.AdamW(params, **options)
    if peer.startswith("bits"):
        import bitsandbytes

        return params, bitsandbytes.optim.AdamW8bit(params, **options)
    if peer.startswith("torchao"):
        from torchao.optim import AdamW4bit

        torch.compiler.set_stance("force_eager")
        return params, AdamW4bit(params, **options, bf16_stochastic_round=True)
    return params, Flash(params, start, 1e-3)


def nbytes(x) -> int:
    """The bytes of a tensor, also of one that a subclass keeps in several tensors."""
    if hasattr(x, "__tensor_flatten__"):
        return sum(nbytes(getattr(x, name)) for name in x.__tensor_flatten__()[0])
    return x.numel() * x.element_size()


def train(peer: str, rate: float, seed: int, data: dict) -> dict:
    torch.manual_seed(seed)
    names = [n.removeprefix(f"{seed}/") for n in data if n.startswith(f"{seed}/") and "/" in n]
    params, optimizer = made(peer, [torch.tensor(data[f"{seed}/{n}"]) for n in names])
    batches = torch.tensor(data[f"batches{seed}"]).long()
    steps = len(batches)

    def loss(ids):
        full = dict(zip(names, (p.float() for p in params)))
        y = logits(full, ids[:, :-1])
        return functional.cross_entropy(y.flatten(0, 1), ids[:, 1:].flatten())

    begin = time.perf_counter()
    for i, ids in enumerate(batches):
        warm = steps // 10
        cosine = (1 + math.cos(math.pi * (i - warm) / (steps - warm))) / 2
        now = rate * (i / warm if i < warm else 0.1 + 0.9 * cosine)
        if isinstance(optimizer, Flash):
            optimizer.lr = now
        else:
            for group in optimizer.param_groups:
                lr = group["lr"]
                group["lr"] = lr.fill_(now) if isinstance(lr, torch.Tensor) else now
        value = loss(ids)
        value.backward()
        optimizer.step()
        for p in params:
            p.grad = None
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        parts = [loss(part).item() for part in torch.tensor(data["test"]).long().chunk(12)]
    row = {"form": peer, "rate": rate, "seed": seed, "loss": sum(parts) / len(parts)}
    weights = sum(map(nbytes, params))
    if isinstance(optimizer, Flash):
        weights, state = weights + sum(map(nbytes, optimizer.rest)), optimizer.state_bytes()
    else:
        tensors = [x for s in optimizer.state.values() for x in s.values()]
        state = sum(nbytes(x) for x in tensors if isinstance(x, torch.Tensor) and x.numel() > 1)
    return row | {"weight_bytes": weights, "state_bytes": state, "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=pathlib.Path, required=True)
    out = pathlib.Path(__file__).with_name("equal_loss_peers.json")
    parser.add_argument("--out", type=pathlib.Path, default=out)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER")
    parser.add_argument("--runs", type=int, default=math.inf, help="the most that this call makes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = dict(np.load(arguments.start))
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    most = len(rows) + arguments.runs
    for peer in arguments.peers:
        runs = [(rate, 0) for rate in PEERS[peer]] + [(None, 1), (None, 2)]
        for seed_rate, seed in runs:
            first = [r for r in rows if r["form"] == peer and r["seed"] == 0]
            rate = seed_rate or min(first, key=lambda r: r["loss"])["rate"]
            if any((r["form"], r["rate"], r["seed"]) == (peer, rate, seed) for r in rows):
                continue
            if len(rows) >= most:
                return
            rows.append(train(peer, rate, seed, data))
            print(rows[-1], flush=True)
            result = {"torch": torch.__version__, "rows": rows}
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
