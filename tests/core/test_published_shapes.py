"""Small ones of the shapes that ``python tests/test_flash_mla.py`` checks, on the CPU."""

from __future__ import annotations

import pytest
import test_flash_mla
import torch


@pytest.mark.parametrize("shape", [*test_flash_mla.small_shapes()][::3], ids=str)
def test_small_shapes_on_the_cpu(shape: test_flash_mla.Shape) -> None:
    test_flash_mla.check(shape, torch.bfloat16, torch.device("cpu"), None)
