"""A prompt read in chunks that processes share out equals one pass; what depth attention keeps is
that of a share.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from processes import on_ranks
from torch import Tensor, distributed

from attnres_lab.config import RunConfig, to_yaml
from attnres_lab.mixers import MixersConfig
from attnres_lab.mixers.attention import AttentionConfig
from attnres_lab.mixers.moe import MoEConfig
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.model.generate import Reading, prefill
from attnres_lab.model.shards import Shards
from attnres_lab.model.transformer import Cache
from attnres_lab.ops import decoding
from attnres_lab.ops.decoding import Decoding
from attnres_lab.ops.twophase import TwoPhase
from attnres_lab.pipeline.cost import kept
from attnres_lab.residual.attnres import BlockConfig, FullConfig
from attnres_lab.residual.baseline import BaselineConfig
from attnres_lab.residual.mhc import MHCConfig
from attnres_lab.residual.mudd import MUDDConfig
from attnres_lab.residual.value import ValueConfig

VOCAB, DIM, B, CHUNK = 31, 16, 2, 24
T, EVEN = 71, 72  # the last chunk is 23 tokens, or whole
BLOCK = BlockConfig(block_size=3)
WINDOW = MixersConfig(attention=AttentionConfig(window=9))
HYBRID: dict[str, Any] = {
    "mixers": MixersConfig(pattern=("kda", "mla")),
    "mlp": MoEConfig(experts=4),
}
CASES = {
    "baseline": ModelConfig(VOCAB, DIM, 4, 2, residual=BaselineConfig()),
    "full": ModelConfig(VOCAB, DIM, 4, 2, residual=FullConfig()),
    "block": ModelConfig(VOCAB, DIM, 4, 2, residual=BLOCK),
    "heads": ModelConfig(VOCAB, DIM, 4, 2, residual=replace(BLOCK, heads=4)),
    "window": ModelConfig(VOCAB, DIM, 4, 4, 2, mixers=WINDOW, qk_norm=True, residual=BLOCK),
    "hybrid": ModelConfig(VOCAB, DIM, 4, 2, **HYBRID, residual=BLOCK),
    "mhc": ModelConfig(VOCAB, DIM, 4, 2, residual=MHCConfig()),
    "mudd": ModelConfig(VOCAB, DIM, 4, 2, residual=MUDDConfig()),
    "value": ModelConfig(VOCAB, DIM, 4, 2, residual=ValueConfig(weight=0.5)),
}
#: Processes of the group that reads, out of four.
GROUPS = {"four": (0, 1, 2, 3), "apart": (0, 3)}


def model_of(name: str) -> Transformer:
    """With random depth parameters, so that depth weights matter."""
    model, generator = Transformer(CASES[name], seed=1).eval(), torch.Generator().manual_seed(2)
    for p in model.residual.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator)
    return model


def prompt(length: int) -> Tensor:
    return torch.randint(VOCAB, (B, length), generator=torch.Generator().manual_seed(3))


def held(state: Any) -> int:
    """Bytes of the sources that a state of AttnRes keeps."""
    values = state.buffer.values if isinstance(state, TwoPhase) else state.values
    return int(values.nbytes)


def read(
    name: str, phases: bool, group: Any, length: int = T, chunk: int = CHUNK
) -> dict[str, Any]:
    """Of one process: logits after the prompt and after one more token, what is cached, and the
    most bytes of sources held at once. ``phases``: by the two-phase schedule, whatever the size.
    """
    model, tokens, most = model_of(name), prompt(length), [0]
    cache, finish = model.cache(), model.residual.finish

    def watched(state: Any) -> Tensor:
        if isinstance(state, TwoPhase | Decoding):
            assert isinstance(state, TwoPhase) == phases
            most[0] = max(most[0], held(state))
        return finish(state)

    with ExitStack() as stack:
        stack.enter_context(patch.object(model.residual, "finish", watched))
        if phases:
            stack.enter_context(patch.object(decoding, "FEW", 0))
        logits = prefill(model, tokens, cache, Reading(chunk, group))
    states = [dict(state) for state in cache.states]
    with torch.no_grad():
        after = model(logits.argmax(-1)[:, None], cache)[:, -1]
    return {"logits": logits, "after": after, "states": states, "bytes": most[0]}


def every(rank: int) -> dict[tuple[str, bool, str], list[Any]]:
    """Of all cases and groups, what each process has."""
    found = {}
    for place, members in GROUPS.items():
        group = distributed.new_group(list(members))
        for name in CASES:
            for phases in (False, True):
                mine = read(name, phases, group) if rank in members else None
                found[name, phases, place] = gathered(mine)
    return found


def gathered(mine: Any) -> list[Any]:
    """What each process has, of those that have something."""
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, mine)
    return [part for part in parts if part]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return on_ranks(4, tmp_path_factory.mktemp("four"), every)


@cache
def whole(name: str, length: int = T) -> dict[str, Any]:
    """In one pass of one process, in float64 and without the fast schedules."""
    model, tokens = model_of(name).double(), prompt(length)
    model.residual.apart = True
    past = model.cache()
    with torch.no_grad():
        logits = model(tokens, past)[:, -1]
        more = torch.cat([tokens, logits.argmax(-1)[:, None]], 1)
        return {"logits": logits, "after": model(more)[:, -1], "states": past.states}


def check(found: dict[str, Any], name: str, length: int = T) -> None:
    """Equal to one pass to 1e-5 of the largest value."""
    one = whole(name, length)
    pairs = [(found[key], one[key]) for key in ("logits", "after")]
    for ours, theirs in zip(found["states"], one["states"], strict=True):
        assert ours.keys() == theirs.keys()
        pairs += [(ours[key], theirs[key]) for key in ours]
    for ours, theirs in pairs:
        error = (ours.double() - theirs.double()).abs().max()
        assert error <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("place", GROUPS)
@pytest.mark.parametrize("phases", [False, True], ids=["decoding", "two-phase"])
@pytest.mark.parametrize("name", CASES)
def test_shared_chunks_equal_one_pass(name: str, phases: bool, place: str, shared: Any) -> None:
    """Logits, cache and the next token, at every process."""
    parts = shared[name, phases, place]
    assert len(parts) == len(GROUPS[place])
    for found in parts:
        check(found, name)


@pytest.mark.parametrize("place", GROUPS)
@pytest.mark.parametrize("name", ["full", "block"])
def test_a_process_keeps_the_sources_of_its_share_of_a_chunk(
    name: str, place: str, shared: Any
) -> None:
    """Counted, equal to the formula, and chunk / (ranks x tokens) of those of one pass."""
    config, ranks = CASES[name], len(GROUPS[place])
    one = read(name, False, None, chunk=T)["bytes"]
    for phases in (False, True):
        for found in shared[name, phases, place]:
            assert found["bytes"] == 4 * B * kept(config, CHUNK // ranks)
            assert found["bytes"] / one == pytest.approx(CHUNK / ranks / T)


def test_the_papers_numbers():
    """128K tokens and 8 blocks: 15 GB whole; over 8 ranks in chunks of 16K below 0.3 GB. The paper
    does not count the embedding, and does not say the width: at 7168, in bf16, it is this. Ours
    with the embedding is 9 sources and still below.
    """
    config = ModelConfig(64, 7168, 64, 56, residual=BlockConfig(num_blocks=8))
    whole, share = (2 * kept(config, tokens) for tokens in (2**17, 2**14 // 8))
    blocks = 8 / 9
    assert round(blocks * whole / 1e9) == 15
    assert round(blocks * 2 * kept(config, 2**17 // 8) / 1e9, 1) == 1.9
    assert blocks * share < share < 0.3e9
    assert whole / share == 64


_gather = Shards.gather
#: Planted bug -> what it replaces, and the case that it is planted in.
BUGS: dict[str | None, tuple[Any, str, Any, str]] = {
    None: (Shards, "gather", _gather, "block"),
    "the keys of others are missing": (Shards, "gather", lambda self, x, dim: (x, 0), "block"),
    "keys after its own are seen": (
        Shards,
        "gather",
        lambda self, x, dim: (_gather(self, x, dim)[0], 0),
        "block",
    ),
    "a share starts where the piece does": (Shards, "first", 0, "block"),
    "positions of others are not counted": (
        Cache,
        "past",
        property(lambda self: self.length),
        "block",
    ),
    "a recurrent state is not passed on": (
        Shards,
        "in_turn",
        lambda self, sublayer, state: sublayer,
        "hybrid",
    ),
    "the logits are the process's own": (Shards, "from_last", lambda self, x: x, "block"),
}


def broken(rank: int) -> dict[str | None, Any]:
    """Of each bug, what each process has."""
    found = {}
    for bug, (owner, name, wrong, case) in BUGS.items():
        with patch.object(owner, name, wrong):
            found[bug] = gathered(read(case, True, distributed.group.WORLD, EVEN))
    return found


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return on_ranks(2, tmp_path_factory.mktemp("two"), broken)


@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_a_planted_bug_is_caught(bug: str | None, planted: Any) -> None:
    def check_all() -> None:
        for found in planted[bug]:
            check(found, BUGS[bug][-1], EVEN)

    if bug is None:
        check_all()
        return
    with pytest.raises(AssertionError):
        check_all()


def test_a_chunk_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk: 0 tokens cannot be shared out over 1 processes"):
        Reading(0)


@pytest.mark.slow
def test_the_command_shares_a_prompt_out_under_torchrun(tmp_path: Path) -> None:
    """The text of two processes is that of one; a chunk that they cannot share is one line."""
    config = RunConfig(model=replace(CASES["block"], vocab_size=256))
    weights = Transformer(config.model, seed=4).state_dict()
    torch.save({"config": to_yaml(config), "model": weights}, tmp_path / "a.ckpt")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["-m", "attnres_lab", "generate", str(tmp_path / "a.ckpt")]
    words += ["--prompt", "def read(self, line):", "--max-new-tokens", "9", "--prefill-chunk"]
    one = subprocess.run([sys.executable, *words, "4"], capture_output=True, text=True, check=True)
    two = subprocess.run([*torchrun, *words, "4"], capture_output=True, text=True, check=True)
    assert one.stdout.startswith("def read(self, line):")
    assert two.stdout == one.stdout
    bad = subprocess.run([*torchrun, *words, "5"], capture_output=True, text=True, check=False)
    assert bad.returncode != 0
    assert "--prefill-chunk: 5 tokens cannot be shared out over 2 processes" in bad.stderr
