"""The contract's clauses in a few words each, for reports. The text is docs/contract.md."""

CLAUSES: dict[str, str] = {
    "C1.1": "query shapes, dtypes, head counts",
    "C1.2": "KV cache, V is the first columns of K, strided pools",
    "C1.3": "block table, garbage past its prefix",
    "C1.4": "lengths live on the device",
    "C1.5": "NaN in unused memory changes nothing",
    "C1.6": "softmax scale, grouped heads",
    "C1.7": "causal mask, bottom-right aligned",
    "C1.8": "shapes and dtypes of out and lse, in place",
    "C1.9": "every element is written",
    "C1.10": "rows without a visible key",
    "C1.11": "inputs stay unchanged",
    "C1.12": "accuracy",
    "C1.13": "determinism, batch invariance",
    "C1.14": "offsets past 2^31 elements and 2^32 bytes",
    "C1.15": "values not validated, any alignment",
    "C2": "metadata",
    "C2.1": "metadata, every published call",
    "C2.1a": "metadata as two tensors",
    "C2.1b": "newer keyword arguments",
    "C2.2": "one metadata value per step",
    "C2.3": "lengths changed in place",
    "C3": "FP8 KV cache",
    "C3.0": "layouts named, never guessed",
    "C3.1": "FP8 layouts, bit for bit",
    "C3.2": "FP8 accuracy",
    "C3.3": "appending to an FP8 cache",
    "C4": "sparse attention",
    "C4.0": "sparse calls",
    "C4.1": "indices, invalid and repeated entries",
    "C4.1a": "a second cache",
    "C4.2": "attention sink",
    "C4.3": "sparse prefill",
    "C5": "refusal",
    "C5.1": "refuse or be right",
    "C5.2": "claims agree with behaviour",
    "C5.3": "a failure stays a failure",
    "C5.4": "an explicit choice holds",
    "C6": "capture and compile",
    "C6.1": "graph capture and replay",
    "C6.2": "torch.compile",
    "C7": "merging states",
    "C7.1": "merging partial results",
    "C7.2": "merging over ranks",
}


def words(clause: str) -> str:
    """A clause's few words, '' for one this table does not know."""
    return CLAUSES.get(clause, "")


def order(clause: str) -> tuple[int, int, str]:
    """Sorts C1.9 before C1.10 and C4.1 before C4.1a."""
    chapter, _, rest = clause.removeprefix("C").partition(".")
    digits = rest.rstrip("abcdefgh")
    number = int(digits) if digits.isdigit() else 0
    return (int(chapter) if chapter.isdigit() else 99, number, rest)
