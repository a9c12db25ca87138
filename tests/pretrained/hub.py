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
#: A small Kimi Linear: layers 4 and 8 (from 1) are MLA, the first is dense.
KIMI = {
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
    if kind in ("qwen3", "ministral"):
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
    """Of the sizes ``KIMI``."""
    return tiny("kimi_linear", **KIMI)


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Weights, config and a byte-level tokenizer with a chat template."""
    model.save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


def save_gguf(model: Any, path: Path) -> Path:
    """A Llama as llama.cpp's converter writes one: fp32, queries and keys with their rotated pairs
    beside each other.
    """
    import gguf

    c, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(c.vocab_size)
    words = [f"w{n}" for n in range(c.vocab_size)]
    words[: 3 + 256] = ["<unk>", "<s>", "</s>", *sorted(alphabet())]
    words[3 + 256] = words[3] + words[4]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_merges([f"{words[3]} {words[4]}"])
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words))
    for add, token in (("bos", 1), ("eos", 2), ("unk", 0)):
        getattr(writer, f"add_{add}_token_id")(token)
    places = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    for name, value in weights.items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        for part, heads in (("q", c.num_attention_heads), ("k", c.num_key_value_heads)):
            if name.endswith(f"{part}_proj.weight"):
                value = value.view(heads, 2, -1, c.hidden_size).transpose(1, 2)
        value = value.reshape(weights[name].shape).contiguous().numpy()
        writer.add_tensor(f"{places.get_name(name.removesuffix('.weight'))}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def alphabet() -> list[str]:
    """The characters that stand for bytes."""
    import tokenizers

    return list(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def tokenizer() -> Any:
    """Bytes, and two special tokens."""
    import tokenizers
    import transformers

    characters = sorted(alphabet())
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {c: i for i, c in enumerate(characters, 3)}
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
