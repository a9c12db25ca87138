"""Every variant of the registry has a definition written a second time, and the test that compares
the two.
"""

import importlib

import pytest
from conformance import D
from test_reference import EPS, assert_agrees

from attnres_lab.residual import REGISTRY, BaselineConfig
from attnres_lab.residual.baseline import Baseline

COMPARED = {
    "baseline": ("test_defined", "test_baseline"),
    "full": ("test_reference", "test_full_with_random_queries"),
    "block": ("test_reference", "test_block_with_random_queries"),
    "denseformer": ("test_variants", "test_denseformer"),
    "hyper": ("test_variants", "test_hyper_connections"),
    "mhc": ("test_variants", "test_manifold_hyper_connections"),
    "delta": ("test_rivals", "test_delta_block"),
    "rescaled": ("test_variants", "test_rescaled"),
    "rmsblock": ("test_rivals", "test_rms_block"),
    "frac": ("test_rivals", "test_frac_connections"),
    "gated": ("test_rivals", "test_gated_streams"),
    "ddl": ("test_rivals", "test_ddl"),
    "x0": ("test_rivals", "test_x0"),
    "value": ("test_apart", "test_value_residual"),
    "mudd": ("test_apart", "test_mudd"),
}


def test_baseline():
    """PreNorm: all outputs are added to the embedding."""

    def expected(x, fs):
        outputs = [x]
        for f in fs:
            outputs.append(f(sum(outputs)))
        return sum(outputs)

    assert_agrees(Baseline(BaselineConfig(), 8, D, EPS), 8, expected)


def test_every_variant_is_compared():
    assert set(COMPARED) == set(REGISTRY)


@pytest.mark.parametrize(("module", "name"), COMPARED.values(), ids=COMPARED)
def test_the_comparison_is_there(module, name):
    assert callable(getattr(importlib.import_module(module), name))
