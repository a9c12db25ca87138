"""The worked examples of docs/analysis.md give the numbers that are printed there."""

import doctest
from pathlib import Path


def test_every_number_of_the_page_is_what_the_package_gives() -> None:
    page = Path(__file__).parents[2] / "docs" / "analysis.md"
    result = doctest.testfile(
        str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.failed == 0
    assert result.attempted > 20
