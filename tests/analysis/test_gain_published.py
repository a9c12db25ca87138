"""Gains from the paper's printed laws, against the public figures."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import gain_from_published

BASELINE, BLOCK, FULL = ("1.891", "0.057"), ("1.870", "0.058"), ("1.865", "0.057")


def test_the_block_law_at_the_papers_compute():
    """Both definitions at C = 5.6, and what the rounding of the four coefficients allows."""
    extra = gain_from_published(BASELINE, BLOCK, 5.6)
    assert round(extra.gain, 4) == 1.2538
    assert tuple(round(v, 3) for v in extra.rounding) == (1.203, 1.307)
    assert round(gain_from_published(BASELINE, BLOCK, 5.6, "saving").gain, 4) == 1.2489


@pytest.mark.parametrize(
    ("C", "gain"), [(0.5, 1.202), (1, 1.216), (2, 1.231), (5.6, 1.254), (10, 1.267), (100, 1.319)]
)
def test_the_block_curve_over_compute(C, gain):
    assert round(gain_from_published(BASELINE, BLOCK, C).gain, 3) == gain


@pytest.mark.parametrize("C", [0.1, 5.6, 1000])
@pytest.mark.parametrize("definition", ["extra", "saving"])
def test_equal_exponents_give_one_gain(C, definition):
    assert round(gain_from_published(BASELINE, FULL, C, definition).gain, 4) == 1.2749


@given(st.tuples(*[st.floats(-1, 1)] * 4), st.floats(0.01, 1000))
def test_no_law_that_prints_alike_leaves_the_interval(shift, C):
    """Random points of the rounding box lie within its corners."""
    a, alpha, b, beta = (
        v + 0.0005 * s for v, s in zip((1.891, 0.057, 1.870, 0.058), shift, strict=True)
    )
    low, high = gain_from_published(BASELINE, BLOCK, C).rounding
    assert low - 1e-9 <= math.exp(math.log(a * C**-alpha / (b * C**-beta)) / alpha) <= high + 1e-9


@pytest.mark.parametrize(
    ("baseline", "C", "message"),
    [
        ((1.891, "0.057"), 1, "baseline A is 1.891: give it as it is printed, as a string"),
        (("1.891", "x"), 1, "baseline alpha is 'x', which is no printed number"),
        (("1.891", "nan"), 1, "baseline alpha is 'nan', which is no printed number"),
        (("1.891", "0.0"), 1, "baseline alpha is '0.0': it must be above 0"),
        (("1.6", "1.891", "0.057"), 1, r"baseline is \('1.6', '1.891', '0.057'\): give the two"),
        (BASELINE, 0, "C must be finite and above 0, found 0"),
    ],
)
def test_bad_input_is_named(baseline, C, message):
    with pytest.raises(ValueError, match=message):
        gain_from_published(baseline, BLOCK, C)
