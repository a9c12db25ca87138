"""Low-rank adapters (LoRA, arXiv 2106.09685) on the linear maps of the sublayers, by peft; reading
what was trained with them needs no peft.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from attnres_lab.config.lora import LoraConfig
from attnres_lab.errors import UserError
from attnres_lab.model import Network

BASE, ADAPTER = ".base_layer", ".lora_"  # as peft names them
OWN_DRAWS = 0x6C6F7261  # so that adapters do not repeat the trunk's draws of the same seed


def adapt(model: Network, c: LoraConfig, seed: int) -> None:
    """Freeze the trunk and put adapters beside the linear maps that ``c`` names, in place. A is
    drawn from ``seed`` (Kaiming uniform), B is zero: the function stays.

    Raises UserError where peft is not installed.
    """
    if c.rank is None:
        return
    try:
        import peft
    except ImportError:
        raise UserError(
            "optim.lora: peft is not installed: pip install 'attnres-lab[lora]'"
        ) from None
    names = [
        f"{index}.{name}"
        for index, mixer in enumerate(model.mixers())
        for name in mixer.linear_maps()
        if c.covers(name)
    ]
    residual = {id(p) for p in model.residual.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in residual:
            parameter.requires_grad_(False)
    settings = peft.LoraConfig(r=c.rank, lora_alpha=c.alpha, target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed ^ OWN_DRAWS)
        peft.inject_adapter_in_model(settings, model.sublayers)


def places(names: Iterable[str]) -> dict[str, str]:
    """Of the names of a model's weights those that are no adapter's, by what they are called where
    there are no adapters.
    """
    return {name.replace(BASE, ""): name for name in names if ADAPTER not in name}


def merge(weights: Mapping[str, Tensor], c: LoraConfig) -> dict[str, Tensor]:
    """The weights with their adapters added, under the names of a model without any."""
    merged = {}
    for plain, name in places(weights).items():
        stem = name.removesuffix(f"{BASE}.weight")
        value = weights[name]
        if c.rank is not None and stem != name:
            a, b = (weights[f"{stem}{ADAPTER}{part}.default.weight"] for part in "AB")
            value = value + c.alpha / c.rank * (b @ a)
        merged[plain] = value
    return merged
