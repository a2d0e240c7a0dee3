"""The demo: a DeepSeek-V3 model decoded through the hub gives transformers' own tokens."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers", reason="the demo needs transformers (extra [demo])")

from flashmla_hub.cli import main
from flashmla_hub.examples import deepseek_model
from flashmla_hub.examples.deepseek_decode import AbsorbedMLA, PagedLatentCache


@pytest.fixture(scope="module")
def setup() -> deepseek_model.Setup:
    return deepseek_model.build(
        device="cpu", dtype="float32", batch=3, tokens=5, heads=2, layers=2, seed=1
    )


@pytest.fixture(scope="module")
def stock(setup: deepseek_model.Setup) -> deepseek_model.Run:
    return deepseek_model.generate_stock(setup)


def test_tokens_are_equal(setup: deepseek_model.Setup, stock: deepseek_model.Run) -> None:
    ticks: list[None] = []
    hub = deepseek_model.generate_hub(setup, lambda: ticks.append(None))
    comparison = deepseek_model.compare(setup, stock, hub)
    assert comparison.agree and comparison.same_tokens
    assert comparison.logit_difference < 1e-3
    assert len(ticks) == 5 and stock.tokens.shape == (3, 5)
    assert len(set(comparison.prompt_lengths)) == 3
    assert max(comparison.prompt_lengths) > 64, "no prompt crosses a page"
    assert len(set(stock.tokens.flatten().tolist())) > 5, "the model says the same all the time"
    assert hub.decision is not None and hub.decision.selected


def _wrong_scale(cache: PagedLatentCache, layers: list[AbsorbedMLA]) -> None:
    for layer in layers:
        layer.softmax_scale *= 1.2


def _wrong_table(cache: PagedLatentCache, layers: list[AbsorbedMLA]) -> None:
    cache.block_table.copy_(cache.block_table.roll(1, 0))


def _short_lengths(cache: PagedLatentCache, layers: list[AbsorbedMLA]) -> None:
    cache.cache_seqlens -= 4


def _rope_part_swapped(cache: PagedLatentCache, layers: list[AbsorbedMLA]) -> None:
    for layer in layers:
        layer.rope_interleave = not layer.rope_interleave


@pytest.mark.parametrize("spoil", [_wrong_scale, _wrong_table, _short_lengths, _rope_part_swapped])
def test_a_mistake_is_noticed(
    setup: deepseek_model.Setup, stock: deepseek_model.Run, spoil: deepseek_model.Spoil
) -> None:
    hub = deepseek_model.generate_hub(setup, spoil=spoil)
    comparison = deepseek_model.compare(setup, stock, hub)
    assert not comparison.agree


def test_half_precision_compares_logits() -> None:
    half = deepseek_model.build(
        device="cpu", dtype="bfloat16", batch=2, tokens=2, heads=2, layers=1, seed=1
    )
    stock = deepseek_model.generate_stock(half)
    assert deepseek_model.compare(half, stock, deepseek_model.generate_hub(half)).agree
    spoiled = deepseek_model.generate_hub(half, spoil=_wrong_table)
    assert not deepseek_model.compare(half, stock, spoiled).agree


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--json --batch 2 --tokens 2 --heads 2 --layers 1 --backend torch"
    assert main(["demo", *words.split(" ")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["agree"] and report["decision"]["selected"] == "torch"
    assert report["tokens"]["hub"] == report["tokens"]["transformers"]


def test_the_command_shows_both_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["demo", "--batch", "1", "--tokens", "2", "--heads", "2", "--layers", "1"]
    assert main(words) == 0
    shown = capsys.readouterr()
    for text in ("transformers", "flashmla_hub", "equal", "logit difference", "tokens/s", "torch"):
        assert text in shown.out
    generate = deepseek_model.generate_hub
    monkeypatch.setattr(
        deepseek_model, "generate_hub", lambda *args: generate(*args, spoil=_wrong_table)
    )
    assert main([*words, "--batch", "2"]) == 1
    assert "do not agree" in capsys.readouterr().out


def test_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--tokens", "0"]) == 2
    assert main(["demo", "--device", "nowhere"]) == 2
    assert main(["demo", "--backend", "nobody", "--tokens", "1", "--layers", "1"]) == 2
    shown = capsys.readouterr().err
    for text in ("--tokens", "--device", "nobody"):
        assert text in shown
