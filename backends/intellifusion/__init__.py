"""Intellifusion NNP: known, its interface is not; refuses with the way forward."""
