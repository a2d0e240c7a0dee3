"""How many tokens HF transformers would have chosen too, each given all before it.

python score_hf.py MODEL PROMPTS.json TOKENS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    model, prompts, tokens = sys.argv[1:4]
    oracle = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    given, answers = (json.loads(Path(p).read_text()) for p in (prompts, tokens))
    equal = 0
    with torch.no_grad():
        for prompt, answer in zip(given, answers, strict=True):
            logits = oracle(torch.tensor([prompt + answer])).logits[0]
            chosen = logits[len(prompt) - 1 : -1].argmax(-1)
            equal += int((chosen == torch.tensor(answer)).sum())
    print(json.dumps({"equal": equal, "of": sum(map(len, answers))}))


if __name__ == "__main__":
    main()
