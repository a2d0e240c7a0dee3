"""The hub inside inference engines: one folder per engine, found through the engine's entry points.

Nothing here is imported by the core, and no engine is imported before it is there itself.
"""
