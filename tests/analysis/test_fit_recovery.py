"""Noise-free laws come back: exponents 0.03 to 1.2, E 0 to 3, C over 10x to 1e6x."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import CHINCHILLA, POWER_LAW, POWER_LAW_OFFSET, fit

EXPONENT = st.floats(0.03, 1.2)
RANGE = st.floats(1, 6).map(lambda decades: 10.0**decades)
FIRST = st.floats(0, 21).map(lambda decades: 10.0**decades)
WEIGHT = st.floats(0.1, 3)  # of a power at the smallest x, in nats
LOSS = st.sampled_from(["log_mse", "mse", "huber"])


def recovers(law, x, loss, **params) -> None:
    got = fit(law, x, law(x, **params), loss=loss)
    assert got.certificate.moved
    assert got.certificate.converged
    for name, value in params.items():
        assert abs(got.params[name] - value) <= 1e-6 * max(value, 1e-2 if name == "E" else 0), (
            name,
            got.summary(),
        )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(EXPONENT, WEIGHT, FIRST, RANGE, LOSS)
def test_recovers_power_laws(alpha, weight, first, times, loss) -> None:
    recovers(
        POWER_LAW, np.geomspace(first, first * times, 8), loss, A=weight * first**alpha, alpha=alpha
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(0, 3), EXPONENT, WEIGHT, FIRST, RANGE, LOSS)
def test_recovers_power_laws_with_an_offset(e, alpha, weight, first, times, loss) -> None:
    recovers(
        POWER_LAW_OFFSET,
        np.geomspace(first, first * times, 10),
        loss,
        E=e,
        A=weight * first**alpha,
        alpha=alpha,
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.floats(0, 3), st.tuples(EXPONENT, WEIGHT, RANGE), st.tuples(EXPONENT, WEIGHT, RANGE), LOSS
)
def test_recovers_chinchilla_laws(e, by_size, by_tokens, loss) -> None:
    (alpha, a, sizes), (beta, b, tokens) = by_size, by_tokens
    x = np.array(
        [
            (n, d)
            for n in np.geomspace(1e7, 1e7 * sizes, 6)
            for d in np.geomspace(1e9, 1e9 * tokens, 6)
        ]
    )
    recovers(CHINCHILLA, x, loss, E=e, A=a * 1e7**alpha, alpha=alpha, B=b * 1e9**beta, beta=beta)
