"""The interpreted cases need TRITON_INTERPRET before the first import of triton: in a process of
their own (test_interpreter.py), and never in this one."""

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
