"""``python -m flashmla_hub.engines.sglang``: is the hook in force here? Exit code 0 when it is."""

from __future__ import annotations

import sys

from flashmla_hub.engines.sglang.plugin import check


def main() -> int:
    try:
        from sglang.srt.plugins import load_plugins
    except ImportError as error:
        print(f"SGLang cannot be imported: {error}")
        return 1
    load_plugins()
    status = check()
    print("in force" if status else "not in force: " + "; ".join(status.reasons))
    return 0 if status else 1


if __name__ == "__main__":
    sys.exit(main())
