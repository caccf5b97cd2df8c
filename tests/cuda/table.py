"""The tables of suite.sh: speed, memory and losses of each work, how long a program takes to its first step, and how cost
grows with length; from what both sides printed. Needs only Python.

A work `A+B` is our own variant of work `A`, beside PEFT's figures of that.
"""

import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])


def printed(name):
    """The last line of JSON of a part, if it has one."""
    path = folder / f"{name}.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [line for line in lines if line.startswith("{")]
    return json.loads(found[-1]) if found else None


works = sorted(folder.glob("sparsam-*.txt"))
if works:
    print("\n| work | PEFT, tokens/s (MiB on the GPU; mJ a token) | sparsam | speed | memory | energy | losses apart |")
    print("|---|---|---|---|---|---|---|")
for path in works:
    work = path.stem.removeprefix("sparsam-")
    theirs, ours = printed(f"peft-{work.split('+')[0]}"), printed(path.stem)

    def cell(side):
        if not side:
            return "-"
        energy = side.get("joules_per_token")
        energy = f"; {energy * 1e3:.2f}" if energy else ""
        return f"{side['tokens_per_second']:,.0f} ({side['peak_device_mib']:,.0f}{energy})"

    def ratio(key):
        return f"{ours[key] / theirs[key]:.2f} x" if ours.get(key) and theirs.get(key) else "-"

    ratios = ["-"] * 4
    if theirs and ours:
        apart = max(abs(a - b) / abs(b) for a, b in zip(ours["losses"], theirs["losses"]))
        ratios = [*map(ratio, ["tokens_per_second", "peak_device_mib", "joules_per_token"]), f"{apart:.1e}"]
    print(f"| {work} | {cell(theirs)} | {cell(ours)} | {' | '.join(ratios)} |")

started = [(path.stem, printed(path.stem)) for path in works]
started = [(name, ours) for name, ours in started if ours and "load_seconds" in ours]
if started:
    print("\n| work | weights on the GPU after, s | of the host's memory, MiB | first step, s |")
    print("|---|---|---|---|")
for name, ours in started:
    print(f"| {name.removeprefix('sparsam-')} | {ours['load_seconds']:.1f} | {ours['load_peak_rss_mib']:,.0f} "
          f"| {ours['first_step_seconds']:.2f} |")

lengths = sorted(int(path.stem.removeprefix("length-")) for path in folder.glob("length-*.txt"))
lengths = [(length, printed(f"length-{length}")) for length in lengths]
if any(ours for _, ours in lengths):
    print("\n| tokens a text | tokens/s | MiB on the GPU |")
    print("|---|---|---|")
for length, ours in lengths:
    if ours:
        print(f"| {length:,} | {ours['tokens_per_second']:,.0f} | {ours['peak_device_mib']:,.0f} |")
