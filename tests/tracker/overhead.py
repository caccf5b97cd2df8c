#!/usr/bin/env python3
"""What measuring costs: a program at full load alone, under `sparsam track` and under codecarbon, in turn.

    python overhead.py --sparsam target/release/sparsam --python venv/bin/python --output target/overhead

The program hashes a fixed number of bytes on every core, as many as take about --seconds. All three ways run once a
round, in an order that moves on by one each round, so that a machine that grows slower does so for all. Reported is
the median over the rounds of a way's time against that of the program alone in the same round, with the lowest and
the highest; on a machine that others use as well the spread says how much such a figure is worth. What does not
depend on the neighbours is measured beside it: the processor time that each way takes itself while the program under
it sleeps as long. --python is the one that has codecarbon; without it codecarbon is left out.

Writes <output>.md, for readers, and <output>.json, with every single run.
"""
import argparse
import csv
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import Process
from pathlib import Path

BLOCK = bytes(1 << 20)
UNDER_CODECARBON = """
import json, subprocess, sys
from codecarbon import OfflineEmissionsTracker
tracker = OfflineEmissionsTracker(country_iso_code="DEU", save_to_file=False, log_level="error")
tracker.start()
code = subprocess.run(sys.argv[2:]).returncode
tracker.stop()
with open(sys.argv[1], "w") as file:
    json.dump(tracker.final_emissions_data.energy_consumed, file)
sys.exit(code)
"""


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sparsam", default="target/release/sparsam")
    p.add_argument("--python", help="the one that has codecarbon")
    p.add_argument("--seconds", type=float, default=60)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--output", default="overhead", help="path without extension")
    p.add_argument("--work", type=int, help=argparse.SUPPRESS)
    return p.parse_args()


def hashed(blocks):
    digest = hashlib.sha256()
    for _ in range(blocks):
        digest.update(BLOCK)


def work(blocks):
    """The program that is measured: so many MiB hashed by a process on every core."""
    processes = [Process(target=hashed, args=(blocks,)) for _ in range(len(os.sched_getaffinity(0)))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode != 0:
            sys.exit("overhead.py: a process of the work did not end well")


def run(a, way, program, folder):
    """Seconds, processor seconds of all that ran, and the energy in Wh that was found."""
    found = Path(folder) / f"found-{way}"
    words = {
        "alone": program,
        "sparsam": [a.sparsam, "track", "--country", "DEU", "-o", str(found), "--", *program],
        "codecarbon": [a.python, "-c", UNDER_CODECARBON, str(found), *program],
    }[way]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True)
    seconds, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"overhead.py: `{' '.join(map(str, words))}` ended with {done.returncode}:\n{done.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    energy = None
    if way == "sparsam":
        with open(found / "emissions.csv", newline="") as file:
            energy = 1000 * float(list(csv.DictReader(file))[-1]["energy_consumed"])
        for path in found.iterdir():
            path.unlink()
    elif way == "codecarbon":
        energy = 1000 * json.loads(found.read_text())
        found.unlink()
    return dict(way=way, seconds=seconds, cpu_seconds=cpu, energy_wh=energy)


def main():
    a = arguments()
    if a.work:
        return work(a.work)
    ways = ["alone", "sparsam"] + (["codecarbon"] if a.python else [])
    begun = time.monotonic()
    work(256)
    blocks = max(1, round(256 * a.seconds / (time.monotonic() - begun)))
    program = [sys.executable, __file__, "--work", str(blocks)]
    asleep = [sys.executable, "-c", f"import time; time.sleep({a.seconds})"]
    runs, idle = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(a.rounds):
            turn = number % len(ways)
            for way in ways[turn:] + ways[:turn]:
                runs.append(dict(round=number, **run(a, way, program, folder)))
                print(f"round {number + 1} of {a.rounds}: {way} {runs[-1]['seconds']:.2f} s", file=sys.stderr)
        for way in ways:
            idle[way] = run(a, way, asleep, folder)
    lines = [
        f"A program of about {a.seconds:.0f} s at full load, {a.rounds} rounds.", "",
        "| | time against the program alone, % (lowest, highest) | own processor time, s a minute | energy found, Wh |",
        "|---|--:|--:|--:|"]
    alone = {r["round"]: r["seconds"] for r in runs if r["way"] == "alone"}
    for way in ways[1:]:
        more = [100 * (r["seconds"] / alone[r["round"]] - 1) for r in runs if r["way"] == way]
        own = (idle[way]["cpu_seconds"] - idle["alone"]["cpu_seconds"]) * 60 / a.seconds
        energy = statistics.median(r["energy_wh"] for r in runs if r["way"] == way)
        lines.append(f"| {way} | {statistics.median(more):+.2f} ({min(more):+.2f}, {max(more):+.2f}) | {own:.3f} | "
                     f"{energy:.3f} |")
    text = "\n".join(lines) + "\n"
    output = Path(a.output)
    output.with_suffix(".md").write_text(text)
    output.with_suffix(".json").write_text(json.dumps(dict(runs=runs, asleep=idle), indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
