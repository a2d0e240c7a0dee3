"""The version, and the version of the contract that the conformance suite proves."""

__version__ = "0.2.0"
CONTRACT_VERSION = 2
