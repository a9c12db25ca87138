"""The GPU kernels compiled ahead of time, on a machine without a GPU: how wide their accesses are,
and what ptxas says of registers and spills.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (pip install 'attnres-lab[triton]')")
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attnres_lab.ops import fused, kernels
from attnres_lab.ops.reads import PAPER, Weighing

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TYPES = {"eps": "fp32", "S": "i32", "M": "i32", "UNITS": "i32", "D": "i32"}


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """No compiled kernel of an earlier version is taken from a cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # else Triton 3.9 warns


def compiled(name, dtype, dim, capability, how=PAPER):
    """A kernel as a launch compiles it: addresses of allocations are multiples of 16; nothing is
    known of the sizes.
    """
    kernel = getattr(kernels, name)
    sizes = fused._sizes(dim, how)
    warps = sizes.pop("num_warps")
    constants = {
        "TYPE": fused.TYPES[dtype],
        "MIXING": how.mixing,
        "KEY_NORM": how.key_norm,
        **sizes,
    }
    pointers = {"table": "*i64", "d_table": "*i64"}
    pointers |= dict.fromkeys(("h", "grad"), f"*{NAMES[dtype]}")
    signature = {
        argument: "constexpr"
        if argument in constants
        else TYPES.get(argument) or pointers.get(argument, "*fp32")
        for argument in kernel.arg_names
    }
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    return triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps},
    )


def accesses(kernel):
    """Instructions that touch global memory, by their width."""
    return Counter(re.findall(r"\b(?:ld|st)\.global\.(\S+)", kernel.asm["ptx"]))


def resources(kernel, folder):
    """Registers a thread, and bytes of stack (spills), from the machine code."""
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    said = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout)
    return int(found[1]), int(found[2])


WORD = 8  # bytes of stack that ptxas keeps in some compilations; spills are many
KERNELS = ["forward", "backward"]
OPTIONS = {
    "paper": PAPER,
    "heads": Weighing(heads=4),
    "sigmoid": Weighing("sigmoid"),
    "sigmoid heads": Weighing("sigmoid", heads=2),
    "static": Weighing("static"),
    "no key norm": Weighing(key_norm=False),
    "no key norm, heads": Weighing(heads=4, key_norm=False),
}
ALL = [
    (option, capability, dtype, dim)
    for option in OPTIONS
    for capability in (80, 90, 100)
    for dtype in NAMES
    for dim in (8, 40, 64, 768, 1024, 4096, 8192)
    if dim // OPTIONS[option].heads % 8 == 0
]
QUICK = [
    ("paper", 80, torch.float32, 40),
    ("paper", 90, torch.bfloat16, 1024),
    ("paper", 100, torch.bfloat16, 8192),
    ("heads", 90, torch.bfloat16, 768),
    ("sigmoid", 80, torch.float16, 64),
    ("static", 100, torch.bfloat16, 4096),
    ("no key norm", 90, torch.bfloat16, 1024),
]


def _rarely(case):
    """A stride of the rest is slow, all of it exhaustive."""
    return pytest.mark.slow if ALL.index(case) % 23 == 0 else pytest.mark.exhaustive


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("option", "capability", "dtype", "dim"),
    [case if case in QUICK else pytest.param(*case, marks=_rarely(case)) for case in ALL],
)
def test_rows_move_128_bits_at_a_time_and_nothing_spills(
    name, option, capability, dtype, dim, tmp_path
):
    """Where a head's width is a multiple of 8. Narrow are only the addresses (64 bits), and the
    weights and statistics of a token (32 bits: at most five a thread, eight with heads).
    """
    how = OPTIONS[option]
    kernel = compiled(name, dtype, dim, capability, how)
    widths = accesses(kernel)
    passes = 2 if name == "backward" and how.mixing == "softmax" else 1
    assert widths.pop("b64") == passes + (name == "backward")
    assert widths.pop("b32") <= (5 if how.heads == 1 else 8)
    assert set(widths) == {"v4.b32"}, widths
    registers, stack = resources(kernel, tmp_path)
    assert registers <= 128
    assert stack <= WORD


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", KERNELS)
def test_any_width_compiles_without_spills(name, option, tmp_path):
    """Odd widths cannot have wide accesses."""
    how = OPTIONS[option]
    for width in (37, 8191 // how.heads):
        kernel = compiled(name, torch.bfloat16, width * how.heads, 90, how)
        assert resources(kernel, tmp_path)[1] <= WORD


class Operators(TorchDispatchMode):
    """Names of all operators that PyTorch runs inside."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        self.names.add(operator.__name__.split(".")[0])
        return operator(*arguments, **(keywords or {}))


class Launches:
    """In a kernel's place: takes every launch and does nothing."""

    def __getitem__(self, grid):
        return lambda *arguments, **options: None


@pytest.mark.parametrize("option", OPTIONS)
def test_a_read_copies_nothing_from_the_host_and_waits_for_nothing(option, monkeypatch):
    """So that a CUDA graph can hold it: outside the kernels, allocation and in-place arithmetic."""
    for name in ("addresses", *KERNELS):
        monkeypatch.setattr(kernels, name, Launches())
    how, sources, grad = OPTIONS[option], [torch.ones(6, 16) for _ in range(40)], torch.ones(6, 16)
    query = torch.ones(40 if how.mixing == "static" else 16)
    with Operators() as seen:
        _, alpha = fused.depth_read(sources, query, 1e-6, how)
        fused.depth_read_backward(grad, sources, query, alpha, 1e-6, how)
    allowed = {"empty_like", "new_empty", "slice", "sub_", "exp_", "sum", "detach"}
    if how.mixing == "static":
        allowed |= {"_softmax", "unsqueeze", "view", "mul", "sub"}
    assert seen.names <= allowed
