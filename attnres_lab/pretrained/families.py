"""Which settings of a transformers config are which of ``model``: one table, read in both
directions. What is not in it must have the value that our trunk computes, or is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from attnres_lab.config import to_dict
from attnres_lab.errors import UserError
from attnres_lab.model import ModelConfig
from attnres_lab.pretrained import layers

#: Theirs to ours, both dotted.
COMMON = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "intermediate_size": "mlp_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}
SOFTMAX = COMMON | {
    "head_dim": "mixers.attention.head_dim",
    "rope_parameters.rope_theta": "rope_theta",
    "rope_parameters.rope_type": "mixers.attention.rope.scaling",
}
MLA = {
    "kv_lora_rank": "mixers.mla.latent_dim",
    "qk_rope_head_dim": "mixers.mla.shared_dim",
    "qk_nope_head_dim": "mixers.mla.head_dim",
    "v_head_dim": "mixers.mla.head_dim",
}
KDA = {
    "linear_head_dim": "mixers.kda.head_dim",
    "linear_num_heads": "mixers.kda.heads",
    "linear_conv_kernel_dim": "mixers.kda.conv",
}
MOE = {
    "num_local_experts": "mlp.experts",
    "num_experts_per_tok": "mlp.top_k",
    "n_shared_experts": "mlp.shared",
    "moe_intermediate_size": "mlp.expert_dim",
    "routed_scaling_factor": "mlp.scale",
}
#: Further keys of ``rope_parameters`` by kind of scaling.
ROPE = {
    "default": {},
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "low_freq_factor": "slow",
        "high_freq_factor": "fast",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "beta_slow": "slow",
        "beta_fast": "fast",
    },
}
#: Of the scaling kinds, keys that may be there with one value only.
ROPE_FIXED = {
    "partial_rotary_factor": 1.0,
    "attention_factor": None,
    "truncate": True,
    "mscale": None,
    "mscale_all_dim": None,
}
KINDS = {"full_attention": "mla", "linear_attention": "kda"}


@dataclass(frozen=True)
class Family:
    """An architecture: the settings that vary, and those that must have one value."""

    keys: Mapping[str, str]
    fixed: Mapping[str, Any]
    ours: Mapping[str, Any] = field(default_factory=dict)  # what it is among our trunks


PLAIN = {"hidden_act": "silu", "attention_dropout": 0.0}
FAMILIES = {
    "llama": Family(SOFTMAX, PLAIN | {"attention_bias": False, "mlp_bias": False}),
    "mistral": Family(SOFTMAX, PLAIN),
    "ministral": Family(SOFTMAX, PLAIN),
    "phi3": Family(
        SOFTMAX | {"rope_parameters.partial_rotary_factor": "mixers.attention.rope.fraction"},
        PLAIN | {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
    ),
    "qwen2": Family(SOFTMAX, PLAIN, {"mixers.attention.bias": True}),
    "qwen3": Family(SOFTMAX, PLAIN | {"attention_bias": False}, {"qk_norm": True}),
    "smollm3": Family(SOFTMAX, PLAIN | {"attention_bias": False, "mlp_bias": False}),
    "kimi_linear": Family(
        COMMON,
        PLAIN
        | {"attention_bias": False, "q_lora_rank": None, "n_group": 1, "topk_group": 1}
        | {"norm_topk_prob": True},
    ),
}


def family(config: Any, where: str) -> Family:
    """The family of a transformers config. Raises UserError for one that is not in the table."""
    if found := FAMILIES.get(config.model_type):
        return found
    known = ", ".join(FAMILIES)
    raise UserError(f"{where}: model_type: {config.model_type} is not supported; known: {known}")


def to_model(config: Any, where: str) -> dict[str, Any]:
    """The section ``model`` of a run, nested, from a transformers config.

    Raises UserError, with the name of their key, for what our trunk does not compute.
    """
    kind = family(config, where)
    for key, value in kind.fixed.items():
        if (found := getattr(config, key, value)) != value:
            raise UserError(f"{where}: {key}: {found!r} is not supported, only {value!r}")
    model: dict[str, Any] = {"scale_embeddings": False}
    for key, value in _values(config, kind, where):
        _put(model, key, value)
    for key, value in kind.ours.items():
        _put(model, key, value)
    if config.model_type != "kimi_linear":
        layers.to_ours(model["mixers"], config, where)
    return model


def _values(config: Any, kind: Family, where: str) -> Iterator[tuple[str, Any]]:
    """Ours, dotted, with their values."""
    keys = dict(kind.keys)
    if config.model_type == "kimi_linear":
        types, channels = list(config.layer_types), list(config.mlp_layer_types)
        yield "mixers.pattern", [KINDS[name] for name in types]
        dense = channels.count("dense")
        if channels != ["dense"] * dense + ["sparse"] * (len(channels) - dense):
            raise UserError(f"{where}: mlp_layer_types: dense layers are supported in front only")
        keys |= MLA if "full_attention" in types else {}
        keys |= KDA if "linear_attention" in types else {}
        if "sparse" in channels:
            keys |= MOE
            yield from (("mlp.name", "moe"), ("mlp.dense_layers", dense))
        if config.v_head_dim != config.qk_nope_head_dim:
            raise UserError(
                f"{where}: v_head_dim: {config.v_head_dim} is not qk_nope_head_dim = "
                f"{config.qk_nope_head_dim}"
            )
    else:
        yield from _rope(config, kind, where)
    for key, own in keys.items():
        value = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
        if own.endswith("scaling"):
            value = "none" if value == "default" else value
        if value is not None:
            yield own, value


def _rope(config: Any, kind: Family, where: str) -> Iterator[tuple[str, Any]]:
    """Options of the positions. Raises UserError for kinds and options that ours have not."""
    given = dict(config.rope_parameters)
    scaling = given.get("rope_type", "default")
    if scaling not in ROPE:
        raise UserError(
            f"{where}: rope_parameters.rope_type (rope_scaling): {scaling!r} is not supported; "
            f"known: {', '.join(ROPE)}"
        )
    for key, value in given.items():
        if f"rope_parameters.{key}" in kind.keys:
            continue
        if key in ROPE_FIXED and value in (ROPE_FIXED[key], None):
            continue
        if key not in ROPE[scaling]:
            raise UserError(f"{where}: rope_parameters.{key}: {value!r} is not supported")
        yield f"mixers.attention.rope.{ROPE[scaling][key]}", value


def to_theirs(model: ModelConfig) -> tuple[str, dict[str, Any]]:
    """The model type and the keywords of its transformers config.

    Raises UserError, with the name of our key, for a trunk that none of them computes.
    """
    ours = filled(model)
    name, theirs = _kind(model), dict[str, Any]()
    kind = FAMILIES[name]
    keys = dict(kind.keys)
    if name == "kimi_linear":
        keys |= MLA if "mla" in model.mixers.pattern else {}
        keys |= KDA if "kda" in model.mixers.pattern else {}
        names = {own: other for other, own in KINDS.items()}
        theirs["layer_types"] = [names[p] for p in ours["mixers"]["pattern"]]
        dense = model.num_layers
        if model.mlp.name == "moe":
            keys |= MOE
            dense = min(ours["mlp"]["dense_layers"], dense)
        sparse = model.num_layers - dense
        theirs["mlp_layer_types"] = ["dense"] * dense + ["sparse"] * sparse
    else:
        rope = ours["mixers"]["attention"]["rope"]
        scaling = "default" if rope["scaling"] == "none" else rope["scaling"]
        for key, own in ROPE[scaling].items():
            _put(theirs, f"rope_parameters.{key}", rope[own])
        rope["scaling"] = scaling
        theirs |= layers.to_theirs(name, ours["mixers"])
    for key, own in keys.items():
        _put(theirs, key, get(ours, own))
    return name, theirs | dict(kind.fixed)


def _kind(model: ModelConfig) -> str:
    attention, pattern = model.mixers.attention, set(model.mixers.pattern)
    if pattern <= set(KINDS.values()):
        return "kimi_linear"
    if attention.bias or model.qk_norm:
        return "qwen2" if attention.bias else "qwen3"
    sections = [getattr(model.mixers, name) for name in pattern & {"attention", "local"}]
    if not all(c.rope.fraction for c in sections):
        return "smollm3"
    if attention.rope.fraction < 1 and attention.rope.scaling == "none":
        return "phi3"
    return "ministral" if "local" in pattern else "mistral" if attention.window else "llama"


def filled(model: ModelConfig) -> dict[str, Any]:
    """The config nested, with what is left out filled in."""
    result = to_dict(model)
    width = model.dim // model.num_heads
    mixers = result["mixers"]
    mixers["pattern"] = [
        mixers["pattern"][i % len(mixers["pattern"])] for i in range(model.num_layers)
    ]
    for name in ("attention", "local", "mla"):
        mixers[name]["head_dim"] = mixers[name]["head_dim"] or width
    mla, kda = mixers["mla"], mixers["kda"]
    mixers["attention"]["rope"]["fast"] = model.mixers.attention.rope.turns
    mixers["local"]["rope"]["fast"] = model.mixers.local.rope.turns
    mla["latent_dim"] = mla["latent_dim"] or 4 * mla["head_dim"]
    mla["shared_dim"] = mla["shared_dim"] or max(1, mla["head_dim"] // 2)
    kda["heads"] = kda["heads"] or model.num_heads
    kda["head_dim"] = kda["head_dim"] or model.dim // kda["heads"]
    if hasattr(model.mlp, "width"):
        result["mlp"]["expert_dim"] = model.mlp.width(model)
    return result | {"num_kv_heads": model.kv_heads, "mlp_dim": model.hidden_dim}


def _put(nested: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for part in parents:
        nested = nested.setdefault(part, {})
    nested[last] = value


def get(nested: Any, dotted: str) -> Any:
    """The value under a dotted key."""
    for part in dotted.split("."):
        nested = nested[part]
    return nested


def leaves(nested: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values."""
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
