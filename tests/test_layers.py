"""The layers of docs/design.md hold: a module imports only what lies below it, and knows no file of
a run or a sweep but through ``attnres_lab.runs``.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from attnres_lab.runs import RunFolder, SweepFolder
from attnres_lab.sweep.schema import SweepSpec

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"errors"},
    {"runs", "yamlfile", "shipped", "plugins"},
    {"ops"},
    {"residual", "mixers"},
    {"model"},
    {"pipeline"},
    {"data"},
    {"config"},
    {"training"},
    {"pretrained"},
    {"tracking"},
    {"evaluation"},
    {"sweep", "benchmarks", "analysis"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    typing_only = {
        id(n)
        for b in ast.walk(tree)
        if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.unparse(b.test)
        for n in ast.walk(b)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize(
    "path", sorted((ROOT / "attnres_lab").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_module_imports_only_what_lies_below(path: Path) -> None:
    own = path.relative_to(ROOT / "attnres_lab").parts[0].removesuffix(".py")
    if own.startswith("__"):
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "attnres_lab" and len(parts) > 1 and parts[1] in RANK:
            assert parts[1] == own or RANK[parts[1]] < RANK[own], f"{path.name} imports {name}"
        assert parts[0] != "analysis" or own in ("cli", "sweep", "analysis"), (
            f"{path.name} imports {name}"
        )


@pytest.mark.parametrize("path", sorted((ROOT / "analysis").rglob("*.py")), ids=lambda p: p.name)
def test_analysis_meets_the_lab_in_its_run_folders_only(path: Path) -> None:
    found = imports(path)
    assert not {name.split(".")[0] for name in found} & {"torch", "pytorch_lightning", "optuna"}
    for name in found:
        if name.startswith("attnres_lab"):
            assert name.split(".")[1] == "runs", f"{path.name} imports {name}"


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("omegaconf", "config"),
        ("optuna", "sweep"),
        ("mlflow", "tracking"),
        ("pytorch_lightning", "training"),
    ],
)
def test_a_library_has_one_home(library: str, home: str) -> None:
    for path in (ROOT / "attnres_lab").rglob("*.py"):
        own = path.relative_to(ROOT / "attnres_lab").parts[0].removesuffix(".py")
        if own not in home.split():
            assert library not in {name.split(".")[0] for name in imports(path)}, (
                f"{path.name} imports {library}"
            )


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Imports inside functions count, those for type checkers alone do not."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in ("attnres_lab", "analysis")
        for path in (ROOT / folder).rglob("*.py")
    }
    edges = {
        module: {
            target
            for name in imports(path)
            if (target := name if name in files else name.rpartition(".")[0]) in files
            and target != module
        }
        for module, path in files.items()
    }
    while leaves := {module for module, targets in edges.items() if not targets & set(edges)}:
        edges = {module: targets for module, targets in edges.items() if module not in leaves}
    assert not edges


#: What the files and folders of runs and sweeps are called, as the two classes have it.
NAMES = {
    path.name
    for folder in (RunFolder("."), SweepFolder("."))
    for path in vars(folder).values()
    if isinstance(path, Path) and path.name
}


def texts(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every text but docstrings, and whether it is a part of a path: ``folder / "trials"``."""
    told = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    parts = {id(n.right) for n in ast.walk(tree) if isinstance(n, ast.BinOp)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value, id(node) in parts


@pytest.mark.parametrize(
    "path",
    [
        path
        for package in ("analysis", "attnres_lab")
        for path in sorted((ROOT / package).rglob("*.py"))
        if "runs" not in path.parent.parts
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_only_runs_knows_what_the_files_of_a_run_are_called(path: Path) -> None:
    """A file that two modules name is an edge that no import shows."""
    named = "|".join(re.escape(name) for name in NAMES if "." in name)
    for text, is_part in texts(ast.parse(path.read_text())):
        assert not re.search(rf"(?<!\w)({named})\b", text), text
        assert not (is_part and NAMES & set(text.split("/"))), text


def test_what_analysis_reads_of_a_sweep_file_is_in_its_schema() -> None:
    """The one format that it reads beside the files of ``runs``."""
    found = {path.name for path in (ROOT / "analysis").rglob("*.py") if "yaml" in imports(path)}
    assert found == {"evidence.py"}
    text = (ROOT / "analysis" / "report" / "evidence.py").read_text()
    keys = set(re.findall(r"self\._yaml\.get\(\"(\w+)\"", text))
    assert {"question", "verdict", "tune"} <= keys
    assert len(keys) == text.count("self._yaml.")
    assert keys <= {field.name for field in fields(SweepSpec)}
