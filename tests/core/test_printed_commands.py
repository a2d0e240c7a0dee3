"""Every command that a document, a help text or a message prints exists, with those options.

Commands are parsed by the parsers they are for; those that only answer are run as well.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flashmla_hub
from flashmla_hub import cli

ROOT = Path(flashmla_hub.__file__).resolve().parents[1]
if not (ROOT / "README.md").is_file():
    pytest.skip("needs a checkout", allow_module_level=True)

SKIPPED = (".venv", "build", "dist", "site", "node_modules")
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", ".github/**/*.md", "docs/**/*.md", "benchmarks/*.md",
                    "conformance/**/*.md", "examples/**/*.md", "csrc/**/*.md", "tools/*.md",
                    "flashmla_hub/**/*.md.tmpl")
    for path in ROOT.glob(pattern)
    if not set(path.relative_to(ROOT).parts) & set(SKIPPED) and path.name != "CHANGELOG.md"
)  # fmt: skip
HUB = re.compile(r"(?:python3? -m flashmla_hub|(?:\S*/)?flashmla-hub) (?=[a-z-])")
SCRIPT = re.compile(r"(?:(?:python3?|torchrun [^`]*?) )?((?:benchmarks|tools|tests)/\w+(?:\.py)?) ")
PARAMETERS = re.compile(r"^(?:NAME|FILE|DIR|FOLDER|DEVICE|BACKEND|\$name|\.\.\.)$")
ANSWERS = ("explain", "devices", "backends", "doctor")


def commands_of(text: str) -> Iterator[tuple[str, bool]]:
    """The lines of code blocks, continued ones joined; and the inline code, which may only name a
    command without what it needs (False)."""
    text = re.sub(r"\\\n\s*", " ", text)
    fenced = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^ *```[^\n]*\n.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = [line for line in rest.splitlines() if line.startswith("    ")]
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", rest)]
    lines = [line for block in fenced for line in block.splitlines()] + indented
    for line in lines:
        yield from ((part.strip(), True) for part in line.partition(" # ")[0].split("&&"))
    yield from ((code, False) for code in inline)


def words_of(command: str) -> list[str]:
    """The words behind the command's name; FILE and the like made into a name."""
    command = re.sub(r"\([^)]*\)", " ", command.replace("\\|", "|"))
    command = re.sub(r" \[([^\[\]|]*)(?:\|[^\]]*)?\]", r" \1", command)  # optional: the first form
    words = shlex.split(command.split(" > ")[0].split(" | ")[0])
    return ["torch" if PARAMETERS.match(word) else word for word in words]


def all_printed() -> list[tuple[str, str, bool]]:
    """(where, command, whether it is meant to be complete)."""
    found = [
        (str(path.relative_to(ROOT)), command, whole)
        for path in DOCUMENTS
        for command, whole in commands_of(path.read_text(encoding="utf-8"))
    ]
    helps = {f"{name} --help": getattr(cli._load(name), "EPILOG", "") for name in cli.COMMANDS}
    for where, text in {**helps, "--help": cli.EPILOG}.items():
        lines = [line.strip() for line in text.splitlines() if line.startswith("  ")]
        found += [(where, re.split(r"\s{3,}", line)[0], True) for line in lines]
    return found


PRINTED = all_printed()


def hub_commands() -> list[tuple[str, list[str], bool]]:
    found = []
    for where, command, whole in PRINTED:
        match = HUB.match(re.sub(r"^(?:\w+=\S+ )+", "", command))
        if match:
            words = words_of(match.string[match.end() :])
            if (where, words, whole) not in found:
                found.append((where, words, whole))
    return found


