"""Programs run within limits, and what passes is counted without bias."""

from __future__ import annotations

import itertools
import time

import pytest

from attnres_lab.evaluation.code import CodeEval, pass_at_k, passes


def test_a_program_passes_that_comes_to_its_end():
    assert passes("import math\nassert math.sqrt(4) == 2\nprint('passed')")
    assert not passes("assert 1 == 2")
    assert not passes("x = (")
    assert not passes("import sys\nsys.exit(0)")
    assert not passes("import os\nprint('passed', flush=True)\nos._exit(0)")


@pytest.mark.parametrize(
    "program",
    [
        "x = bytearray(3 << 30)",
        "open('big', 'wb').write(bytes(4 << 20))",
        "print('x' * (4 << 20))",
        "import os\nassert os.listdir('.')",
        "import os\nassert 'HOME' in os.environ or 'PATH' in os.environ",
        "open('/proc/self/fd/2', 'w')\nimport os\nfor n in range(200): os.open('/', 0)",
    ],
    ids=["memory", "file size", "output", "empty folder", "empty environment", "open files"],
)
def test_a_limit_ends_a_program(program):
    assert not passes(program)


def test_time_is_limited_and_children_go_too(tmp_path):
    begun = time.monotonic()
    left = tmp_path / "left"
    child = f"import time; time.sleep(3); open({str(left)!r}, 'w')"
    program = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
    assert not passes(program + "while True: pass", seconds=1)
    assert time.monotonic() - begun < 3
    time.sleep(3)
    assert not left.exists()


def test_pass_at_k_is_the_share_of_choices_that_hold_a_right_one():
    for n, c, k in [(5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2), (6, 5, 2)]:
        picks = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, picks)) / len(picks))
    with pytest.raises(ValueError, match="pass@3: there are 2 samples"):
        pass_at_k(2, 1, 3)
    good, bad = "def f(): return 1", "def f(): return 2"
    found, _ = CodeEval().compute(["assert f() == 1"] * 2, [[good, bad], [bad, bad]], [1, 2])
    assert found == {"pass@1": 0.25, "pass@2": 0.5}
