"""Which weights of a transformers model are which of ours: one table, read in both directions.

A name of ours stands for one of theirs, or for several stacked along the first axis.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from attnres_lab.mixers import Mixer
from attnres_lab.mixers.attention import Attention
from attnres_lab.mixers.kda import KDA
from attnres_lab.mixers.mla import MLA
from attnres_lab.mixers.moe import MoE
from attnres_lab.mixers.swiglu import SwiGLU
from attnres_lab.model import Transformer

#: Ours to theirs within a sublayer, by its class.
SUBLAYERS: dict[type[Mixer], dict[str, tuple[str, ...]]] = {
    Attention: {
        "q.weight": ("q_proj.weight",),
        "q.bias": ("q_proj.bias",),
        "kv.weight": ("k_proj.weight", "v_proj.weight"),
        "kv.bias": ("k_proj.bias", "v_proj.bias"),
        "q_norm.weight": ("q_norm.weight",),
        "k_norm.weight": ("k_norm.weight",),
        "out.weight": ("o_proj.weight",),
    },
    SwiGLU: {
        "gate_up.weight": ("gate_proj.weight", "up_proj.weight"),
        "out.weight": ("down_proj.weight",),
    },
    KDA: {
        "qkv.weight": ("q_proj.weight", "k_proj.weight", "v_proj.weight"),
        "conv": ("conv1d.weight",),
        "decay_down.weight": ("forget_gate.f_a_proj.weight",),
        "decay_up.weight": ("forget_gate.f_b_proj.weight",),
        "log_rate": ("forget_gate.A_log",),
        "decay_bias": ("forget_gate.dt_bias",),
        "beta.weight": ("b_proj.weight",),
        "gate_down.weight": ("g_a_proj.weight",),
        "gate_up.weight": ("g_b_proj.weight",),
        "gain": ("o_norm.weight",),
        "out.weight": ("o_proj.weight",),
    },
    MLA: {
        "q.weight": ("q_proj.weight",),
        "latent.weight": ("kv_a_proj_with_mqa.weight",),
        "latent_norm.weight": ("kv_a_layernorm.weight",),
        "kv.weight": ("kv_b_proj.weight",),
        "out.weight": ("o_proj.weight",),
    },
    MoE: {
        "router.weight": ("gate.weight",),
        "balance": ("gate.e_score_correction_bias",),
        "gate_up": ("experts.gate_up_proj",),
        "down": ("experts.down_proj",),
        "shared_gate_up.weight": (
            "shared_experts.gate_proj.weight",
            "shared_experts.up_proj.weight",
        ),
        "shared_out.weight": ("shared_experts.down_proj.weight",),
    },
}
#: One weight of theirs for several of those above, in models that have it so (Phi-3).
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
OUTSIDE: dict[str, tuple[str, ...]] = {
    "embed.weight": ("model.embed_tokens.weight",),
    "norm.weight": ("model.norm.weight",),
    "head.weight": ("lm_head.weight",),
}


def table(model: Transformer) -> dict[str, tuple[str, ...]]:
    """Theirs under each name of ours, for all weights of the trunk."""
    names = dict(OUTSIDE)
    for index, sublayer in enumerate(model.mixers()):
        layer, channel = divmod(index, 2)
        place = f"model.layers.{layer}"
        norm, part = (
            ("post_attention_layernorm", "mlp") if channel else ("input_layernorm", "self_attn")
        )
        names[f"sublayers.{index}.norm.weight"] = (f"{place}.{norm}.weight",)
        present = sublayer.state_dict()
        for own, others in SUBLAYERS[type(sublayer)].items():
            if own in present:
                names[f"sublayers.{index}.{own}"] = tuple(f"{place}.{part}.{n}" for n in others)
    return names


def trunk(model: Transformer) -> dict[str, Tensor]:
    """The weights without those of the residual connection."""
    return {k: v for k, v in model.state_dict().items() if not k.startswith("residual.")}


def to_ours(model: Transformer, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trunk's weights from theirs. Raises KeyError for one that is missing, RuntimeError for
    one of another size.
    """
    names, theirs = table(model), _apart(model, theirs)
    return {
        own: torch.cat([theirs[name] for name in names[own]]).reshape(value.shape)
        for own, value in trunk(model).items()
    }


def to_theirs(model: Transformer, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``to_ours``; ``like`` has the shapes."""
    fused, like = like, _apart(model, like)
    result = {}
    names = table(model)
    for own, value in trunk(model).items():
        shapes = [like[name].shape for name in names[own]]
        rows = [shape[0] for shape in shapes]
        parts = torch.split(value, rows) if len(rows) > 1 else (value,)
        for name, part, shape in zip(names[own], parts, shapes, strict=True):
            result[name] = part.reshape(shape).contiguous()
    for whole, rows_of in _parts(model).items():
        if whole in fused:
            result[whole] = torch.cat([result.pop(part) for part in rows_of])
    return result


def _parts(model: Transformer) -> dict[str, dict[str, int]]:
    """Of the names that may be one weight of theirs those of its parts, with their rows."""
    found = {}
    for index, sublayer in enumerate(model.mixers()):
        if isinstance(sublayer, Attention):
            half = sublayer.kv.out_features // 2
            whole, rows = "self_attn.qkv_proj", [sublayer.q.out_features, half, half]
        elif isinstance(sublayer, SwiGLU):
            whole, rows = "mlp.gate_up_proj", [sublayer.gate_up.out_features // 2] * 2
        else:
            continue
        place = f"model.layers.{index // 2}"
        names = [f"{place}.{part}.weight" for part in FUSED[whole]]
        found[f"{place}.{whole}.weight"] = dict(zip(names, rows, strict=True))
    return found


def _apart(model: Transformer, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Theirs with such weights cut into their parts."""
    found = dict(theirs)
    for whole, parts in _parts(model).items():
        if whole in found:
            found |= zip(parts, torch.split(found.pop(whole), list(parts.values())), strict=True)
    return found
