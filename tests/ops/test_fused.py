"""The GPU kernels, without a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("part", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
@pytest.mark.skipif(
    not importlib.util.find_spec("triton"),
    reason="Triton is not installed (pip install 'attnres-lab[triton]')",
)
def test_the_triton_kernels_pass_their_tests_in_the_interpreter(part):
    """In a process of its own: Triton decides at its first import whether to interpret."""
    here = Path(__file__)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        part,
        "-p",
        "no:cacheprovider",
        str(here.with_name("interpreted.py")),
    ]
    run = subprocess.run(
        command,
        cwd=here.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
