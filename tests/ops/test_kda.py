"""KDA: the chunked form against the definition, and against a released reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnres_lab.ops import kda_chunked, kda_fla
from attnres_lab.ops.kda import kda, recurrent

B, H, K, V = 2, 3, 5, 4


def inputs(T: int, strength: float, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q and k of unit length, log decays about -0.3 * strength, beta in (0, 1), a memory."""
    generator = torch.Generator().manual_seed(T)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(normal(B, H, T, K), dim=-1) for _ in range(2))
    g = -strength * torch.nn.functional.softplus(normal(B, H, T, K) - 1)
    values = [q, k, normal(B, H, T, V), g, normal(B, H, T).sigmoid(), normal(B, H, K, V)]
    return [value.to(dtype).requires_grad_() for value in values]


def gradients(outputs: tuple[Tensor, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    total = sum(
        (o * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype)).sum()
        for o in outputs
    )
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, leaves))


def check_agreement(T: int, strength: float) -> None:
    leaves = inputs(T, strength)
    expected, got = recurrent(*leaves), kda_chunked.kda(*leaves)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        gradients(got, leaves), gradients(expected, leaves), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("T", [1, 7, 8, 29])
def test_the_chunked_form_is_the_definition_gradients_included(T: int, strength: float) -> None:
    """In float64 to 1e-12, with decays from a tenth of the usual to a hundred times."""
    check_agreement(T, strength)


@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0, 100.0])
def test_fp32_is_finite_and_near_fp64_under_any_decay(strength: float) -> None:
    exact, single = inputs(29, strength), inputs(29, strength, torch.float32)
    expected, got = kda_chunked.kda(*exact), kda_chunked.kda(*single)
    torch.testing.assert_close([o.double() for o in got], list(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        [g.double() for g in gradients(got, single)],
        gradients(expected, exact),
        rtol=1e-3,
        atol=1e-4,
    )


def test_without_decay_and_with_beta_one_a_key_reads_back_its_last_value() -> None:
    """The delta rule overwrites: with unit keys, o = v where q = k."""
    q, _, v, _, beta, state = inputs(12, 1.0)
    out, _ = recurrent(q, q, v, torch.zeros_like(q), torch.ones_like(beta), state)
    torch.testing.assert_close(out, v, rtol=1e-12, atol=1e-12)


def test_pieces_with_the_memory_between_them_are_one_pass() -> None:
    *values, state = inputs(21, 1.0)
    whole, last = kda(*values, state)
    outputs = []
    for start, stop in ((0, 1), (1, 12), (12, 21)):
        out, state = kda(*(x[:, :, start:stop] for x in values), state)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, 2), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=1e-12, atol=1e-12)


def test_a_decay_on_the_wrong_axis_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """On values instead of keys (here both are four wide)."""

    def transposed(*args: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, g, beta, state = args
        memory, out = state, []
        for t in range(q.shape[2]):
            memory = memory * g[:, :, t, None, :].exp()
            error = v[:, :, t] - (memory * k[:, :, t, :, None]).sum(2)
            memory = memory + k[:, :, t, :, None] * (beta[:, :, t, None] * error)[:, :, None]
            out.append((memory * q[:, :, t, :, None]).sum(2))
        return torch.stack(out, 2), memory

    monkeypatch.setattr(f"{__name__}.K", 4)
    check_agreement(8, 1.0)
    monkeypatch.setattr(kda_chunked, "kda", transposed)
    with pytest.raises(AssertionError):
        check_agreement(8, 1.0)


def test_transformers_reference_agrees() -> None:
    pytest.importorskip("transformers")
    from transformers.models.kimi_linear.modeling_kimi_linear import (
        recurrent_kimi_delta_attention as released,
    )

    leaves = [x.detach() for x in inputs(29, 1.0, torch.float32)]
    q, k, v, g, beta, state = leaves
    expected, last = released(
        *(x.transpose(1, 2) for x in (q, k, v, g)),
        beta=beta.transpose(1, 2),
        initial_state=state,
        output_final_state=True,
        use_qk_l2norm_in_kernel=False,
    )
    out, memory = kda_chunked.kda(q * K**-0.5, k, v, g, beta, state)  # it scales q by K^-1/2
    torch.testing.assert_close(out.transpose(1, 2), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(memory, last, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(
    not (torch.cuda.is_available() and kda_fla.installed()), reason="needs a GPU and fla-core"
)
@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0])
def test_the_fused_form_agrees(strength: float) -> None:
    leaves = [x.detach().cuda().requires_grad_() for x in inputs(64, strength, torch.float32)]
    expected, got = kda_chunked.kda(*leaves), kda_fla.kda(*leaves)
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)
