"""Large buffers that one pass after the other uses again (CPU)."""

from __future__ import annotations

import math
import sys
import threading

import numpy as np
import torch
from torch import Tensor

_spare: list[np.ndarray] = []
_taking = threading.Lock()


def uninitialised(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised memory, if possible what the last pass has let go: fresh pages cost more than
    filling them. Four blocks at most are kept.
    """
    size = math.prod(shape) * like.element_size()
    if size < 1 << 20:
        return like.new_empty(shape)
    with _taking:
        for place in range(len(_spare)):
            # the list and this call: no tensor lives in it
            if _spare[place].nbytes == size and sys.getrefcount(_spare[place]) == 2:
                block = _spare.pop(place)
                break
        else:
            block = np.empty(size, np.uint8)
        _spare.append(block)
        del _spare[:-4]
        return torch.from_numpy(block).view(like.dtype).view(shape)
