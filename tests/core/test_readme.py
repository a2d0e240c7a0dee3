"""The README's example runs; the kernel of the guide is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import flashmla_hub

ROOT = Path(flashmla_hub.__file__).resolve().parents[1]
README = ROOT / "README.md"
if not README.is_file():
    pytest.skip("needs a checkout", allow_module_level=True)


def test_the_quick_start_runs(capsys):
    code = re.search(r"```python\n(import torch.*?)```", README.read_text(), re.DOTALL).group(1)
    exec(compile(code, "README.md", "exec"), {})
    assert "selected torch" in capsys.readouterr().out


def test_the_guides_kernel_reaches_the_contract():
    """docs/adding-a-backend.md: its kernel is right on the base shape, empty rows included."""
    import oracle
    import torch
    from core_helpers import Narrow, dense

    text = (ROOT / "docs" / "adding-a-backend.md").read_text()
    code = re.search(r"```python\n(?=\"\"\"The kernel of)(.*?)```", text, re.DOTALL).group(0)
    names: dict = {}
    exec(code.removeprefix("```python\n").removesuffix("```"), names)

    class Guide(Narrow):
        def bind(self, key, device):
            return names["Kernel"](key)

    args = dense(batch=3, h_q=16, page=64, width=2, lens=[100, 0, 64], dtype=torch.bfloat16)
    args["block_table"][0, :] = args["block_table"][0].flip(0)
    args["k_cache"][args["block_table"][0, 1], 36:] = float("nan")
    args["block_table"][1:, 1] = 2147480000
    from flashmla_hub.testing import registered

    with registered(Guide("guide")):
        out, lse = flashmla_hub.flash_mla_with_kvcache(**args, backend="guide")
    expected = oracle.dense_decode(
        args["q"], args["k_cache"], args["block_table"], args["cache_seqlens"], d_v=512,
        softmax_scale=576**-0.5,
    )  # fmt: skip
    oracle.check(out, lse, expected)
