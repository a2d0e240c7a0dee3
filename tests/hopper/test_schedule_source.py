"""The schedule's CUDA headers, compiled for the host, against the model in Python."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from schedule_model import Config, PartPlan, schedule
from test_schedule_model import random_case

from flashmla_hub.backends.hopper.units import CSRC

HOST = Path(__file__).parent / "schedule_host"
CXX = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def planned(plans: list[PartPlan], invariant: bool) -> list[list[tuple[object, ...]]]:
    found = []
    for plan in plans:
        lines: list[tuple[object, ...]] = [] if invariant else [("info", *plan.info)]
        lines += [("empty", r) for r in plan.empty]
        lines += [
            ("fragment", f.request, f.begin, f.end, -1 if f.slot is None else f.slot)
            for f in plan.fragments
        ]
        found.append(sorted(lines, key=str))
    return found


def parse(text: str, parts: int, invariant: bool) -> list[list[tuple[object, ...]]]:
    found: list[list[tuple[object, ...]]] = []
    for line in text.strip().splitlines():
        word, *numbers = line.split()
        if word == "info":
            found.append([])
            if invariant:
                continue
        found[-1].append((word, *map(int, numbers)))
    assert len(found) == parts
    return [sorted(lines, key=str) for lines in found]


@pytest.mark.skipif(CXX is None, reason="no C++ compiler on PATH")
@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("invariant", [False, True])
def test_the_headers_do_what_the_model_says(invariant: bool, lists: bool, tmp_path: Path) -> None:
    program = tmp_path / "schedule"
    command = [
        str(CXX), "-std=c++17", "-w", f"-DFMH_BATCH_INVARIANT={invariant:d}",
        f"-DFMH_LISTS={lists:d}", "-I", str(HOST),
        "-I", str(CSRC), str(HOST / "main.cpp"), "-o", str(program),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)
    rng = random.Random(0)
    cases: list[tuple[list[int], Config]] = []
    while len(cases) < 150:
        lengths, cfg = random_case(rng)
        # the choice of whole requests is made by all threads together, outside these headers
        splits = len(lengths) <= 32 or len(lengths) * 21 < cfg.parts * 20
        if cfg.batch_invariant == invariant and splits:
            cases.append((lengths, cfg))
    text = "\n".join(
        f"{c.parts} {c.request_cost} {c.min_part_blocks} {c.capacity} {c.chunk_blocks} "
        f"{len(lengths)} " + " ".join(map(str, lengths))
        for lengths, c in cases
    )
    done = subprocess.run([str(program)], input=text, check=True, capture_output=True, text=True)
    answers = done.stdout.split("case\n")[1:]
    assert len(answers) == len(cases)
    for (lengths, cfg), answer in zip(cases, answers, strict=True):
        expected = planned(schedule(lengths, cfg), invariant)
        assert parse(answer, cfg.parts, invariant) == expected, f"{cfg} {lengths[:40]}"
