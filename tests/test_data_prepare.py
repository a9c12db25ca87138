"""Preparing survives kills, company, full disks and damage; its cache holds what the tokens depend
on and nothing else.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from text_files import TEXTS, config, train_bpe, write
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.data import Corpus, DataConfig, build, prepare
from attnres_lab.errors import UserError

SMALL = 2000  # tokens per shard
#: Prepares slowly with small shards; prints its shards as they are made, then the fingerprint.
CHILD = f"""
import sys, time
from attnres_lab.data import DataConfig, SourceConfig, build, prepare
build.SHARD_TOKENS, build.BATCH_BYTES = {SMALL}, 200
encoded, write_shard = build._encoded, build._write_shard
def slow(*arguments):
    for item in encoded(*arguments):
        time.sleep(0.0005)
        yield item
def told(folder, index, *rest):
    shard = write_shard(folder, index, *rest)
    if shard: print("shard", index, flush=True)
    return shard
build._encoded, build._write_shard = slow, told
print("ready", flush=True)
source = SourceConfig("files", (sys.argv[1],))
sizes = dict(seq_len=8, val_tokens=8, val_fraction=0.2)
corpus = prepare(DataConfig(source, **sizes, cache_dir=sys.argv[2]))
print(corpus.fingerprint, flush=True)
"""


def start(settings: DataConfig) -> subprocess.Popen[str]:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", CHILD, settings.source.paths[0], str(settings.cache_dir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


@pytest.fixture
def settings(tmp_path: Path) -> DataConfig:
    return config(
        tmp_path, write(tmp_path, "jsonl", [f"{i} {text}" for i in range(10) for text in TEXTS])
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SHARD_TOKENS", SMALL)


def finished(cache: Path) -> dict[Path, int]:
    """Files of the shards that have their record, with their time of change."""
    return {
        path: path.stat().st_mtime_ns
        for path in cache.rglob("0*.bin")
        if path.with_name(path.name[:5] + ".json").exists()
    }


def content(corpus: Corpus) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(corpus.folder.iterdir())}


@pytest.mark.usefixtures("small")
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    settings: DataConfig, tmp_path: Path
) -> None:
    """Finished shards are not written again, and nothing else is left in the folder."""
    whole = prepare(replace(settings, cache_dir=str(tmp_path / "other")))
    moments = random.Random(5)
    kept: dict[Path, int] = {}
    for _ in range(3):
        child = start(settings)
        assert child.stdout is not None
        # "ready", then shards; the first child that is killed has made one at least
        for _ in range(moments.randint(1, 4)):
            assert child.stdout.readline() in (
                "ready\n",
                *(f"shard {index}\n" for index in range(9)),
            )
        time.sleep(moments.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        kept |= finished(tmp_path / "cache")
    assert kept
    assert not list((tmp_path / "cache").rglob("manifest.json"))
    # what a kill within the writing of a record leaves
    (next(iter(kept)).parent / ".00003.json.1.tmp").write_text("{")
    corpus = prepare(settings)
    assert content(corpus) == content(whole)
    assert kept.items() <= finished(tmp_path / "cache").items()


@pytest.mark.usefixtures("small")
def test_two_processes_at_once_give_one_result(settings: DataConfig) -> None:
    """One works, the other waits and reads."""
    children = [start(settings) for _ in range(2)]
    told = [child.communicate(timeout=60)[0].split("\n")[1:-1] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    corpus = prepare(settings)
    assert [lines[-1] for lines in told] == [corpus.fingerprint] * 2
    assert sorted(len(lines) - 1 for lines in told) == [0, len(corpus.train_sizes)]
    assert len(corpus.train_sizes) > 5


def mount(folder: Path, options: str) -> None:
    result = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if result.returncode:
        pytest.skip(f"no right to mount a small file system here ({result.stderr.strip()})")


@pytest.mark.usefixtures("small")
@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="mounting a small file system needs root",
)
def test_a_full_disk_is_said_and_loses_nothing(settings: DataConfig, tmp_path: Path) -> None:
    """An earlier corpus still opens, finished shards stay, and with more space the work goes on
    from there.
    """
    whole = prepare(replace(settings, cache_dir=str(tmp_path / "other")))
    (tmp_path / "cache").mkdir()
    mount(tmp_path / "cache", "size=96k")
    try:
        earlier = replace(settings, max_tokens=3000)
        fingerprint = prepare(earlier).fingerprint
        with pytest.raises(
            UserError,
            match=(
                r"cannot be written \(No space left on device\); free some space or set "
                r"data.cache_dir"
            ),
        ):
            prepare(settings)
        assert prepare(earlier).fingerprint == fingerprint
        kept = finished(tmp_path / "cache")
        assert len(kept) > 4
        assert not list((tmp_path / "cache").rglob("*tmp"))
        mount(tmp_path / "cache", "remount,size=10m")
        assert content(prepare(settings)) == content(whole)
        assert kept.items() <= finished(tmp_path / "cache").items()
    finally:
        subprocess.run(["umount", str(tmp_path / "cache")], check=True)


def test_a_limit_on_file_sizes_is_said_too(settings: DataConfig, tmp_path: Path) -> None:
    """The same failure without the right to mount: a write that the system refuses."""
    code = CHILD.replace(
        f"build.SHARD_TOKENS, build.BATCH_BYTES = {SMALL}",
        "build.SHARD_TOKENS, build.BATCH_BYTES = 10**6",
    )
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n{code}"
    result = subprocess.run(
        [sys.executable, "-c", code, settings.source.paths[0], str(settings.cache_dir)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert "cannot be written (File too large); free some space" in result.stderr
    assert [path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()] in (
        [],
        [".lock"],
    )


@pytest.mark.usefixtures("small")
def test_damage_is_named_with_its_remedy_and_force_repairs_it(settings: DataConfig) -> None:
    corpus = prepare(settings)
    remedy = "delete this folder or run attnres data prepare CONFIG --force"
    shard, manifest = corpus.folder / "00001.train.bin", corpus.folder / "manifest.json"
    size = shard.stat().st_size
    for damage, message in (
        (
            lambda: os.truncate(shard, size - 1),
            f"00001.train.bin has {size - 1} bytes in place of {size}",
        ),
        (shard.unlink, "00001.train.bin is missing"),
        (lambda: manifest.write_text(manifest.read_text()[:100]), "manifest.json is damaged"),
    ):
        damage()
        with pytest.raises(
            UserError,
            match=f"{corpus.folder}: the prepared corpus is corrupt .{message}.; {remedy}",
        ):
            prepare(settings)
        assert prepare(settings, force=True) == corpus
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"00001.train.bin: checksum differs"):
        prepare(settings).verify()
    prepare(settings, force=True).verify()


def test_the_cache_holds_what_the_tokens_depend_on_and_nothing_else(
    settings: DataConfig, tmp_path: Path
) -> None:
    folder = prepare(settings).folder
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare(replace(settings, seq_len=16, val_tokens=999)).folder == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    train_bpe(tmp_path / "bpe.json")
    bpe = replace(settings, tokenizer=str(tmp_path / "bpe.json"))
    others = [
        prepare(other)
        for other in (replace(settings, val_fraction=0.3), replace(settings, max_tokens=5000), bpe)
    ]
    (tmp_path / "bpe.json").write_text((tmp_path / "bpe.json").read_text() + " ")
    others.append(prepare(bpe))
    with open(tmp_path / "b.jsonl", "a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    others.append(prepare(settings))
    assert len({corpus.folder for corpus in others} | {folder}) == 6


def test_files_that_change_while_they_are_read_are_no_corpus(
    settings: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = build._shards

    def meanwhile(*arguments: object) -> object:
        result = shards(*arguments)
        (tmp_path / "b.jsonl").write_text("")
        return result

    monkeypatch.setattr(build, "_shards", meanwhile)
    with pytest.raises(UserError, match="files changed while they were read; prepare again"):
        prepare(settings)
    assert not list((tmp_path / "cache").rglob("manifest.json"))


def test_the_command_prepares_then_checks(tmp_path: Path, settings: DataConfig) -> None:
    """Progress on the terminal; a second call reads every checksum."""
    words = [
        "data",
        "prepare",
        str(Path(__file__).parent.parent / "experiments" / "tiny.yaml"),
        "data.source.name=files",
    ]
    words += [
        f"data.source.paths=[{settings.source.paths[0]}]",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.seq_len=64",
    ]
    for _ in range(2):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        assert "checksums verified" in result.output
    (shard,) = (tmp_path / "cache").rglob("00000.train.bin")
    shard.write_bytes(bytes(shard.stat().st_size))
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, UserError)
    assert CliRunner().invoke(app, [*words, "--force"]).exit_code == 0


MEMORY = """
import sys
import tokenizers
from attnres_lab.data import DataConfig, SourceConfig, prepare
lines = lambda: open("/proc/self/status")
status = lambda name: next(int(l.split()[1]) * 1024 for l in lines() if l.startswith(name))
before = status("VmRSS")
source = SourceConfig("files", (sys.argv[1],))
prepare(DataConfig(source, tokenizer=sys.argv[3], cache_dir=sys.argv[2]))
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("tokenizer", "megabytes"), [("bytes", 320), ("bpe", 16)])
def test_memory_stays_below_its_stated_bound(
    tmp_path: Path, tokenizer: str, megabytes: int
) -> None:
    """256 MiB beyond the libraries for a corpus larger than that; with a JSON tokenizer, whose
    encodings of it would take far more.
    """
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(5000)]
    with open(tmp_path / "a.jsonl", "w") as file:
        for _ in range(megabytes):
            for _ in range(100):
                file.write(json.dumps({"text": " ".join(draw.choices(words, k=1600))}) + "\n")
    assert (tmp_path / "a.jsonl").stat().st_size > megabytes * 1_000_000
    name = "bytes"
    if tokenizer == "bpe":
        train_bpe(tmp_path / "bpe.json")
        name = str(tmp_path / "bpe.json")
    command = [
        sys.executable,
        "-c",
        MEMORY,
        str(tmp_path / "a.jsonl"),
        str(tmp_path / "cache"),
        name,
    ]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True
    )
    print("peak", int(result.stdout) / 2**20, "MiB")
    assert int(result.stdout) < 256 * 2**20
