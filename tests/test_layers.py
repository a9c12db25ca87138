"""The layers of docs/design.md hold: a module imports only what lies below it."""

import ast
from pathlib import Path

import pytest

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
            for target in (name, name.rpartition(".")[0])
            if target in files and target != module and files[target].name != "__init__.py"
        }
        for module, path in files.items()
    }
    while leaves := {module for module, targets in edges.items() if not targets & set(edges)}:
        edges = {module: targets for module, targets in edges.items() if module not in leaves}
    assert not edges
