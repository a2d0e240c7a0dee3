"""pytest's way in to ``pytest --pyargs flashmla_hub.conformance --backend NAME``.

pytest reads the options of a package named with --pyargs too late, so they come from an entry
point. Entry points are imported by every pytest run of the machine: this module stands outside
the package, which would bring torch, and adds nothing unless the kit was asked for by name.
"""

from __future__ import annotations

import sys
from typing import Any


def pytest_addoption(parser: Any) -> None:
    words = sys.argv[1:]
    asked = any(word.startswith("flashmla_hub.conformance") for word in words)
    if asked and "flashmla_hub.conformance.options" not in words:  # else -p has brought them
        from flashmla_hub.conformance.options import add

        add(parser)
