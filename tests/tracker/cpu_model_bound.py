"""How near any model of a processor's power can come that knows its rated power, load and clock.

Takes codecarbon's load profiles of four machines (load, clock, RAPL's watts) and fits the family

    watts = rated * (idle + (full - idle) * ((1 - s) * load^a + s * min(1, 2 load)) * (clock / base clock)^k)

to them, all parameters at once for all machines: with k = 0 and s = 0 it holds the straight line, Fan's curve and most
published ones, with k from 1 to 3 the laws of clock and voltage. What is fitted here to the very data it is judged by is
a bound for every such model that is not. Nothing of it goes into the program.

    cpu_model_bound.py FOLDER      the folder with compare_cpu_load_and_RAPL-*.csv
"""

import csv
import itertools
import statistics
import sys
from pathlib import Path

MACHINES = {  # part of the file's name: rated power of all sockets in W, base clock in MHz (the makers' product pages)
    "EPYC_8024P": (90.0, 2400.0),
    "1950X": (180.0, 3400.0),
    "E3-1240": (69.0, 3400.0),
    "E5-2620": (2 * 85.0, 2400.0),
}
IDLE = [0.03 * i for i in range(11)]
FULL = [0.4 + 0.05 * i for i in range(22)]
EXPONENT = [0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0]  # a
CORES_FIRST = [0.0, 0.25, 0.5, 0.75, 1.0]  # s: half the threads may keep all cores busy
CLOCK = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]  # k


def machines(folder):
    """For each machine (load, clock / base, measured / rated, codecarbon's / measured) of every row."""
    found = {name: [] for name in MACHINES}
    for path in sorted(Path(folder).glob("compare_cpu_load_and_RAPL-*.csv")):
        name = next(name for name in MACHINES if name in path.name)
        rated, base = MACHINES[name]
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                watts = float(row["rapl_power"])
                found[name].append((float(row["cpu_load"]) / 100, float(row["cpu_freq"]) / base, watts / rated,
                                    float(row["estimated_power"]) / watts))
    if not all(found.values()):
        sys.exit(f"cpu_model_bound.py: there are no profiles of {', '.join(n for n in found if not found[n])} in {folder}")
    return found


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    rows = machines(sys.argv[1])
    theirs = {name: statistics.median(abs(r[3] - 1) for r in of) for name, of in rows.items()}
    best, beats, tried = None, 0, 0
    for a, s, k in itertools.product(EXPONENT, CORES_FIRST, CLOCK):
        shapes = {name: [(((1 - s) * u**a + s * min(1.0, 2 * u)) * f**k, p) for u, f, p, _ in of]
                  for name, of in rows.items()}
        for idle, full in itertools.product(IDLE, FULL):
            tried += 1
            errors = {name: statistics.median(abs((idle + (full - idle) * g) / p - 1) for g, p in of)
                      for name, of in shapes.items()}
            beats += all(errors[name] < theirs[name] for name in errors)
            if best is None or max(errors.values()) < max(best[0].values()):
                best = (errors, dict(idle=round(idle, 2), full=round(full, 2), a=a, s=s, k=k))
    table = ", ".join(f"{name} {100 * error:.1f} % (codecarbon {100 * theirs[name]:.1f} %)"
                      for name, error in best[0].items())
    print(f"{tried} models; the one with the least worst machine, {best[1]}: median error {table}")
    print(f"models nearer than codecarbon's on all four machines: {beats}")


if __name__ == "__main__":
    main()
