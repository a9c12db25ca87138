"""A run's model as a folder for transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from attnres_lab.config import RunConfig, load
from attnres_lab.errors import UserError
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.pretrained import families, names
from attnres_lab.pretrained.source import quiet
from attnres_lab.residual.attnres import AttnRes
from attnres_lab.residual.baseline import Baseline
from attnres_lab.training.checkpoint import load_model
from attnres_lab.yamlfile import YamlFile

MODELING = Path(__file__).with_name("modeling_attnres.py")
#: Of the source's config.json, what our config does not hold.
CARRIED = ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
#: Settings of ours that no output depends on.
NOT_COMPUTED = ("activation_checkpointing", "mlp.balance_rate")


def export(run: Path | str, folder: Path | str, dtype: str = "fp32") -> str:
    """Write ``config.json``, safetensors and what there is of tokenizer and chat template into
    ``folder``; for Full and Block AttnRes ``modeling_attnres.py`` too, for
    ``from_pretrained(..., trust_remote_code=True)``. ``dtype``: fp32 or bf16. Returns the name of
    the class.

    Raises UserError for a folder that holds something, and with our key for a model that neither a
    stock class nor that file computes.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; give another folder or delete it")
    model, config = load_model(Path(run))
    options = _reads(model)
    hf = Path(config.data.tokenizer).expanduser().parent
    stock = _stock(config, hf if config.data.tokenizer != "bytes" else None)
    weights = names.to_theirs(model, stock.state_dict())
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    stock.load_state_dict(weights, assign=True)
    stock.to(kind).tie_weights()
    residual = {f"residual.{key}": v.to(kind) for key, v in model.residual.state_dict().items()}
    stock.config.dtype = kind
    # under another model type transformers would not rename the hub's weights when it loads them
    with quiet():
        stock.save_pretrained(
            folder,
            state_dict=dict(stock.state_dict()) | residual,
            save_original_format=options is None,
        )
    name = type(stock).__name__
    if config.data.tokenizer != "bytes":
        _copy_tokenizer(hf, folder)
    if options:
        name = _add_code(folder, name, options)
    return name


def _stock(config: RunConfig, hf: Path | None) -> Any:
    """The class of transformers that computes the trunk, without memory."""
    import transformers

    kind, theirs = families.to_theirs(config.model)
    carried: dict[str, Any] = dict.fromkeys(CARRIED[1:])
    if hf and (hf / "config.json").is_file():
        known = json.loads((hf / "config.json").read_text())
        carried |= {key: known[key] for key in CARRIED if key in known}
    found = transformers.AutoConfig.for_model(kind, **theirs, **carried)
    _check(config.model, found)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(found)


def _check(model: ModelConfig, theirs: Any) -> None:
    """Raises UserError unless their config, read back, is the trunk's."""
    back = families.to_model(theirs, "config.json")
    ours = families.filled(model)
    built = load(YamlFile("model", yaml.safe_dump({"model": back, "budget": "1 steps"}))).model
    for key, value in families.leaves(families.filled(built)):
        if key.startswith("residual.") or key in NOT_COMPUTED:
            continue
        if key == "scale_embeddings" and not model.tie_embeddings:
            continue
        if (found := families.get(ours, key)) != value:
            raise UserError(
                f"model.{key}: {found!r} is not what {type(theirs).__name__} of transformers "
                f"computes, which is {value!r}"
            )


def _reads(model: Transformer) -> dict[str, Any] | None:
    """How ``modeling_attnres.py`` makes the reads; None for the baseline. Raises UserError."""
    residual = model.residual
    if isinstance(residual, Baseline):
        return None
    c = residual.config
    if not isinstance(residual, AttnRes):
        raise UserError(f"model.residual.name: {c.name} has no export; baseline, full, block have")
    for key, value in {"query": "learned", "mixing": ("softmax", "sigmoid")}.items():
        if getattr(c, key) not in value:
            raise UserError(f"model.residual.{key}: {getattr(c, key)} has no export")
    return {
        "reads": residual.reads.count,
        "ends": list(residual.ends),
        "window": residual.window,
        "heads": int(c.heads),
        "temperature": c.temperature,
        "key_norm": c.key_norm,
        "mixing": c.mixing,
        "scale": c.scale,
        "output_read": c.output_read,
    }


def _copy_tokenizer(hf: Path, folder: Path) -> None:
    for path in sorted(hf.iterdir()) if hf.is_dir() else ():
        if path.name.startswith(("tokenizer", "special_tokens", "chat_template", "generation_")):
            shutil.copyfile(path, folder / path.name)


def _add_code(folder: Path, stock: str, options: dict[str, Any]) -> str:
    """Put the code beside the weights, over this stock class."""
    base = stock.removesuffix("ForCausalLM")
    code = MODELING.read_text().replace("import Llama", f"import {base}")
    (folder / MODELING.name).write_text(code)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {
        "model_type": "attnres",
        "architectures": ["AttnResForCausalLM"],
        "attnres": options,
        "auto_map": {
            "AutoConfig": f"{MODELING.stem}.AttnResConfig",
            "AutoModelForCausalLM": f"{MODELING.stem}.AttnResForCausalLM",
        },
    }
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return "AttnResForCausalLM"