def parse(words: list[str]) -> str:
    """'' where the command takes these words, else what it says."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        try:
            cli._parser(words).parse_args(words)
        except SystemExit as stop:
            return "" if stop.code == 0 else told.getvalue()
    return ""


def test_the_hubs_commands_are_taken():
    found = hub_commands()
    assert len(found) > 40
    wrong = []
    for where, words, whole in found:
        said = parse(words) if words[0] in cli.COMMANDS else "no such command"
        if said and (whole or not re.search("required|expected one argument", said)):
            wrong.append(f"{where}: {' '.join(words)}: {said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "words",
    sorted(
        {
            tuple(w)
            for _, w, _ in hub_commands()
            if w[0] in ANSWERS and not re.search("acme|torch", str(w))
        }
    ),
    ids=" ".join,
)
def test_commands_that_only_answer_run(words, capsys):
    assert cli.main(words) in (0, 1)
    captured = capsys.readouterr()
    assert captured.out
    assert "internal error" not in captured.err


def options_of(script: Path) -> set[str]:
    return set(re.findall(r"\"(--?[a-z][a-z-]*)\"", script.read_text()))


def test_scripts_are_there_and_take_the_options():
    wrong = []
    for where, command, _ in PRINTED:
        for match in SCRIPT.finditer(f"{command} "):
            script = ROOT / match[1]
            if not script.exists():  # of a package that the document is about
                script = ROOT / Path(where).parent / match[1]
            if script.is_dir() or script.suffix not in ("", ".py"):
                continue
            if not script.is_file():
                wrong.append(f"{where}: {command}: there is no {match[1]}")
                continue
            used = set(re.findall(r"(?<= )--?[a-z][a-z-]*", command[match.end() :]))
            lacking = {o for o in used if o not in options_of(script)}
            if lacking:
                wrong.append(f"{where}: {command}: no option {', '.join(sorted(lacking))}")
    assert not wrong, "\n".join(wrong)


def test_modules_that_are_run_are_there():
    wrong = []
    for where, command, _ in PRINTED:
        for name in re.findall(r"python3? -m (flashmla_hub\.[\w.]+)", command):
            parts = name.split(".")[1:]
            path = ROOT.joinpath(*(parts if (ROOT / parts[0]).is_dir() else name.split(".")))
            if not (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()):
                wrong.append(f"{where}: {command}")
    assert not wrong, "\n".join(wrong)


def test_extras_that_are_installed_are_there():
    declared = set(re.findall(r"^        \"(\w+)\": \[", (ROOT / "setup.py").read_text(), re.M))
    for where, command, _ in PRINTED:
        for extras in re.findall(r"(?:\.|flashmla-hub|\.whl)\[([\w,]+)\]", command):
            assert set(extras.split(",")) <= declared, f"{where}: {command}"


MESSAGE = re.compile(r"flashmla-hub ([a-z-]+)((?: --?[a-z][a-z-]*(?: [\w:./{}'-]+)?)*)")


NO_COMMANDS = ("cubin",)  # a file's first words


def test_messages_name_commands_and_options_that_exist():
    wrong = []
    for folder in ("flashmla_hub", "backends", "conformance"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = re.sub(r"\"\n\s*f?\"", "", path.read_text(encoding="utf-8"))
            for match in MESSAGE.finditer(text):
                name, options = match[1], re.findall(r"--[a-z][a-z-]*", match[2])
                if name in cli.COMMANDS:
                    known = cli._parser([name])._subparsers._group_actions[0].choices[name]
                    taken = set(known._option_string_actions)
                    wrong += [f"{path.name}: {match[0]}" for o in options if o not in taken]
                elif name not in NO_COMMANDS:
                    wrong.append(f"{path.name}: {match[0]}: no such command")
    assert not wrong, "\n".join(wrong)


def test_get_peers_takes_its_options_between_the_names():
    script = str(ROOT / "tools" / "get_peers")
    for words in (
        ["F", "--unpack", "nobody"],
        ["F", "nobody", "--unpack"],
        ["--unpack", "F", "nobody"],
    ):
        done = subprocess.run(
            [sys.executable, script, *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "unknown peer nobody" in done.stderr, done.stderr
    listed = subprocess.run([sys.executable, script, "--list"], capture_output=True, check=True)
    assert b"sgl-flash-mla" in listed.stdout
