"""The battery that the mutation check relies on passes on the adapters as they are."""

from __future__ import annotations

import pytest

from tests.ports import battery


@pytest.mark.parametrize("label", battery.PORTS)
def test_passes_the_battery(label, install, tmp_path):
    battery.battery(label, tmp_path)
