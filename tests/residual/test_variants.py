"""The other methods agree with their own papers' definitions, written out again here without the
package's code.
"""

import itertools

import pytest
import reference
import torch
from conformance import D, build, loss
from test_reference import EPS, assert_agrees, randomised

from attnres_lab.residual.delta import Delta, DeltaConfig
from attnres_lab.residual.denseformer import DenseFormer, DenseFormerConfig
from attnres_lab.residual.hyper import HyperConfig, HyperConnections
from attnres_lab.residual.mhc import ManifoldHyperConnections, MHCConfig, sinkhorn
from attnres_lab.residual.rescaled import Rescaled, RescaledConfig

L = 8


def unit_rms(x):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + EPS)


@pytest.mark.parametrize(("dilation", "period"), [(1, 1), (1, 2), (2, 1), (3, 2), (2, 3), (4, 4)])
def test_denseformer(dilation, period):
    """2402.02622, equations 2 and following: X_i = sum_j a_ij Y_j over j = i, i - k, i - 2k, ...
    after every p-th layer.
    """
    residual = randomised(
        DenseFormer(DenseFormerConfig(dilation=dilation, period=period), L, D, EPS)
    )

    def expected(x, fs):
        y = {0: x}
        for i in range(1, L // 2 + 1):
            middle = x + fs[2 * i - 2](x)
            x = y[i] = middle + fs[2 * i - 1](middle)
            if i % period == 0:
                mixed = torch.zeros_like(x)
                for j in range(i + 1):
                    if (i - j) % dilation == 0:
                        mixed = mixed + residual.averages[str(i)][(i - j) // dilation] * y[j]
                x = mixed
        return x

    assert_agrees(residual, L, expected)
    assert sorted(residual.averages) == [str(i) for i in range(1, L // 2 + 1) if i % period == 0]


@pytest.mark.parametrize("streams", [2, 4])
@pytest.mark.parametrize("dynamic", [False, True])
def test_hyper_connections(streams, dynamic):
    """2409.19606, algorithm 2: A = [A_m | A_r] has a row per source stream, H' = A_r^T H + B^T
    f(A_m^T H)^T; dynamic: plus s tanh(norm(H) W).
    """
    residual = randomised(
        HyperConnections(HyperConfig(streams=streams, dynamic=dynamic), L, D, EPS)
    )

    def expected(x, fs):
        h = [x] * streams
        for f, site in zip(fs, residual.sites, strict=True):
            a_m = [site.read[i] for i in range(streams)]
            # [source][target]
            a_r = [[site.mix[j, i] for j in range(streams)] for i in range(streams)]
            b = [site.write[i] for i in range(streams)]
            if dynamic:
                for i in range(streams):
                    move = torch.tanh(unit_rms(h[i]) @ site.projection)
                    a_m[i] = (a_m[i] + site.scale[0] * move[..., 0])[..., None]
                    a_r[i] = [
                        (a_r[i][j] + site.scale[0] * move[..., 1 + j])[..., None]
                        for j in range(streams)
                    ]
                    b[i] = (b[i] + site.scale[1] * move[..., -1])[..., None]
            out = f(sum(a_m[i] * h[i] for i in range(streams)))
            h = [sum(a_r[i][j] * h[i] for i in range(streams)) + b[j] * out for j in range(streams)]
        return sum(h)

    assert_agrees(residual, L, expected)


def sinkhorn_by_hand(c, n):
    """Equation 9: exp, then 20 times columns to sum 1, then rows."""
    m = [[torch.exp(c[i][j]) for j in range(n)] for i in range(n)]
    for _ in range(20):
        columns = [sum(m[i][j] for i in range(n)) for j in range(n)]
        m = [[m[i][j] / columns[j] for j in range(n)] for i in range(n)]
        rows = [sum(m[i][j] for j in range(n)) for i in range(n)]
        m = [[m[i][j] / rows[i] for j in range(n)] for i in range(n)]
    return m


def permutations_by_hand(c, n):
    """mHC-lite: softmax over the n! permutations, row i of the k-th one has its 1 in column
    order[i].
    """
    weights = torch.softmax(torch.stack(c, -1), -1)
    m = [[torch.zeros_like(c[0]) for _ in range(n)] for _ in range(n)]
    for k, order in enumerate(itertools.permutations(range(n))):
        for i in range(n):
            m[i][order[i]] = m[i][order[i]] + weights[..., k]
    return m


@pytest.mark.parametrize("mixing", ["sinkhorn", "permutations"])
@pytest.mark.parametrize("n", [2, 3])
def test_manifold_hyper_connections(n, mixing):
    """2512.24880, equations 7 to 9: all coefficients from the flattened, normalised streams; the
    outer sublayers do not mix.
    """
    residual = randomised(ManifoldHyperConnections(MHCConfig(streams=n, mixing=mixing), L, D, EPS))

    def expected(x, fs):
        h = [x] * n
        for index, (f, site) in enumerate(zip(fs, residual.sites, strict=True)):
            flat = unit_rms(torch.cat(h, -1))
            kinds = [0] * n + [1] * n + [2] * (len(site.bias) - 2 * n)
            c = [
                site.gate[kind] * (flat @ site.projection[:, k]) + site.bias[k]
                for k, kind in enumerate(kinds)
            ]
            out = f(sum(torch.sigmoid(c[i])[..., None] * h[i] for i in range(n)))
            written = [2 * torch.sigmoid(c[n + i])[..., None] * out for i in range(n)]
            if 0 < index < L - 1:
                rest = c[2 * n :]
                m = (
                    permutations_by_hand(rest, n)
                    if mixing == "permutations"
                    else sinkhorn_by_hand([rest[i * n : i * n + n] for i in range(n)], n)
                )
                h = [sum(m[i][j][..., None] * h[j] for j in range(n)) for i in range(n)]
            h = [a + b for a, b in zip(h, written, strict=True)]
        return sum(h)

    assert_agrees(residual, L, expected)


@pytest.mark.parametrize(
    "config",
    [MHCConfig(), MHCConfig(mixing="permutations"), MHCConfig(streams=3)],
    ids=lambda config: config.label,
)
def test_the_mixing_is_doubly_stochastic_and_starts_near_the_identity(config):
    residual = ManifoldHyperConnections(config, L, D, EPS).double()
    h = torch.randn(
        2, 3, config.streams, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    assert residual.sites[0](h).mix is None
    assert residual.sites[-1](h).mix is None
    start = residual.sites[1](h).mix
    assert (start - torch.eye(config.streams)).abs().max() < 0.01
    mix = randomised(residual).sites[1](h).mix
    assert (mix >= 0).all()
    torch.testing.assert_close(mix.sum(-1), torch.ones_like(mix.sum(-1)))
    # of 20 rounds on wide logits: docs/variants.md
    gap = 1e-12 if config.mixing == "permutations" else 0.2
    torch.testing.assert_close(mix.sum(-2), torch.ones_like(mix.sum(-2)), rtol=0, atol=gap)


def test_sinkhorn_converges_on_moderate_logits():
    mix = sinkhorn(
        torch.randn(100, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    torch.testing.assert_close(mix.sum(-1), torch.ones_like(mix.sum(-1)))
    torch.testing.assert_close(mix.sum(-2), torch.ones_like(mix.sum(-2)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [HyperConfig(), MHCConfig(), MHCConfig(mixing="permutations")],
    ids=lambda config: config.label,
)
def test_streams_that_start_equal_come_apart(config):
    """No random numbers at the start, and yet gradient descent must not see n copies of one
    stream.
    """
    model = build(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    writes = torch.stack(
        [
            site.write if hasattr(site, "write") else site.bias[4:8]
            for site in model.residual.sites[:-1]
        ]
    )
    assert ((writes - writes.mean(-1, keepdim=True)).abs().amax(-1) > 1e-6).all()


def test_delta():
    """2605.18855: the stream, plus depth attention over the embedding and the sublayer outputs; the
    output is the stream.
    """
    residual = randomised(Delta(DeltaConfig(), L, D, EPS))
    reads = [
        reference.Read(q, g, EPS)
        for q, g in zip(residual.pseudo_query, residual.key_gain, strict=True)
    ]

    def expected(x, fs):
        v = [x]
        for index, f in enumerate(fs):
            stream = sum(v)
            v.append(f(stream if index == 0 else stream + reads[index - 1](v)))
        return sum(v)

    assert_agrees(residual, L, expected)


def test_rescaled():
    """h_l is the baseline's divided by sqrt(l), also after training: the sublayers see the same
    directions.
    """
    residual = Rescaled(RescaledConfig(), L, D, EPS)
    assert not list(residual.parameters())

    def expected(x, fs):
        stream = x
        for count, f in enumerate(fs, 1):
            stream = stream + f(stream / count**0.5)
        return stream / (L + 1) ** 0.5

    assert_agrees(residual, L, expected)
