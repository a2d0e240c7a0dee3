"""The table of backends is made from the declarations, and the pages for port owners exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmla_hub import registry
from flashmla_hub.backends import table
from flashmla_hub.plugins import BUILTIN

ROOT = Path(__file__).parents[2]
PAGES = {  # page of docs/ports: the backends it is about
    "metax": ("metax", "metax_sparse"),
    "moore_threads": ("moore_threads", "moore_threads_mate"),
    "hygon": ("hygon",),
    "iluvatar": ("iluvatar", "iluvatar_flash_mla"),
    "amd": ("amd",),
    "thead": ("thead",),
    "intellifusion": ("intellifusion",),
    "ascend": ("ascend",),
    "flaggems": ("flaggems", "flaggems_sparse"),
}


def test_names_every_built_in_backend_once():
    text = table.markdown()
    for name, owner in registry.state().owners.items():
        assert text.count(f"| `{name}` |") == (owner == BUILTIN)


def test_every_row_has_every_column():
    for line in filter(lambda line: line.startswith("|"), table.markdown().splitlines()):
        cells = line.replace("\\|", "").strip("|").split("|")
        assert len(cells) == len(table.COLUMNS), line
        assert all(cell.strip() for cell in cells), line


def test_what_each_takes_is_told_in_its_section():
    text = table.markdown()
    for name, owner in registry.state().owners.items():
        if owner == BUILTIN:
            section = text.partition(f"## `{name}`\n")[2].partition("\n## ")[0]
            assert section.count("\n- ") >= 1, name


@pytest.mark.full
def test_the_page_of_backends_is_up_to_date():
    page = ROOT / "docs" / "backends.md"
    text = page.read_text(encoding="utf-8")
    assert table.rewrite(text) == text, f"python -m flashmla_hub.backends.table {page}"


def test_a_port_that_was_not_run_says_so():
    for line in table.markdown().splitlines():
        for vendor in ("MetaX", "Moore Threads", "Hygon", "Iluvatar", "AMD", "Intellifusion"):
            if line.startswith(f"| {vendor} "):
                assert table.NOT_RUN in line


def test_replaces_what_is_between_the_markers_and_nothing_else():
    text = f"above\n{table.BEGIN}\nold\n{table.END}\nbelow\n"
    new = table.rewrite(text)
    assert new.startswith(f"above\n{table.BEGIN}\n| vendor |")
    assert new.endswith(f"{table.END}\nbelow\n")
    assert table.rewrite(new) == new
    with pytest.raises(ValueError, match="markers"):
        table.rewrite("no markers")


@pytest.mark.parametrize("page", PAGES)
def test_each_port_has_a_page_for_its_owner(page):
    text = (ROOT / "docs/ports" / f"{page}.md").read_text(encoding="utf-8")
    for name in PAGES[page]:
        assert f"`{name}`" in text
    for heading in ("## Install", "## What the hub selects", "## Known limits", "## Evidence"):
        assert heading in text, heading
    if page not in ("intellifusion", "ascend"):
        assert f"flashmla-hub conformance --backend {PAGES[page][0]}" in text
