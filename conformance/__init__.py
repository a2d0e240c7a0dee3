"""The conformance kit: judges any port of MLA decode attention against the contract, says what
is wrong with it and leaves evidence. It knows the public API and the contract, and no backend."""

from flashmla_hub.version import CONTRACT_VERSION as CONTRACT_VERSION

KIT_VERSION = "2.0"
GENERATOR_VERSION = 2  # of the case table and the input bits; frozen lists name it
