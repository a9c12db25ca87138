"""The papers' definitions of the mixers, token by token and head by head, apart from the code under
test. Inputs are already normalised; weights come from the mixer by name.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def rms(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return gain * x / (x.square().mean() + eps).sqrt()


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (gate_up @ x).chunk(2)
    return down @ (silu(gate) * up)


def moe(x_TD: Tensor, w: dict[str, Tensor], top_k: int, scale: float) -> Tensor:
    """DeepSeek-V3, equations 12 to 16: the bias chooses, the scores weigh."""
    outputs = []
    for x in x_TD:
        score = sigmoid(w["router.weight"] @ x)
        rank = (score + w["balance"]).tolist()
        chosen = sorted(range(len(rank)), key=lambda e: -rank[e])[:top_k]
        total = sum(score[e] for e in chosen)
        out = sum(
            scale * score[e] / total * swiglu(x, w["gate_up"][e], w["down"][e]) for e in chosen
        )
        if "shared_out.weight" in w:
            out = out + swiglu(x, w["shared_gate_up.weight"], w["shared_out.weight"])
        outputs.append(out)
    return torch.stack(outputs)


def mla(x_TD: Tensor, w: dict[str, Tensor], heads: int, latent: int, shared: int) -> Tensor:
    """Attention over keys and values that come from a normalised latent, one key part shared."""
    width = w["out.weight"].shape[1] // heads
    outputs = []
    for time, x in enumerate(x_TD):
        q_all = w["q.weight"] @ x
        joined = []
        for head in range(heads):
            q = q_all[head * (width + shared) : (head + 1) * (width + shared)]
            scores, values = [], []
            for past in x_TD[: time + 1]:
                down = w["latent.weight"] @ past
                kv = w["kv.weight"] @ rms(down[:latent], w["latent_norm.weight"], 1e-6)
                own = kv[2 * width * head : 2 * width * (head + 1)]
                key = torch.cat([own[:width], down[latent:]])
                scores.append(q @ key / math.sqrt(width + shared))
                values.append(own[width:])
            weights = torch.softmax(torch.stack(scores), 0)
            joined.append(sum(a * v for a, v in zip(weights, values, strict=True)))
        y = torch.cat(joined)
        if "gate.weight" in w:
            y = y * sigmoid(w["gate.weight"] @ x)
        outputs.append(w["out.weight"] @ y)
    return torch.stack(outputs)


def kda(x_TD: Tensor, w: dict[str, Tensor], heads: int) -> Tensor:
    """Kimi Delta Attention: convolution, unit queries and keys, decay by channel, delta rule."""
    width = w["out.weight"].shape[1] // heads
    taps = w["conv"].view(3 * heads * width, -1)
    before = torch.zeros(taps.shape[1] - 1, len(taps), dtype=x_TD.dtype)
    projected = torch.cat([before, torch.stack([w["qkv.weight"] @ x for x in x_TD])])
    outputs = []
    memory = torch.zeros(heads, width, width, dtype=x_TD.dtype)
    for time, x in enumerate(x_TD):
        mixed = silu(sum(taps[:, i] * projected[time + i] for i in range(taps.shape[1])))
        q, k, v = mixed.view(3, heads, width)
        change = (w["decay_up.weight"] @ w["decay_down.weight"] @ x).view(heads, width)
        change = change + w["decay_bias"].view(heads, width)
        beta, out = sigmoid(w["beta.weight"] @ x), []
        for h in range(heads):
            unit_q, unit_k = (y / (y.square().sum() + 1e-6).sqrt() for y in (q[h], k[h]))
            forget = torch.exp(-w["log_rate"][h].exp() * torch.log1p(change[h].exp()))
            kept = torch.diag(forget) @ memory[h]
            memory[h] = kept + beta[h] * torch.outer(unit_k, v[h] - kept.T @ unit_k)
            out.append(rms(memory[h].T @ unit_q / math.sqrt(width), w["gain"], 1e-5))
        gate = sigmoid(w["gate_up.weight"] @ w["gate_down.weight"] @ x)
        outputs.append(w["out.weight"] @ (torch.cat(out) * gate))
    return torch.stack(outputs)
