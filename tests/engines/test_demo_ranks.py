"""``flashmla-hub demo --ranks N``: transformers' tokens from a cache that no rank holds alone."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers", reason="the demo needs transformers (extra [demo])")

from flashmla_hub.cli import main

SMALL = ["demo", "--tokens", "3", "--layers", "1", "--batch", "2", "--seed", "1"]


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_generate_the_tokens_of_transformers(
    ranks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--heads", "4", "--ranks", str(ranks), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["agree"] and shown["same_tokens"]
    held = shown["tokens_on_rank"]
    cached = sum(shown["prompt_lengths"]) + 2 * 2  # the last token of a request is not cached
    assert len(held) == ranks
    assert sum(held) == cached
    assert max(held) - min(held) <= 2  # each of the two rows is dealt out evenly


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--ranks", "0"], "--ranks"),
        (["--ranks", "3", "--heads", "4"], "--heads"),
        (["--ranks", "2", "--device", "meta"], "--device"),
    ],
)
def test_what_the_ranks_cannot_do_is_refused_first(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *words]) == 2
    assert named in capsys.readouterr().err
