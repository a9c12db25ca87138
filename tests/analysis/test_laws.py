"""A law is its formula: names, signs and values follow from it."""

import numpy as np
import pytest

from analysis import CHINCHILLA, POWER_LAW, POWER_LAW_OFFSET, Law


def test_the_standard_laws_have_the_names_of_the_field() -> None:
    assert POWER_LAW.params == ("A", "alpha")
    assert POWER_LAW_OFFSET.params == ("E", "A", "alpha")
    assert CHINCHILLA.params == ("E", "A", "alpha", "B", "beta")
    assert CHINCHILLA.variables == ("N", "D")


def test_a_law_evaluates_its_formula() -> None:
    x = np.array([[7e7, 1.4e9], [1e10, 2e11]])
    # Hoffmann et al. 2022, equation 10
    expected = 1.69 + 406.4 * x[:, 0] ** -0.34 + 410.7 * x[:, 1] ** -0.28
    np.testing.assert_allclose(
        CHINCHILLA(x, E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28), expected, rtol=1e-14
    )


def test_own_laws_may_rise_mix_variables_and_share_exponents() -> None:
    law = Law("E + A N^-a D^-b + B N^b")
    assert law.params == ("E", "A", "a", "b", "B")
    x = np.array([[2.0, 3.0]])
    np.testing.assert_allclose(
        law(x, E=1, A=5, a=0.5, b=0.25, B=2), 1 + 5 * 2**-0.5 * 3**-0.25 + 2 * 2**0.25
    )


@pytest.mark.parametrize("formula", ["", "A * C", "A C^2", "A C^-alpha +", "A C**-alpha"])
def test_an_unreadable_formula_is_refused(formula) -> None:
    with pytest.raises(ValueError, match="cannot read the term"):
        Law(formula)


def test_one_name_is_one_parameter() -> None:
    with pytest.raises(ValueError, match="one name for two"):
        Law("A + A C^-alpha")


def test_missing_parameters_and_columns_are_named() -> None:
    with pytest.raises(ValueError, match="parameters A, alpha, not A"):
        POWER_LAW([1.0], A=2)
    with pytest.raises(ValueError, match="one column for each of N, D"):
        CHINCHILLA([1.0, 2.0], E=1, A=1, alpha=1, B=1, beta=1)
