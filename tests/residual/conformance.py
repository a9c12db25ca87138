"""What every residual connection must do to be admitted. Each check takes a variant's config and
raises AssertionError.

Everything runs in float64 on a small trunk: B sequences of T tokens, D wide.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.residual import BaselineConfig, ResidualConfig

B, T, D, VOCAB, LAYERS = 2, 5, 16, 11, 6
TINY_EPS = 1e-30


def build(
    residual: ResidualConfig,
    *,
    norm_eps: float = 1e-6,
    randomise: bool = False,
    layers: int = LAYERS,
) -> Transformer:
    """A small model of the variant in float64, ``randomise`` moving its residual parameters off
    their start.
    """
    model = Transformer(
        ModelConfig(VOCAB, D, layers, 2, norm_eps=norm_eps, residual=residual), seed=3
    ).double()
    if randomise:
        generator = torch.Generator().manual_seed(5)
        for parameter in model.residual.parameters():
            parameter.data += 0.5 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return model


def tokens(seed: int = 7) -> Tensor:
    return torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(seed))


def loss(model: Transformer) -> Tensor:
    logits = model(tokens())
    return F.cross_entropy(logits.flatten(0, 1), tokens(8).flatten())


def embedding_gradients(model: Transformer, tokens_BT: Tensor) -> list[Tensor]:
    """For each position of the first sequence: gradient [B, T, D] of its logits, projected at
    random, with respect to the embedded input.
    """
    seen: list[Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append(out)

    handle = model.embed.register_forward_hook(keep)
    logits = model(tokens_BT)
    handle.remove()
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(logits.shape[-1], generator=generator, dtype=torch.float64)
    return [
        torch.autograd.grad(logit @ direction, seen[0], retain_graph=True)[0] for logit in logits[0]
    ]


@functools.cache
def baseline() -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits, weights and gradients of the PreNorm baseline."""
    model = build(BaselineConfig(), norm_eps=TINY_EPS)
    loss(model).backward()
    return (
        model(tokens()).detach(),
        model.state_dict(),
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
    )


def check_starts_as_baseline(config: ResidualConfig) -> None:
    """Before training, the variant is the PreNorm baseline: logits and all gradients of the
    trunk.
    """
    logits, _, gradients = baseline()
    model = build(config, norm_eps=TINY_EPS)
    torch.testing.assert_close(model(tokens()), logits, rtol=1e-9, atol=1e-9)
    loss(model).backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            model.get_parameter(name).grad,
            gradient,
            rtol=1e-9,
            atol=1e-9,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def check_trunk_weights_are_shared(config: ResidualConfig) -> None:
    """A seed gives the same trunk under every variant, and building the variant leaves the global
    generator alone.
    """
    model = build(config)
    before = torch.get_rng_state()
    type(model.residual)(config, 2 * LAYERS, D, 1e-6)
    assert torch.equal(torch.get_rng_state(), before), "the variant draws random numbers"
    trunk = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("residual.")
    }
    _, weights, _ = baseline()
    assert trunk.keys() == weights.keys()
    for name, value in trunk.items():
        assert torch.equal(value, weights[name]), name


def check_every_entry_gets_a_gradient(config: ResidualConfig) -> None:
    """No entry of a residual parameter is dead (a large eps, since under PreNorm a mere scale acts
    through the eps only).
    """
    model = build(config, norm_eps=1e-1, randomise=True)
    loss(model).backward()
    for name, parameter in model.residual.named_parameters():
        assert parameter.grad is not None, name
        dead = (parameter.grad.abs() < 1e-13).nonzero()
        assert not len(dead), (
            f"{name}: no gradient at {dead[:5].tolist()} of {list(parameter.shape)}"
        )


def check_causal(config: ResidualConfig) -> None:
    """The logits of a position depend on it and on all positions before it, and on none after
    it.
    """
    model = build(config, randomise=True)
    for time, gradient in enumerate(embedding_gradients(model, tokens())):
        reached = gradient[0].abs().amax(-1) > 0
        assert reached.tolist() == [t <= time for t in range(T)]


