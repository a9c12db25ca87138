"""Initialisation. What else a sublayer has, it says itself (``Mixer.init_weights``).

    weight                    | distribution      | standard deviation
    --------------------------|-------------------|---------------------------------------------
    embed                     | normal            | 1 (tied: 1/sqrt(D), the input times sqrt(D))
    projection of patches     | truncated normal  | 1/sqrt(fan in)
    positions of patches      | normal            | 0.02 (arXiv 2010.11929)
    head                      | normal            | 1/sqrt(D)
    sublayers' projections    | truncated normal  | 1/sqrt(fan in)
    out, of every sublayer    | truncated normal  | 1/sqrt(fan in * number of sublayers)
    norm gains, biases        | constant 1, 0     |
    residual parameters       | by the variant    | deterministic; queries where query_std asks

The embedding has unit scale because every depth read divides by about the number of sources: with
std 0.02 the norm's eps (1e-6) would already change the logits by 2.8 %, with unit scale by less
than 1e-5. Weights are drawn from one generator in the order of the trunk's modules, so that all
variants of a seed share them; a variant that starts at random draws from a generator of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from attnres_lab.model.transformer import Network


def init_weights(model: Network, seed: int) -> None:
    """Draw the trunk's weights from ``seed``, in place, and what the variant starts at random."""
    generator = torch.Generator().manual_seed(seed)
    c = model.config
    model.draw_embedding(generator)
    for sublayer in model.mixers():
        sublayer.init_weights(generator, c.num_sublayers)
    nn.init.normal_(model.head.weight, std=c.dim**-0.5, generator=generator)
    # the complement: the generator keeps 32 bits, and the same ones would repeat the trunk's draws
    model.residual.draw(torch.Generator().manual_seed(~seed))
