"""Small random models of transformers, saved as the hub has them; and a process without us."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

VOCAB = 300


def tiny(kind: str, **changes: Any) -> Any:
    """A model of ``kind`` whose constants are not at their start. Embeddings have std 0.02."""
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": kind == "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    if kind == "qwen3":
        sizes["head_dim"] = 20
    config = transformers.AutoConfig.for_model(kind, **sizes | changes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1:
                value += 0.3 * torch.randn_like(value)
            elif "embed" not in name:
                value.copy_(value.shape[-1] ** -0.5 * torch.randn_like(value))
    return model


def kimi() -> Any:
    """Layers 4 and 8 (from 1) are MLA, the first is dense."""
    changes = {
        "intermediate_size": 48,
        "moe_intermediate_size": 12,
        "num_hidden_layers": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "hidden_size": 32,
        "kv_lora_rank": 24,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "linear_attn_config": {
            "full_attn_layers": [4, 8],
            "kda_layers": [1, 2, 3, 5, 6, 7],
            "head_dim": 8,
            "num_heads": 2,
            "short_conv_kernel_size": 4,
        },
    }
    return tiny("kimi_linear", **changes)


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Weights, config and a byte-level tokenizer with a chat template."""
    model.save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> Any:
    """Bytes, and two special tokens."""
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {c: i for i, c in enumerate(alphabet, 3)}
    bare = tokenizers.Tokenizer(tokenizers.models.BPE(words, [], unk_token="<unk>"))
    bare.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = tokenizers.decoders.ByteLevel()
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    found.chat_template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    return found


def tokens(length: int = 40) -> torch.Tensor:
    """Random ones, [2, T]."""
    return torch.randint(VOCAB, (2, length), generator=torch.Generator().manual_seed(1))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root mean square of the difference over that of ``b``."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def clean(folder: Path, code: str) -> None:
    """Run code in a process of its own that does not see this package."""
    (folder / "code.py").write_text(code)
    caches = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    known = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(
        [sys.executable, "-I", "code.py"],
        cwd=folder,
        env=known | caches,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
