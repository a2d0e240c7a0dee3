"""The subprocess behind ``--isolate``; see isolate.py. Run as a module, with a descriptor to
write results to; the job comes as JSON on stdin."""

from __future__ import annotations

import json
import os
import sys

from flashmla_hub.conformance.judge import judge
from flashmla_hub.conformance.model import Case, canonical_json, from_json, to_json
from flashmla_hub.conformance.runner import subject_of


def main() -> None:
    descriptor = int(sys.argv[1])
    job = json.load(sys.stdin)

    def write(line: str) -> None:
        os.write(descriptor, line.encode() + b"\n")

    subject = subject_of(job["target"], job["device"], job["call"])
    write("ready")
    for data in job["cases"]:
        write(canonical_json(to_json(judge(subject, from_json(Case, data)))))


if __name__ == "__main__":
    main()
