"""The commands that docs/ports gives print reasons that a user can act on."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from flashmla_hub import cli

ROOT = Path(__file__).parents[2]
COMMANDS = {
    f"{page.stem}: {match[1]}": shlex.split(match[1])
    for page in sorted((ROOT / "docs/ports").glob("*.md"))
    for match in re.finditer(r"^    flashmla-hub (explain .*)$", page.read_text(), re.MULTILINE)
}
SAID = {  # device: words that the answer has, on a machine without the port
    "metax:xcore1000": ("metax", "install MetaX's wheel", "+metax"),
    "moore_threads:mp_31": ("moore_threads_mate", "pad_heads", "split_pages", "MooreThreads/mate"),
    "hygon:gfx936": ("hygon", "DTK release"),
    "iluvatar:ivcore11": ("iluvatar", "split_pages", "fold_s_q", "CoreX SDK"),
    "amd:gfx942": ("amd", "pad_heads", "pip install amd-aiter"),
    "thead": ("thead", "split_pages", "FlashMLA-for-sail"),
    "cambricon": ("flaggems", "pip install flag_gems"),
}


def test_every_page_has_such_a_command():
    pages = {label.partition(":")[0] for label in COMMANDS}
    assert pages == {p.stem for p in (ROOT / "docs/ports").glob("*.md")} - {
        "README", "ascend", "intellifusion",
    }  # fmt: skip


@pytest.mark.parametrize("label", COMMANDS)
def test_explain_as_the_page_has_it(label, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert cli.main(COMMANDS[label]) == 0
    said = " ".join(capsys.readouterr().out.split())
    device = COMMANDS[label][COMMANDS[label].index("--device") + 1]
    assert SAID[device][0] in said.partition("selected")[2][:60]
    for words in SAID[device]:
        assert words in said, said


@pytest.mark.parametrize(
    ("device", "way"),
    [("intellifusion", "docs/adding-a-backend.md"), ("ascend:ascend910b3", "returns no lse")],
)
def test_explain_where_a_port_is_known_and_cannot_serve(device, way, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    cli.main(["explain", "--device", device, "--h-q", "16"])
    assert way in capsys.readouterr().out
    assert cli.main(["explain", "--device", device, "--backend", device.partition(":")[0]]) == 1
