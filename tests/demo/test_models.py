"""The sparse models of the demo: transformers' own tokens through lists, two caches and sinks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.24", reason="sparse models")

from flashmla_hub.cli import main
from flashmla_hub.cli.demo import MODELS
from flashmla_hub.errors import InvalidRequestError
from flashmla_hub.examples import deepseek_model, models
from flashmla_hub.examples.deepseek_v4 import CompressedMLA, PairedCache
from flashmla_hub.examples.deepseek_v32 import SparseMLA

CASES = [
    (name, layout)
    for name, kind in models.KINDS.items()
    if name != "v3"
    for layout in ("dense", *kind.layouts)
]


@functools.cache
def stock(model: str, layout: str = "dense") -> tuple[deepseek_model.Setup, deepseek_model.Run]:
    setup = deepseek_model.build(
        device="cpu", dtype="float32", batch=2, tokens=4, heads=2, layers=3 if model == "v4" else 2,
        seed=1, model=model, layout=layout,
    )  # fmt: skip
    return setup, deepseek_model.generate_stock(setup)


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_tokens_are_equal(model: str, layout: str) -> None:
    setup, expected = stock(model, layout)
    hub = deepseek_model.generate_hub(setup)
    comparison = deepseek_model.compare(setup, expected, hub)
    assert comparison.agree and comparison.same_tokens
    # a value that lies between two e4m3 codes may round either way in two ways of computing it
    assert comparison.logit_difference < (1e-3 if layout == "dense" else 0.05)
    assert len(set(expected.tokens.flatten().tolist())) > 3, "the model says the same all the time"
    assert hub.decision is not None and hub.decision.choice.kernel.kv_format == layout
    assert hub.decision.choice.kernel.op == "sparse_decode"


@pytest.mark.parametrize("model", ["v32", "v4"])
def test_a_quantised_cache_is_not_the_dense_one(model: str) -> None:
    """What ``kv_format`` costs shows against transformers over unquantised rows."""
    setup, unquantised = stock(model)
    layout = models.KINDS[model].layouts[0]
    hub = deepseek_model.generate_hub(dataclasses.replace(setup, layout=layout))
    assert deepseek_model.compare(setup, unquantised, hub).logit_difference > 0.02


def _every_token(self: SparseMLA, columns: torch.Tensor) -> torch.Tensor:
    lens = self.cache.cache_seqlens
    position = torch.arange(int(lens.max()))
    seen = position < lens[:, None, None]
    return torch.where(seen, position, -1).expand(-1, columns.shape[1], -1)


def _unmasked(self: SparseMLA, columns: torch.Tensor) -> torch.Tensor:
    return (columns.long() - self.cache.padding[:, None, None]).clamp(min=-1)


def _padding_forgotten(self: SparseMLA, columns: torch.Tensor) -> torch.Tensor:
    return torch.where(columns < self.cache.cache_seqlens[:, None, None], columns.long(), -1)


def _no_window(self: CompressedMLA, position_ids: torch.Tensor) -> torch.Tensor:
    back = torch.arange(-2 * self.window, 1)
    return (position_ids[..., None] + back).clamp(min=-1)


def _entries_off_by_one(self: PairedCache, entry: torch.Tensor) -> torch.Tensor:
    return torch.where(entry < 0, -1, _entry_slots(self, (entry - 1).clamp(min=0))).int()


_entry_slots = PairedCache.entry_slots


@pytest.mark.parametrize(
    ("model", "owner", "name", "wrong"),
    [
        ("v32", SparseMLA, "visible_positions", _every_token),
        ("v32", SparseMLA, "visible_positions", _unmasked),
        ("v32", SparseMLA, "visible_positions", _padding_forgotten),
        ("glm", SparseMLA, "visible_positions", _every_token),
        ("v4", CompressedMLA, "_window_of", _no_window),
        ("v4", PairedCache, "entry_slots", _entries_off_by_one),
    ],
)
def test_a_mistake_is_noticed(
    model: str, owner: type, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, expected = stock(model)
    monkeypatch.setattr(owner, name, wrong)
    hub = deepseek_model.generate_hub(setup)
    assert not deepseek_model.compare(setup, expected, hub).agree


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--model v32 --kv-format v32 --batch 2 --tokens 2 --heads 2 --layers 1"
    assert main(["demo", *words.split()]) == 0
    assert "equal" in capsys.readouterr().out
    assert main(["demo", "--model", "v4", "--kv-format", "v32"]) == 2
    assert "dense | model1" in capsys.readouterr().err
    assert main(["demo", "--model", "v32", "--ranks", "2"]) == 2
    assert "--ranks" in capsys.readouterr().err
    assert set(MODELS) == set(models.KINDS)


def test_an_older_transformers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "__version__", "5.17.0")
    assert models.get("v3") is models.KINDS["v3"]
    with pytest.raises(InvalidRequestError, match=r"5\.24"):
        models.get("v4")
