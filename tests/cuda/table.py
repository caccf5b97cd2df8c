"""The table of suite.sh: speed, memory and losses of each work, from what both sides printed. Needs only Python.

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


print("\n| work | PEFT, tokens/s (MiB on the GPU) | sparsam | speed | memory | losses apart |\n|---|---|---|---|---|---|")
for path in sorted(folder.glob("sparsam-*.txt")):
    work = path.stem.removeprefix("sparsam-")
    theirs, ours = printed(f"peft-{work.split('+')[0]}"), printed(path.stem)

    def cell(side):
        return f"{side['tokens_per_second']:,.0f} ({side['peak_device_mib']:,.0f})" if side else "-"

    ratios = ["-", "-", "-"]
    if theirs and ours:
        apart = max(abs(a - b) / abs(b) for a, b in zip(ours["losses"], theirs["losses"]))
        ratios = [f"{ours['tokens_per_second'] / theirs['tokens_per_second']:.2f} x",
                  f"{ours['peak_device_mib'] / theirs['peak_device_mib']:.2f} x", f"{apart:.1e}"]
    print(f"| {work} | {cell(theirs)} | {cell(ours)} | {' | '.join(ratios)} |")
