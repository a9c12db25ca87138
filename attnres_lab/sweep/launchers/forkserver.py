"""Imported once by the fork server, last: what every trial would otherwise do for itself."""

from __future__ import annotations

import atexit
import gc
import tempfile

from attnres_lab.config import RunConfig, load, to_yaml
from attnres_lab.runs import RunFolder

with tempfile.TemporaryDirectory() as _folder:
    _path = RunFolder(_folder).config
    _path.write_text(to_yaml(RunConfig()))
    load(_path)  # builds the schemas of the config tree
atexit.register(gc.unfreeze)  # else extension modules complain at exit of leaks that are none
# what is imported is never garbage: forked trials need not look at it, nor copy its pages
gc.freeze()
