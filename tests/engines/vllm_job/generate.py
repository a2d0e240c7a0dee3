"""One vLLM run on CPU: greedy tokens for fixed prompts, written as JSON.

python generate.py MODEL PROMPTS.json OUT.json NEW_TOKENS ['{"more": "LLM arguments"}']
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams


def main() -> None:
    model, prompts, out, new_tokens = sys.argv[1:5]
    more: dict[str, Any] = json.loads(sys.argv[5]) if len(sys.argv) > 5 else {}
    llm = LLM(
        model=model,
        dtype="float32",  # in bf16 two logits are now and then equal, and ties break by chance
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=8,
        seed=0,
        # vLLM 0.32 bug: in eager mode its CPU RoPE op is silently wrong for MLA models.
        compilation_config={"custom_ops": ["none"]},
        **more,
    )
    given = [{"prompt_token_ids": ids} for ids in json.loads(Path(prompts).read_text())]
    greedy = SamplingParams(temperature=0, max_tokens=int(new_tokens), ignore_eos=True)
    answers = [list(r.outputs[0].token_ids) for r in llm.generate(given, greedy)]
    Path(out).write_text(json.dumps(answers))


if __name__ == "__main__":  # vLLM spawns its workers from this file
    main()
