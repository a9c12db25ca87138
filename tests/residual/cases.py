"""Configs that the conformance suite runs: the default of every registry entry, then the
options.
"""

from attnres_lab.residual import REGISTRY
from attnres_lab.residual.attnres import BlockConfig, FullConfig
from attnres_lab.residual.delta import DeltaConfig
from attnres_lab.residual.denseformer import DenseFormerConfig
from attnres_lab.residual.frac import FracConfig
from attnres_lab.residual.gated import GatedConfig
from attnres_lab.residual.hyper import HyperConfig
from attnres_lab.residual.mhc import MHCConfig
from attnres_lab.residual.mudd import MUDDConfig
from attnres_lab.residual.rmsblock import RMSBlockConfig
from attnres_lab.residual.value import ValueConfig

CASES = [
    *(cls.Config() for cls in REGISTRY.values()),
    BlockConfig(block_size=5),
    FullConfig(query="input"),
    FullConfig(mixing="sigmoid"),
    FullConfig(mixing="static"),
    FullConfig(key_norm=False),
    FullConfig(heads=4),
    FullConfig(window=1),
    FullConfig(window=3),
    FullConfig(window=11),
    FullConfig(temperature=0.5),
    FullConfig(output_read=False),
    FullConfig(query="input", mixing="sigmoid", key_norm=False, heads=2, temperature=2.0, window=4),
    BlockConfig(block_size=5, query="input", heads=2),
    BlockConfig(block_size=5, mixing="sigmoid", key_norm=False),
    BlockConfig(block_size=5, mixing="static"),
    BlockConfig(num_blocks=3, heads=8),
    BlockConfig(num_blocks=3, mixing="static", output_read=False),
    BlockConfig(num_blocks=3, output_read=False),
    DenseFormerConfig(dilation=2, period=3),
    DenseFormerConfig(dilation=6, period=2),
    HyperConfig(dynamic=False),
    HyperConfig(streams=3, dynamic=False),
    MHCConfig(streams=2),
    MHCConfig(mixing="permutations"),
    MHCConfig(streams=3, mixing="permutations"),
    MHCConfig(mixing="identity"),
    FullConfig(query_std=0.02),
    BlockConfig(block_size=5, heads=4, query_std=0.5),
    RMSBlockConfig(block_size=5),
    RMSBlockConfig(num_blocks=3, mixing="sigmoid", output_read=False),
    FracConfig(parts=2, dynamic=False),
    FracConfig(parts=8),
    DeltaConfig(block_size=5),
    DeltaConfig(query_std=0.02),
    DeltaConfig(block_size=3, null_source=True),
    DeltaConfig(block_size=3, gate=True, query_std=0.02),
    GatedConfig(streams=2, rank=3),
    ValueConfig(weight=0.5),
    MUDDConfig(norms=True),
    MUDDConfig(ways="r"),
    MUDDConfig(ways="r", norms=True),
]

#: Further partitions of the 12 sublayers into blocks: they differ from the block of CASES in the
#: mixing only, which identity and reference see.
PARTITIONS = [
    *(BlockConfig(block_size=size) for size in (1, 2, 3, 4, 6, 12)),
    *(BlockConfig(num_blocks=count) for count in (1, 5)),
]
