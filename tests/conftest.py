"""Shared fixtures."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# speed is for benchmarks to tell, not for tests
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")
