"""The package ``analysis`` under a name that cannot clash: the same modules, found beside this
package whatever else of that name lies on the path or was imported before.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

HOME = Path(__file__).resolve().parents[1] / "analysis"


class _Alias(MetaPathFinder, Loader):
    """``attnres_lab.analysis.gain`` is the module ``analysis.gain``, not a second copy of it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.startswith(f"{__name__}.") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(spec.name.removeprefix("attnres_lab."))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run already; it keeps the spec of its own name."""
        assert module.__spec__
        module.__spec__ = module.__spec__.loader_state


def _claim() -> ModuleType:
    found = sys.modules.get("analysis")
    if found and HOME in [Path(place) for place in getattr(found, "__path__", ())]:
        return found
    for name in [n for n in sys.modules if n.partition(".")[0] == "analysis"]:
        del sys.modules[name]  # another package of that name
    places = [str(HOME)]
    spec = spec_from_file_location(
        "analysis", HOME / "__init__.py", submodule_search_locations=places
    )
    assert spec
    assert spec.loader
    own = sys.modules["analysis"] = module_from_spec(spec)
    spec.loader.exec_module(own)
    return own


_own = _claim()
sys.meta_path.insert(0, _Alias())

from analysis import *  # noqa: E402, F403  # the names, for readers that do not run this

sys.modules[__name__] = _own