def check_sequences_are_independent(config: ResidualConfig) -> None:
    """A sequence's logits do not depend on the other sequences of its batch."""
    model = build(config, randomise=True)
    assert not any(gradient[1].any() for gradient in embedding_gradients(model, tokens()))
    torch.testing.assert_close(model(tokens())[:1], model(tokens()[:1]), rtol=1e-12, atol=1e-12)


def check_decoding_agrees(config: ResidualConfig) -> None:
    """Token by token, or in uneven pieces, with a cache: the same logits as in one pass."""
    model = build(config, randomise=True)
    whole = model(tokens())
    for pieces in ([1] * T, [2, T - 2]):
        cache = model.cache()
        parts = [model(part, cache) for part in tokens().split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-10)


def stand_in(h, kv_BTD=None, values=None, dtype=None):
    """A sublayer with the keywords of attention: values in one head, no weights."""
    key, value = (h, h) if kv_BTD is None else kv_BTD
    value = value.cos().to(dtype)[:, None]
    return (h.sin() * key.tanh()).to(dtype) + (value if values is None else values(value))[:, 0]


def check_mixing_is_exact_under_autocast(config: ResidualConfig) -> None:
    """bf16 autocast is for the sublayers: what the residual does itself stays in fp32, also where
    their outputs are bf16.
    """
    residual = build(config, randomise=True).residual.float()
    x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(2))

    def run(dtype: torch.dtype = torch.float32) -> Tensor:
        state = residual.start(x)
        for index in range(2 * LAYERS):
            state = residual.step(state, functools.partial(stand_in, dtype=dtype), index)
        return residual.finish(state)

    with torch.autocast("cpu", torch.bfloat16):
        mixed, rounded = run(), run(torch.bfloat16)
    torch.testing.assert_close(mixed, run(), rtol=1e-4, atol=1e-4)
    assert rounded.dtype == torch.float32
    assert rounded.isfinite().all()


def check_state_can_be_carried(config: ResidualConfig) -> None:
    """Cut before every sublayer and before the output, each name crossing once, as its values:
    logits and all gradients are those of one process.
    """
    whole, model = build(config, randomise=True), build(config, randomise=True)
    loss(whole).backward()
    residual, sent = model.residual, {}
    residual.apart = True
    state, hops = residual.start(model.embed(tokens())), []
    for index in range(2 * LAYERS):
        state = residual.step(state, model.sublayer(index), index)
        carried = residual.carry(state, index + 1)
        new = {name: x for name, x in carried.items() if name not in sent}
        assert new, "nothing is new after a sublayer"
        for name, x in carried.items():
            assert x.shape[0] == B
            assert torch.equal(sent.setdefault(name, x.detach()), x), name
        leaves = {name: sent[name].detach().requires_grad_() for name in carried}
        state = residual.resume(leaves, index + 1)
        hops.append((new, leaves))
    logits = model.head(model.norm(residual.finish(state)))
    F.cross_entropy(logits.flatten(0, 1), tokens(8).flatten()).backward()
    gradients = dict.fromkeys(sent, torch.zeros(()))
    for new, leaves in reversed(hops):
        for name, leaf in leaves.items():
            if leaf.grad is not None:
                gradients[name] = gradients[name] + leaf.grad
        back = [(x, gradients[name]) for name, x in new.items() if gradients[name].ndim]
        torch.autograd.backward(*zip(*back, strict=True))
    for (name, a), b in zip(whole.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(
            b.grad, a.grad, rtol=1e-12, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}"
        )


CHECKS = [
    check_trunk_weights_are_shared,
    check_every_entry_gets_a_gradient,
    check_causal,
    check_state_can_be_carried,
    check_sequences_are_independent,
    check_decoding_agrees,
    check_mixing_is_exact_under_autocast,
]
