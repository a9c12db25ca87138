"""Variants and channel mixers of other packages: a real package on the path with its metadata, as
docs/own_variant.md has it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers import write_run

from attnres_lab.config import load
from attnres_lab.errors import UserError
from attnres_lab.mixers import MLPS
from attnres_lab.residual import OWN, REGISTRY
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.spec import load_spec

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "own_variant.md").read_text()
CODE, CHECK = re.findall(r"```python\n(.*?)```", PAGE, re.S)
TOML = tomllib.loads("\n".join(re.findall(r"```toml\n(.*?)```", PAGE, re.S)))


def install(site: Path, name: str, code: str, points: dict[str, dict[str, str]]) -> None:
    """What pip leaves of a package of one module."""
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / f"{name}.py").write_text(code)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, entries in points.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages; what the registries load of them is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    for registry in (REGISTRY, MLPS):
        monkeypatch.setattr(registry, "loaded", dict(registry.loaded))
    for name in ("depthlab", "otherlab"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


@pytest.mark.slow
def test_the_page_end_to_end(site: Path, tmp_path: Path) -> None:
    """Trained and swept by the command line, and admitted by conformance, in processes of their
    own.
    """
    install(site, "depthlab", CODE, TOML["project"]["entry-points"])
    base = write_run(tmp_path / "base.yaml", budget="2 steps")
    (tmp_path / "sweep.yaml").write_text(
        f"name: s\nbase: {base}\nspace: {{model.residual: [baseline, {{name: damped, floor: [0, "
        "0.5]}]}\n"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)]),
        "ATTNRES_RUNS": str(tmp_path / "runs"),
    }

    def called(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    called("-m", "attnres_lab", "train", str(base), "model.residual.name=damped",
           "model.residual.floor=0.5")  # fmt: skip
    (trained,) = (tmp_path / "runs" / "train").iterdir()
    assert trained.name.startswith("base-damped-f0.5-d16-L2-s0-")
    planned = called("-m", "attnres_lab", "sweep", "plan", str(tmp_path / "sweep.yaml"))
    assert "3 trials, 3 new" in planned
    assert "damped-f0.5-d16-L2-s0" in planned
    called("-c", CHECK)


def test_a_variant_is_known_and_checked_like_our_own(site: Path, tmp_path: Path) -> None:
    install(site, "depthlab", CODE, TOML["project"]["entry-points"])
    assert set(REGISTRY) == {*OWN, "damped"}
    assert len(REGISTRY) == len(OWN) + 1
    assert "depthlab" not in sys.modules  # not before it is asked for
    path = write_run(tmp_path / "base.yaml", **{"model.residual": "damped"})
    assert load(path).model.residual.label == "damped"
    for residual, message in {
        "{name: damped, floor: 2}": r"model\.residual\.floor: 2\.0 is not in \[0, 1\)",
        "{name: damped, flor: 0}": "flor: unknown key, did you mean 'floor'",
        "dampd": "unknown variant 'dampd', did you mean 'damped'",
    }.items():
        path.write_text(f"model: {{residual: {residual}}}\nbudget: 2 steps\n")
        with pytest.raises(UserError, match=rf"base\.yaml:1: .*{message}"):
            load(path)
    sweep = tmp_path / "s.yaml"
    path.write_text("budget: 2 steps\n")
    sweep.write_text(f"name: s\nbase: {path}\nspace: {{model.residual.name: [damped, full]}}\n")
    assert [t.entry.variant for t in Plan(load_spec(sweep)).known()] == ["damped", "full"]


@pytest.mark.parametrize(
    ("code", "points", "message"),
    [
        (
            "import nothing_here",
            {"mine": "otherlab:M"},
            "does not import: otherlab:M: Module",
        ),
        ("", {"mine": "otherlab:M"}, "does not import: otherlab:M: AttributeError"),
        ("class M: pass", {"mine": "otherlab:M"}, "otherlab:M is no subclass of attnres_"),
        (
            CODE,
            {"mine": "otherlab:Damped"},
            "its config is named 'damped'; give both",
        ),
    ],
)
def test_an_entry_point_of_no_use_is_told_in_one_line(
    code: str, points: dict[str, str], message: str, site: Path, tmp_path: Path
) -> None:
    install(site, "otherlab", code, {"attnres.residual": points})
    path = write_run(tmp_path / "base.yaml", **{"model.residual": "mine"})
    with pytest.raises(UserError) as caught:
        load(path)
    assert message in str(caught.value)
    assert "model.residual.name: 'mine', an entry point of attnres.residual" in str(caught.value)
    assert "\n" not in str(caught.value)
    path.write_text("model: {residual: {name: full, windw: 3}}\nbudget: 2 steps\n")
    with pytest.raises(UserError, match="unknown key, did you mean 'window'"):
        load(path)  # what is broken is no concern of others


def test_names_that_clash(site: Path) -> None:
    """Ours stay ours; two packages of one name are told apart by the user."""
    entries = {"attnres.residual": {"damped": "depthlab:Damped", "full": "depthlab:Damped"}}
    install(site, "depthlab", CODE, entries)
    install(site, "otherlab", CODE, {"attnres.residual": {"damped": "otherlab:Damped"}})
    assert REGISTRY["full"] is OWN["full"]
    with pytest.raises(UserError, match="declared twice: depthlab:Damped, otherlab:Damped"):
        REGISTRY["damped"]


def test_a_channel_mixer_of_another_package(site: Path, tmp_path: Path) -> None:
    code = (
        "from dataclasses import dataclass\n"
        "from attnres_lab.mixers import SwiGLUConfig\n"
        "@dataclass(frozen=True)\n"
        "class Mine(SwiGLUConfig):\n"
        "    name: str = 'mine'\n"
        "    strength: float = 1.0\n"
    )
    install(site, "otherlab", code, {"attnres.mlp": {"mine": "otherlab:Mine"}})
    path = write_run(tmp_path / "base.yaml", **{"model.mlp": {"name": "mine", "strength": 2.0}})
    assert vars(load(path).model.mlp)["strength"] == 2.0
