"""Every registered residual connection, and every option worth a sweep, passes the conformance
suite.
"""

import re

import pytest
from cases import CASES, PARTITIONS
from conformance import CHECKS, build, check_starts_as_baseline

from attnres_lab.residual import REGISTRY


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("config", CASES, ids=lambda config: config.label)
def test_conformance(config, check):
    check(config)


@pytest.mark.parametrize("config", [*CASES, *PARTITIONS], ids=lambda config: config.label)
def test_starts_as_the_baseline_or_says_why_not(config):
    """The mark is honest in both directions: a variant that is marked really differs."""
    if build(config).residual.starts_as_baseline:
        check_starts_as_baseline(config)
    else:
        with pytest.raises(AssertionError):
            check_starts_as_baseline(config)


def test_the_registry_is_covered():
    assert {config.name for config in CASES} == set(REGISTRY)


def test_labels_are_unique_and_safe_in_file_names():
    labels = [config.label for config in (*CASES, *PARTITIONS)]
    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", label) for label in labels)
