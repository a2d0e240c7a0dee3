"""L0: is the harness wired? A failure here says "your harness is wrong", not "your kernel"."""

from flashmla_hub.conformance.cases.make import make

CASES = (
    make("smoke", "L0", "C5.2", check="harness", name="claims-readable"),
    make("smoke", "L0", "C1.8", (64,), h_q=128, name="one-call"),
)
