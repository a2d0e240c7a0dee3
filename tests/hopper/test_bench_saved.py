"""``flashmla-hub bench --from``: what was saved is shown and drawn on any machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_plots import png_size

from flashmla_hub.bench.plot import DARK, bars, roofline
from flashmla_hub.bench.results import Measured, Row
from flashmla_hub.bench.shapes import Shape
from flashmla_hub.bench.timing import Ceilings
from flashmla_hub.cli import main
from flashmla_hub.errors import InvalidRequestError

CEILINGS = Ceilings(gemm_tflops=780.0, copy_gbps=3006.0, read_gbps=3080.0)


def row(shape: Shape, **us: float) -> Row:
    lengths = shape.lengths(0)
    return Row(shape, shape.flop(lengths), shape.bytes(lengths), us=us)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"device": 1}', "\x00"])
def test_from_a_file_that_is_no_run_is_wrong_use(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "b.json"
    if text is not None:
        saved.write_text(text)
    assert main(["bench", "--from", str(saved)]) == 2
    assert "--from: got" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [Shape(1, 1, 1, 64), Shape(128, 2, 128, 8192)])
def test_a_plot_of_one_point_is_a_plot(shape: Shape, tmp_path: Path) -> None:
    one = Measured("one", ["ours"], [], CEILINGS, [row(shape, ours=100.0)])
    roofline(one, tmp_path / "one.png")
    assert png_size(tmp_path / "one.png")[0] == 1300
    with pytest.raises(InvalidRequestError, match="two that were timed"):
        bars(one, tmp_path / "bars.png")
    two = Measured("two", ["ours", "b"], [], CEILINGS, [row(shape, ours=100.0, b=90.0)])
    bars(two, tmp_path / "bars.png", DARK)
    assert png_size(tmp_path / "bars.png")[0] == 1300


@pytest.mark.parametrize("name", ["h200-std.json", "h100-latency.json"])
def test_what_the_repository_measured_can_be_drawn_anywhere(name: str, tmp_path: Path) -> None:
    saved = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / name
    words = ["--plot", str(tmp_path / "a.png"), "--roofline", str(tmp_path / "b.png")]
    assert main(["bench", "--from", str(saved), *words]) == 0
    assert png_size(tmp_path / "a.png")[0] == png_size(tmp_path / "b.png")[0] == 1300
