#!/usr/bin/env python3
"""Where the time of a training step goes: perf's samples of `sparsam bench`, by kind of work. Needs Linux's perf.

    python step_profile.py --sparsam target/profiling/sparsam --data target/peers --output target/profile f32 bf16 nf4

The program should have been built with `--profile profiling`, which keeps the names of inlined functions apart. A
sample belongs to the first kind below whose expression its function's name matches; what matches none is listed by
itself, so that the kinds can be kept true. The first six seconds, loading mostly, are left out.

Writes <output>.md.
"""
import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ARMS = {
    "f32": ["--dtype", "f32", "--quantize", "none"],
    "bf16": ["--dtype", "bf16", "--quantize", "none"],
    "nf4": ["--dtype", "bf16", "--quantize", "nf4"],
    "full": ["--method", "full", "--dtype", "f32", "--quantize", "none"],
}
KINDS = [  # name, expression over the function's name
    ("attention", r"attention"),
    ("multiplying", r"gemm::kernel|few_rows"),
    ("rounding and packing operands", r"gemm::pack|gemm::pairs|gemm::steps|gemm::blocks|transpose|widen|nf4|int8|Lookup|expand|ggml"),
    ("norms, rotation, activation, dropout", r"norm|rope|activation|gated|dropout"),
    ("loss", r"cross_entropy"),
    ("low rank and sums", r"lora|linear|add_in_place|bias"),
    ("optimiser", r"adamw|optimizer|grad_norm"),
    ("copying and clearing", r"mem(cpy|set|move)|clear_page|copy_page|candle_core"),
    ("waiting for the other threads", r"rayon|crossbeam|sched_yield|futex|schedule|finish_task_switch|spin_unlock|do_syscall"),
    ("allocating", r"alloc|mi_|madvise|mmap|page_fault|arena"),
]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sparsam", default="target/profiling/sparsam")
    p.add_argument("--data", type=Path, default=Path("target/peers"))
    p.add_argument("--shape", default="135m")
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--output", default="profile", help="path without extension")
    p.add_argument("arms", nargs="*", default=["f32", "bf16", "nf4"], help=f"some of {', '.join(ARMS)}")
    a = p.parse_args()
    if unknown := [arm for arm in a.arms if arm not in ARMS]:
        p.error(f"no arm named {', '.join(unknown)}")
    return a


def checked(words):
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"step_profile.py: cannot start `{words[0]}`: {error.strerror}")
    if done.returncode != 0:
        sys.exit(f"step_profile.py: `{' '.join(map(str, words))}` ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def functions(a, arm, folder):
    """Percent of all samples by the function's name."""
    data = Path(folder) / f"{arm}.data"
    bench = [a.sparsam, "bench", "--model", a.data / a.shape, "--lora-init", a.data / f"{a.shape}-lora.safetensors",
             "--batches", a.data / f"{a.shape}-batches.safetensors", *ARMS[arm], "--steps", a.steps, "--json"]
    # Loading and the first step, which touches all memory for the first time, are left out.
    checked(["perf", "record", "-q", "--delay", "6000", "-F", "499", "-o", str(data), "--", *map(str, bench)])
    text = checked(["perf", "report", "-i", str(data), "--stdio", "--no-children", "-F", "overhead,sym", "-q"])
    lines = (re.match(r"\s*([\d.]+)%\s+\[.\]\s+(.+)", line) for line in text.splitlines())
    return [(float(m[1]), m[2].strip()) for m in lines if m]


def main():
    a = arguments()
    kinds = {name: {} for name, _ in KINDS} | {"other": {}}
    others = []
    with tempfile.TemporaryDirectory() as folder:
        for arm in a.arms:
            for percent, name in functions(a, arm, folder):
                kind = next((kind for kind, words in KINDS if re.search(words, name)), "other")
                kinds[kind][arm] = kinds[kind].get(arm, 0) + percent
                if kind == "other" and percent >= 0.3:
                    others.append(f"- {arm}: {percent:.1f} % {name}")
    lines = ["| Share of the samples, % | " + " | ".join(a.arms) + " |", "|---|" + "--:|" * len(a.arms)]
    for kind, shares in kinds.items():
        lines.append(f"| {kind} | " + " | ".join(f"{shares.get(arm, 0):.1f}" for arm in a.arms) + " |")
    text = "\n".join(lines) + "\n" + ("\nOther:\n\n" + "\n".join(others) + "\n" if others else "")
    Path(a.output).with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
