"""What mkdocs does not know of this repository: where a page stands, and which pages are made.

Pages are found, not listed: a new file in docs/ is in the site at the next build, in the first
section whose pattern it fits.
"""

from __future__ import annotations

import fnmatch
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Home", ("index.md",)),
    ("Tutorial", ("tutorial.md",)),
    ("How to", ("howto/serve.md", "howto/nvidia.md", "engines.md", "adding-a-backend.md",
                "howto/verdict.md", "howto/*.md")),
    ("Ports", ("ports/README.md", "ports/*.md", "backends.md")),
    ("Reference", ("reference/calls.md", "reference/*.md", "contract.md", "layouts.md",
                   "conformance.md", "evidence-schema.md", "compatibility.md")),
    ("Troubleshooting", ("troubleshooting.md",)),
    ("Explanation", ("architecture.md", "performance.md", "kernels/*.md", "*.md")),
    ("Decisions", ("adr/README.md", "adr/*.md")),
    ("Project", ("project/*.md",)),
)  # fmt: skip
# pages of the site that stand outside docs/ in the repository
PROJECT = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CODE_OF_CONDUCT.md": "project/code-of-conduct.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made, and the order of all."""
    made = {"reference/commands.md": commands()}
    for source, page in PROJECT.items():
        if (ROOT / source).is_file():
            made[page] = (ROOT / source).read_text(encoding="utf-8")
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    config["nav"] = nav(sorted(file.src_uri for file in files.documentation_pages()))
    return files


def nav(pages: list[str]) -> list[dict[str, Any]]:
    """Each page in the first section that has a pattern for it; the patterns' order is kept."""
    placed: dict[str, list[tuple[int, str]]] = {title: [] for title, _ in SECTIONS}
    for page in pages:
        rank = [
            (title, n)
            for title, patterns in SECTIONS
            for n, pattern in enumerate(patterns)
            if fnmatch.fnmatch(page, pattern) and page.count("/") == pattern.count("/")
        ]
        exact = [(t, n) for t, n in rank if "*" not in dict(SECTIONS)[t][n]]
        title, n = (exact or rank or [("Explanation", 99)])[0]
        placed[title].append((n, page))
    result: list[dict[str, Any]] = []
    for title, members in placed.items():
        ordered = [page for _, page in sorted(members)]
        if ordered:
            result.append({title: ordered[0] if len(ordered) == 1 else ordered})
    return result


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    uri = page.file.src_uri
    if uri == "adr/README.md":
        markdown += decisions()
    source = Path("docs") / uri
    for name, made in PROJECT.items():
        if made == uri:
            source = Path(name)
    return LINK.sub(lambda match: _link(match, source, uri), markdown)


def _link(match: re.Match[str], source: Path, uri: str) -> str:
    """A link as the site needs it: to another page, or, where the target is a file of the
    repository and no page, its name."""
    text, target, anchor = match[1], match[2], match[3] or ""
    path = Path(os.path.normpath(source.parent / target))
    if path.suffix != ".md" and path.parts[:1] == ("docs",):
        return match[0]
    place = PROJECT.get(path.as_posix())
    if place is None and path.parts[:1] == ("docs",):
        place = path.relative_to("docs").as_posix()
    if place is None and path.as_posix() == "README.md":
        place = "index.md"
    if place is not None:
        return f"[{text}]({os.path.relpath(place, os.path.dirname(uri) or '.')}{anchor})"
    name = path.as_posix()
    return text if text.strip("`") == name else f"{text} (`{name}`)"


def decisions() -> str:
    """Every decision with its title, by number."""
    lines = ["", ""]
    for path in sorted((ROOT / "docs" / "adr").glob("[0-9]*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()
        number, _, words = title.partition(" ")
        lines.append(f"- [{number.rstrip(':')}]({path.name}) {words}")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """The help of every command, as the command prints it."""
    from flashmla_hub import cli

    os.environ["COLUMNS"] = "96"
    text = ["# Commands", "", "What `flashmla-hub COMMAND --help` prints.", ""]
    for name in cli.COMMANDS:
        parser = cli._parser([name])
        chosen = next(a for a in parser._actions if a.dest == "command").choices[name]
        text += [f"## flashmla-hub {name}", "", "```text", chosen.format_help().rstrip(), "```", ""]
    return "\n".join(text)
