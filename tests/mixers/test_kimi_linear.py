"""A whole small Kimi Linear against the one in transformers, with its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnres_lab.mixers import KDAConfig, MixersConfig, MLAConfig, MoEConfig
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.pretrained.names import table, to_ours
from tests.pretrained.hub import KIMI

VOCAB = 50


def released() -> Any:
    """No constant is at its start."""
    transformers = pytest.importorskip("transformers")
    ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    config = transformers.KimiLinearConfig(vocab_size=VOCAB, **KIMI, **ends)
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.KimiLinearForCausalLM(config).double()
    for name, value in model.state_dict().items():
        if value.ndim == 1:
            value += 0.3 * torch.randn_like(value)
        elif "A_log" not in name:
            # unit embeddings and small weights: what their fp32 rounds off is not amplified
            std = 1.0 if "embed" in name else 0.5 * value.shape[-1] ** -0.5
            value.copy_(std * torch.randn_like(value))
    return model


def ours(theirs: Any) -> tuple[Transformer, dict[str, tuple[str, ...]]]:
    """Our model with their weights; and the names of theirs under each of ours."""
    config = ModelConfig(
        vocab_size=VOCAB,
        dim=32,
        num_layers=KIMI["num_hidden_layers"],
        num_heads=2,
        mlp_dim=48,
        norm_eps=1e-5,
        mixers=MixersConfig(
            ("kda", "kda", "kda", "mla"),
            kda=KDAConfig(head_dim=8),
            mla=MLAConfig(head_dim=8, latent_dim=24, shared_dim=4),
        ),
        mlp=MoEConfig(experts=6, top_k=2, expert_dim=12),
    )
    model = Transformer(config).double()
    names = table(model)
    weights = theirs.state_dict()
    assert sorted(weights) == sorted(name for others in names.values() for name in others)
    model.load_state_dict(to_ours(model, weights))
    return model, names


def joined(values: dict[str, Tensor], names: tuple[str, ...], like: Tensor) -> Tensor:
    return torch.cat([values[name] for name in names]).reshape(like.shape)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_logits_and_gradients_are_those_of_the_released_model() -> None:
    """Theirs computes KDA in fp32, so logits agree to 1e-6 and gradients to 1e-4."""
    theirs = released()
    model, names = ours(theirs)
    tokens = torch.randint(VOCAB, (2, 37), generator=torch.Generator().manual_seed(1))
    logits, expected = model(tokens), theirs(tokens).logits
    assert relative(logits, expected) < 1e-6
    for out in (logits, expected):
        F.cross_entropy(out[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        other = joined(gradients, names[name], parameter)
        assert relative(parameter.grad, other) < 1e-4, name


@pytest.mark.parametrize(
    ("part", "bug"),
    [
        ("balance", lambda model: [m.balance.zero_() for m in model.sublayers[3::2]]),
        ("latent norm", lambda model: model.sublayers[6].latent_norm.register_forward_hook(_skip)),
        ("decay", lambda model: model.sublayers[0].decay_bias.data.copy_(_swapped(model))),
        ("gate", lambda model: model.sublayers[0].gate_up.weight.data.zero_()),
    ],
)
def test_the_comparison_notices(part: str, bug: Any) -> None:
    """A part left out, or on the wrong axis, shows in the logits a thousand times over."""
    theirs = released()
    model, _ = ours(theirs)
    tokens = torch.randint(VOCAB, (2, 37), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        bug(model)
        assert relative(model(tokens), theirs(tokens).logits) > 1e-3, part


def _skip(module: torch.nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return args[0]


def _swapped(model: Transformer) -> Tensor:
    """Biases by channel, then head."""
    bias: Tensor = model.sublayers[0].decay_bias
    return bias.view(2, 8).mT.flatten()
