"""``python -m flashmla_hub.conformance.report``: writes docs/evidence-schema.json anew."""

import json
from pathlib import Path

from flashmla_hub.conformance.report.schema import json_schema

if __name__ == "__main__":
    docs = Path(__file__).resolve().parents[2] / "docs"
    (docs / "evidence-schema.json").write_text(json.dumps(json_schema(), indent=1) + "\n")
