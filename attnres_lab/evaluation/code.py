"""Programs that a model wrote, run in a process of their own with limits; pass@k of them.

The limits keep a faulty program from harm by accident: time, memory, file sizes, processes, an
empty folder, an empty environment, and no network where the kernel lets users leave it. It is no
jail for a program that means harm; run untrusted models in a container.
"""

from __future__ import annotations

import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

REFUSED = (
    "--allow-code: the task runs programs that the model wrote; give it to have them run, in a "
    "process of their own with limits"
)
SECONDS = 10.0
MEMORY = 1 << 30  # bytes of address space

#: Sets the limits in the new process, then runs the program that it reads.
_LAUNCHER = """
import ctypes, resource, sys
try:
    ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)  # CLONE_NEWUSER | CLONE_NEWNET
except (OSError, AttributeError):
    pass
seconds, memory, word = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
for name, most in (("CPU", seconds), ("AS", memory), ("FSIZE", 1 << 20), ("NPROC", 64),
                   ("NOFILE", 64), ("CORE", 0)):
    kind = getattr(resource, "RLIMIT_" + name)
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))
text = sys.stdin.read()
sys.argv = [""]
exec(compile(text, "program", "exec"), {"__name__": "__main__"})
print(word, end="", flush=True)
"""


def passes(program: str, seconds: float = SECONDS, memory: int = MEMORY) -> bool:
    """Whether the program comes to its end within the limits; one that ends itself early has not.

    The launcher says a secret word at the end, so that nothing the program prints passes for it.
    What it prints goes to a file, where the limit of a file's size holds it; none is read but that.
    """
    word = secrets.token_hex(8).encode()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as out:
        limits = [str(math.ceil(seconds)), str(memory)]
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _LAUNCHER, *limits, word],
            cwd=folder,
            env={"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.communicate(program.encode(errors="replace"), timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
        out.seek(max(0, out.seek(0, os.SEEK_END) - len(word)))
        return process.returncode == 0 and out.read(len(word)) == word


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that one of k of the samples is right, without bias: 1 - C(n - c, k) / C(n, k)
    (arXiv 2107.03374, equation 1). Raises ValueError for k above the number of samples.
    """
    if not 0 < k <= samples:
        raise ValueError(f"pass@{k}: there are {samples} samples")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


class CodeEval:
    """In the place of the hub's metric code_eval."""

    def compute(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Mean pass@k over the tests ``references``, each with its sampled programs."""
        tests = zip(references, predictions, strict=True)
        right = [[passes(f"{program}\n{test}") for program in several] for test, several in tests]
        found = {
            f"pass@{n}": sum(pass_at_k(len(of), sum(of), n) for of in right) / len(right) for n in k
        }
        return found, {}
