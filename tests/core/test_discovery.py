"""What is found in an environment: duplicates, disabled plugins, broken packages of others."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_plugins import GOOD, install

import flashmla_hub as hub
from flashmla_hub import config, loading


def load(monkeypatch, *folders: Path, cache: Path, **settings):
    """The state that this process would load with these folders on ``sys.path``."""
    for folder in folders:
        monkeypatch.syspath_prepend(str(folder))
    with config.override(cache_dir=cache, **settings):
        return loading.load_all()


def reasons(state) -> dict[str, str]:
    return {q.name: q.reason for q in state.quarantined}


def test_duplicate_entry_point_names_are_reported(tmp_path, monkeypatch):
    for dist in ("hub-first", "hub-second"):
        install(tmp_path / dist, "same", GOOD.replace("NAME", "same"), dist)
    folders = tmp_path / "hub-first", tmp_path / "hub-second"
    state = load(monkeypatch, *folders, cache=tmp_path / "cache")
    assert "duplicate name: 'same' is taken by hub-" in reasons(state)["same"]
    assert state.owners["same"] in ("hub-first", "hub-second")


def test_third_party_plugins_can_be_disabled_by_name_and_altogether(tmp_path, monkeypatch):
    install(tmp_path / "site", "good", GOOD.replace("NAME", "good_one"))
    for names in ({"good"}, {"all"}, {"all", "good"}):
        state = load(
            monkeypatch, tmp_path / "site", cache=tmp_path / "c", disable_plugins=frozenset(names)
        )
        assert "good_one" not in state.entries, names
        assert reasons(state)["good"] == "disabled by FLASHMLA_HUB_DISABLE_PLUGINS"
        assert "torch" in state.entries


@pytest.mark.parametrize("name", ["goood", "torch"])
def test_disabling_what_is_not_there_is_refused_with_what_is(tmp_path, monkeypatch, name):
    install(tmp_path / "site", "good", GOOD.replace("NAME", "good_one"))
    with pytest.raises(hub.InvalidRequestError) as caught:
        load(
            monkeypatch, tmp_path / "site", cache=tmp_path / "c", disable_plugins=frozenset({name})
        )
    text = str(caught.value)
    assert "FLASHMLA_HUB_DISABLE_PLUGINS" in text
    assert ("did you mean good?" if name == "goood" else "which is built in") in text


def test_a_distribution_with_a_built_in_name_is_judged_like_any_other(tmp_path, monkeypatch):
    install(tmp_path / "site", "mimic", "import os; os._exit(5)", "built-in")
    state = load(monkeypatch, tmp_path / "site", cache=tmp_path / "cache")
    assert "import ended with 5" in reasons(state)["mimic"]
    off = load(
        monkeypatch, tmp_path / "site", cache=tmp_path / "c2", disable_plugins=frozenset({"all"})
    )
    assert reasons(off)["mimic"] == "disabled by FLASHMLA_HUB_DISABLE_PLUGINS"


BROKEN_METADATA = {
    "entry_points.txt": (b"\xff\xfe[console_scripts]\n", b"no section = 1\n", b"[a]\nno sign\n"),
    "METADATA": (b"Name: \xff\xff\n", b"", b"\x00"),
}


def test_broken_packages_of_others_hurt_nobody(tmp_path, monkeypatch):
    number = 0
    for file, contents in BROKEN_METADATA.items():
        for content in contents:
            number += 1
            info = tmp_path / "site" / f"other{number}-1.0.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_bytes(b"Name: other\nVersion: 1.0\n")
            (info / file).write_bytes(content)
    (tmp_path / "site" / "empty-1.0.dist-info").mkdir()
    before = set(loading.load_all().entries)
    state = load(
        monkeypatch, tmp_path / "site", cache=tmp_path / "c", disable_plugins=frozenset({"all"})
    )
    assert set(state.entries) >= before
    assert not [q for q in state.quarantined if q.name.startswith("other")]


def test_a_broken_entry_that_names_the_hub_is_reported(tmp_path, monkeypatch):
    info = tmp_path / "site" / "acme-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[flashmla_hub.backends]\nno sign\n")
    state = load(monkeypatch, tmp_path / "site", cache=tmp_path / "c")
    assert any(q.dist == "acme" and "entry_points.txt" in q.reason for q in state.quarantined)
