"""Imported once by the fork server, last: what every trial would otherwise do for itself."""

from __future__ import annotations

import atexit
import gc

from attnres_lab.config import RunConfig, load, to_yaml
from attnres_lab.yamlfile import YamlFile

load(YamlFile("defaults", to_yaml(RunConfig())))  # builds the schemas of the config tree
atexit.register(gc.unfreeze)  # else extension modules complain at exit of leaks that are none
# what is imported is never garbage: forked trials need not look at it, nor copy its pages
gc.freeze()
