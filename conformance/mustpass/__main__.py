"""Writes the frozen lists anew: ``python -m flashmla_hub.conformance.mustpass``. For a new
contract or generator version only; a test compares the lists with the case table."""

from flashmla_hub.conformance.cases import cases_of
from flashmla_hub.conformance.model import LEVELS
from flashmla_hub.conformance.mustpass import drawn, path, text

for level in LEVELS:
    path(level).write_text(text(cases_of(level)), encoding="ascii")
drawn.PATH.write_text(drawn.text(), encoding="ascii")
