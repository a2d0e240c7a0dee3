"""Backends that are wrong on purpose, each in one way, and honest ones: the proof of the kit."""
