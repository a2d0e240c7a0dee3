"""flashmla_hub: DeepSeek's MLA decode attention on whatever accelerator is there."""

from pathlib import Path as _Path

_root = _Path(__file__).resolve().parent.parent
if (_root / "setup.py").is_file() and (_root / "backends" / "__init__.py").is_file():
    __path__.append(str(_root))  # a checkout, not an install: backends/, conformance/ and csrc/
