"""Published numbers of "Attention Residuals" (Kimi Team, arXiv 2603.15031), to set beside ours."""

from __future__ import annotations

import pandas as pd

PFLOPS_DAY = 8.64e19  # FLOP in a PFLOP/s-day, the paper's unit of compute

#: Published laws L = A C^-alpha, C in PFLOP/s-days, as they are printed: variant to (A, alpha).
LAWS = {"baseline": ("1.891", "0.057"), "block": ("1.870", "0.058"), "full": ("1.865", "0.057")}

# active parameters in millions, tokens in billions, layers, width, then validation loss in nats
_TABLE_2 = {
    "194M": (
        194,
        38.7,
        12,
        896,
        {"baseline": 1.931, "block": 1.909, "full": 1.899, "mhc-lite": 1.906},
    ),
    "241M": (
        241,
        45.4,
        13,
        960,
        {"baseline": 1.895, "block": 1.875, "full": 1.874, "mhc-lite": 1.869},
    ),
    "296M": (
        296,
        62.1,
        14,
        1024,
        {"baseline": 1.829, "block": 1.809, "full": 1.804, "mhc-lite": 1.807},
    ),
    "436M": (
        436,
        87.9,
        16,
        1168,
        {"baseline": 1.766, "block": 1.746, "full": 1.737, "mhc-lite": 1.747},
    ),
    "528M": (
        528,
        119.0,
        17,
        1264,
        {"baseline": 1.719, "block": 1.693, "full": 1.692, "mhc-lite": 1.694},
    ),
}

_TABLE_4 = {
    "baseline": 1.766,
    "DenseFormer": 1.767,
    "mHC": 1.747,
    "Full": 1.737,
    "Full, input-dependent query": 1.731,
    "Full, input-independent mixing": 1.749,
    "Full, sigmoid": 1.741,
    "Full, no key norm": 1.743,
    "sliding window 1 + 8": 1.764,
    "Block, S = 4": 1.746,
    "Block, 16 heads": 1.752,
    "Block, no key norm": 1.750,
}

# sublayers in a block; 1 is Full
_FIGURE_6 = {
    32: 1.757,
    16: 1.753,
    8: 1.748,
    4: 1.746,
    2: 1.746,
    1: 1.737,
}

_ASPECTS = (15, 30, 45, 60, 75)  # d / num_layers
_FIGURE_7 = {  # heads / num_layers to the losses of baseline and AttnRes
    0.7: ((2.017, 1.909, 1.875, 1.851, 1.858), (1.954, 1.890, 1.843, 1.828, 1.824)),
    0.6: ((1.990, 1.902, 1.862, 1.852, 1.862), (1.931, 1.863, 1.830, 1.817, 1.818)),
    0.5: ((1.973, 1.883, 1.859, 1.849, 1.854), (1.917, 1.841, 1.819, 1.812, 1.817)),
    0.4: ((1.952, 1.868, 1.850, 1.849, 1.857), (1.893, 1.823, 1.815, 1.813, 1.813)),
    0.3: ((1.926, 1.857, 1.851, 1.847, 1.858), (1.877, 1.816, 1.802, 1.806, 1.820)),
}


def table_2() -> pd.DataFrame:
    """The scaling-law study as runs: ``variant``, ``size``, ``seed``, ``params`` (active),
    ``tokens``, ``flops``, ``val/loss``.

    ``seed`` is 0: the paper gives none. ``flops`` is 6 x active parameters x tokens: the paper does
    not say how it counts compute.
    """
    rows = []
    for size, (params, tokens, layers, dim, losses) in _TABLE_2.items():
        for variant, loss in losses.items():
            n, d = params * 1e6, tokens * 1e9
            config = {"model.num_layers": layers, "model.dim": dim}
            rows.append(
                {
                    "variant": variant,
                    "size": size,
                    "seed": 0,
                    "params": n,
                    "tokens": d,
                    "flops": 6 * n * d,
                    "val/loss": loss,
                    **config,
                }
            )
    return pd.DataFrame(rows)


def table_4() -> pd.DataFrame:
    """The ablations at 436M active parameters: ``variant``, ``val/loss``."""
    return pd.DataFrame({"variant": list(_TABLE_4), "val/loss": list(_TABLE_4.values())})


def figure_6() -> pd.DataFrame:
    """Loss by block size: ``block_size`` in sublayers (1 is Full), ``val/loss``; the baseline is at
    1.766.
    """
    return pd.DataFrame({"block_size": list(_FIGURE_6), "val/loss": list(_FIGURE_6.values())})


def figure_7(variant: str) -> pd.DataFrame:
    """Loss at 6.5e19 FLOPs by architecture: rows heads / num_layers, columns d / num_layers;
    ``variant`` is ``baseline`` or ``attnres``.
    """
    column = ("baseline", "attnres").index(variant)
    frame = pd.DataFrame(
        {heads: losses[column] for heads, losses in _FIGURE_7.items()}, index=list(_ASPECTS)
    ).T
    return frame.rename_axis(index="heads / num_layers", columns="d / num_layers")
