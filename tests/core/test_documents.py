"""What the documents say holds: links lead somewhere, examples run, names and errors are there."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

import flashmla_hub
from flashmla_hub import errors

ROOT = Path(flashmla_hub.__file__).resolve().parents[1]
if not (ROOT / "README.md").is_file():
    pytest.skip("needs a checkout", allow_module_level=True)
DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "benchmarks").glob("*.md"),
     *(ROOT / "examples").rglob("*.md"), *(ROOT / "csrc").glob("*.md")]
)  # fmt: skip


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(
        r"(?:src|srcset)=\"([^\"]+)\"", text
    )
    for target in targets:
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{name_of(page)} links to {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{name_of(page)} links to {target}"


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def blocks(page: Path) -> list[str]:
    found = re.findall(r"^( *)```python\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def test_the_tutorial_runs_from_top_to_bottom(capsys):
    torch.manual_seed(0)
    names: dict = {}
    for number, code in enumerate(blocks(DOCS / "tutorial.md")):
        exec(compile(code, f"tutorial.md, example {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "selected torch" in said
    assert "selected amd" in said


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_examples_are_python(page):
    for code in blocks(page):
        ast.parse(code)


@pytest.mark.parametrize(
    "module",
    [
        "api",
        "metadata",
        "decode",
        "prefill",
        "merge",
        "kv_format",
        "drop_in",
        "decision",
        "request",
    ],
)
def test_examples_of_docstrings_run(module):
    found = importlib.import_module(f"flashmla_hub.{module}")
    result = doctest.testmod(found, optionflags=doctest.ELLIPSIS)
    assert not result.failed


def test_every_public_name_is_in_the_reference():
    listed = {
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: (flashmla_hub\.[\w.]+)$", page.read_text(), re.MULTILINE)
    }
    for name in set(flashmla_hub.__all__) - {"__version__"}:
        assert f"flashmla_hub.{name}" in listed, name
    for name in listed:
        attribute = name.removeprefix("flashmla_hub.")
        assert hasattr(flashmla_hub, attribute) or importlib.import_module(name)


def test_every_public_error_has_its_cause_and_cure():
    headings = re.findall(r"^## (\w+)$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    public = [
        n for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, Exception)
    ]
    assert set(public) <= set(headings)


def test_every_setting_is_in_the_readme():
    from flashmla_hub import config

    readme = (ROOT / "README.md").read_text()
    for name in re.findall(r"``(FLASHMLA_HUB_\w+)``", config.__doc__):
        assert f"`{name}`" in readme, name


def test_nothing_is_installed_from_an_index_that_does_not_have_it():
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            assert not re.search(r"pip install [^`|]*(?<![\w./-])flashmla-hub(?!-)(?!/)", line), (
                f"{name_of(page)}: {line}"
            )


def test_the_version_is_one():
    from flashmla_hub.version import __version__

    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited.group(1) == __version__
    log = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## ({re.escape(__version__)}\b|Unreleased)", log, re.MULTILINE)


def test_the_site_finds_every_page():
    """tools/site.py places each page of docs/ in a section, the ordered ones first."""
    pytest.importorskip("mkdocs")
    import runpy

    site = runpy.run_path(str(ROOT / "tools" / "site.py"))
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    placed = str(site["nav"]([*pages, "a-new-page.md", "kernels/new.md", "strange/new.md"]))
    for page in (*pages, "a-new-page.md", "kernels/new.md", "strange/new.md"):
        assert f"'{page}'" in placed, page
    index = site["decisions"]()
    for path in (DOCS / "adr").glob("0*.md"):
        assert f"]({path.name})" in index
