"""Fake distributions of the vendors' ports, to prove the adapters against on a CPU.

Each fake has the port's Python-visible signature, version stamp and extension-module name, and
behaves as badly as its sources say the real one does.
"""
