"""A tiny random DeepSeek model with the real MLA sizes (512 latent + 64 rope). Downloads nothing.

python make_model.py v2|v3 FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedTokenizerFast,
)

LAYERS, HEADS, VOCABULARY = 2, 4, 256


def make(kind: str, folder: Path) -> None:
    torch.manual_seed(0)
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 256,
        "moe_intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "topk_group": 1,
    }
    if kind == "v2":
        config = DeepseekV2Config(
            q_lora_rank=None, first_k_dense_replace=LAYERS, n_group=1, **common
        )
        model = DeepseekV2ForCausalLM(config)
    else:
        config = DeepseekV3Config(q_lora_rank=64, first_k_dense_replace=1, n_group=2, **common)
        model = DeepseekV3ForCausalLM(config)
    model = model.float().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and "norm" not in name:
            # The usual small weights leave tokens that do not depend on attention at all.
            std = 1.0 if "embed" in name else 1.5 / parameter.shape[-1] ** 0.5
            torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    if kind == "v3":
        # What DeepSeek's own config.json says of the router and transformers leaves out: without
        # it vLLM takes softmax scores and no bias.
        file = folder / "config.json"
        router = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
        file.write_text(json.dumps(json.loads(file.read_text()) | router))
    save_tokenizer(folder)


def save_tokenizer(folder: Path) -> None:
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 4))]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
