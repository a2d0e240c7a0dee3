"""``flashmla-hub new-backend NAME``: an installable plugin package to start a backend from."""

from __future__ import annotations

import argparse
import keyword
import re
from pathlib import Path
from string import Template

from flashmla_hub import registry
from flashmla_hub.cli import checked
from flashmla_hub.errors import InvalidRequestError

HELP = "write an installable plugin package to start a backend from"
EPILOG = """\
example:
  flashmla-hub new-backend acme
  pip install -e ./flashmla-hub-acme
  flashmla-hub explain --device acme

No file of the hub changes. The kernel is yours to write; until then its conformance test fails.
"""

_TEMPLATES = Path(__file__).parent / "templates" / "backend"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of the backend: lower-case letters, digits and _")
    parser.add_argument("--dir", type=Path, default=Path("."), help="where to write (default: .)")


def run(args: argparse.Namespace) -> int:
    target = write(args.name, args.dir)
    print(f"wrote {target}\n\nnext:\n  pip install -e {target}\n  flashmla-hub backends")
    print(f"  flashmla-hub explain --device {args.name}")
    print(f"then write {target / 'src' / f'flashmla_hub_{args.name}' / 'kernel.py'}")
    return 0


def write(name: str, parent: Path) -> Path:
    """Write the package for backend ``name`` under ``parent``; returns its folder.

    Raises:
        InvalidRequestError: not a usable name, a name that is taken, a folder that exists, or a
            place that cannot be written to.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise InvalidRequestError("name", repr(name), "[a-z][a-z0-9_]*, no Python keyword")
    if name in registry.state().backends:
        raise InvalidRequestError("name", repr(name), "a name no backend has yet")
    words = {
        "name": name,
        "dist": name.replace("_", "-"),
        "class_name": "".join(part.capitalize() for part in name.split("_")) + "Backend",
    }
    target = parent / f"flashmla-hub-{words['dist']}"
    if target.exists():
        raise InvalidRequestError("folder", str(target), "a folder that does not exist yet")
    checked.folder(parent, "--dir")
    package = f"src/flashmla_hub_{name}"
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{package}/__init__.py": "__init__.py",
        f"{package}/plugin.py": "plugin.py",
        f"{package}/kernel.py": "kernel.py",
        "tests/test_plugin.py": "test_plugin.py",
    }
    for path, template in files.items():
        text = (_TEMPLATES / f"{template}.tmpl").read_text(encoding="utf-8")
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(Template(text).substitute(words), encoding="utf-8")
    return target
