"""Residual connections: the seam, and the registry of variants (a line each)."""

from attnres_lab.plugins import Registry
from attnres_lab.residual.attnres import AttnRes, Block
from attnres_lab.residual.base import Residual, ResidualConfig, Sublayer
from attnres_lab.residual.baseline import Baseline, BaselineConfig
from attnres_lab.residual.ddl import DDL
from attnres_lab.residual.delta import Delta
from attnres_lab.residual.denseformer import DenseFormer
from attnres_lab.residual.frac import FracConnections
from attnres_lab.residual.gated import GatedStreams
from attnres_lab.residual.hyper import HyperConnections
from attnres_lab.residual.mhc import ManifoldHyperConnections
from attnres_lab.residual.mudd import MUDD
from attnres_lab.residual.rescaled import Rescaled
from attnres_lab.residual.rmsblock import RMSBlock
from attnres_lab.residual.value import ValueResidual
from attnres_lab.residual.x0 import X0

OWN: dict[str, type[Residual]] = {
    "baseline": Baseline,
    "full": AttnRes,
    "block": Block,
    "denseformer": DenseFormer,
    "hyper": HyperConnections,
    "mhc": ManifoldHyperConnections,
    "delta": Delta,
    "rescaled": Rescaled,
    "rmsblock": RMSBlock,
    "frac": FracConnections,
    "gated": GatedStreams,
    "ddl": DDL,
    "x0": X0,
    "value": ValueResidual,
    "mudd": MUDD,
}
#: Also what other packages declare (docs/own_variant.md).
REGISTRY: Registry[Residual] = Registry("attnres.residual", Residual, OWN)

__all__ = ["REGISTRY", "BaselineConfig", "Residual", "ResidualConfig", "Sublayer"]
