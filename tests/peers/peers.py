#!/usr/bin/env python3
"""Measures sparsam beside PEFT: the same work, in turn, on the same machine. Needs only Python; PEFT runs in its own.

    python peers.py --sparsam target/release/sparsam --python venv/bin/python --data peer-data --output peers

Each run is one process that loads, trains a few steps and ends. For every
arm the programs take turns (PEFT, sparsam, PEFT, sparsam, …), so that a machine
that grows slower or hotter does so for both. Reported are medians over the
rounds, with the lowest and the highest. Peak memory is what the system counted
for the whole process (the interpreter and its libraries are part of what a user
must have; the column `net` takes the imports off). With --compile PEFT runs
also under torch.compile, and the faster of the two counts for speed, the leaner for memory; not in the arms that
torch.compile cannot do (checkpointing) or would compile anew for every length (rows).

Writes <output>.md, for readers, and <output>.json, with every single run.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PEER = Path(__file__).resolve().parent / "peft_peer.py"
ARMS = {  # name: the arguments both programs understand
    "f32": ["--method", "lora", "--dtype", "f32", "--quantize", "none"],
    "bf16": ["--method", "lora", "--dtype", "bf16", "--quantize", "none"],
    "nf4": ["--method", "lora", "--dtype", "bf16", "--quantize", "nf4"],
    "nf4-dq": ["--method", "lora", "--dtype", "bf16", "--quantize", "nf4-dq"],
    "nf4-f32": ["--method", "lora", "--dtype", "f32", "--quantize", "nf4"],
    "full": ["--method", "full", "--dtype", "f32", "--quantize", "none"],
    "f32-checkpointing": ["--method", "lora", "--dtype", "f32", "--quantize", "none", "--gradient-checkpointing"],
    "f32-selective": ["--method", "lora", "--dtype", "f32", "--quantize", "none", "--gradient-checkpointing"],
    "f32-rows": ["--method", "lora", "--dtype", "f32", "--quantize", "none"],
    "f32-rows-selective": ["--method", "lora", "--dtype", "f32", "--quantize", "none"],
}
ROWS = ["f32-rows", "f32-rows-selective"]  # the arms of rows of uneven length, where there are others beside them
# sparsam computes only units again; PEFT, which knows no less, whole blocks, or of uneven rows nothing, which is faster
SELECTIVE = {"f32-selective", "f32-rows-selective"}
EAGER_ONLY = {"f32-checkpointing"} | SELECTIVE | {*ROWS}
EXACT = {"f32", "nf4-f32", "full"} | EAGER_ONLY  # both sides compute in f32: the losses must agree
LOSS_TOLERANCE = 1e-5  # relative
CPU_FLAGS = ["avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8",
             "asimd", "bf16", "i8mm", "sve"]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sparsam", default="target/release/sparsam")
    p.add_argument("--python", default=sys.executable, help="the one that has PEFT")
    p.add_argument("--data", default="peer-data", help="prepared on the first call")
    p.add_argument("--output", default="peers", help="path without extension")
    p.add_argument("--shape", default="135m")
    p.add_argument("--arms", help=f"some of {','.join(ARMS)}; without it f32, bf16, nf4, f32-checkpointing, "
                                  f"f32-selective, full, and {', '.join(ROWS)} if there is --rows")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--gradient-checkpointing", action="store_true", help="in every arm")
    p.add_argument("--rows", help=f"rows of uneven length, as `peft_peer.py --write-rows` leaves them: for {', '.join(ROWS)} "
                                  "where it is named, else for every arm")
    p.add_argument("--compile", action="store_true", help="let PEFT also try torch.compile")
    p.add_argument("--only", choices=["peft", "sparsam"], help="measure one side")
    a = p.parse_args()
    usual = ["f32", "bf16", "nf4", "f32-checkpointing", "f32-selective", "full"] + (ROWS if a.rows else [])
    a.arms = a.arms.split(",") if a.arms else usual
    if (uneven := set(ROWS) & set(a.arms)) and not a.rows:
        p.error(f"{', '.join(sorted(uneven))}: needs --rows")
    if unknown := [arm for arm in a.arms if arm not in ARMS]:
        p.error(f"no arm named {', '.join(unknown)}; there are {', '.join(ARMS)}")
    if a.rounds < 1:
        p.error("--rounds must be at least 1")
    return a


# ------------------------------------------------------------------ running

def common(a, arm):
    words = [*ARMS[arm], "--batch", str(a.batch), "--seq", str(a.seq), "--steps", str(a.steps)]
    if a.gradient_checkpointing and "--gradient-checkpointing" not in words:
        words.append("--gradient-checkpointing")
    uneven = a.rows and (arm in ROWS or not set(ROWS) & set(a.arms))
    return words + (["--rows", str(Path(a.rows).resolve())] if uneven else [])


def peft_command(a, arm, compiled=False):
    words = [a.python, str(PEER), "--data", a.data, "--shape", a.shape, "--threads", str(a.threads), *common(a, arm)]
    return words + (["--compile"] if compiled else [])


def sparsam_command(a, arm):
    data = Path(a.data)
    words = common(a, arm)
    if arm in SELECTIVE:
        words = [word for word in words if word != "--gradient-checkpointing"] + ["--gradient-checkpointing=selective"]
    return [a.sparsam, "bench", "--model", str(data / a.shape), "--lora-init", str(data / f"{a.shape}-lora.safetensors"),
            "--batches", str(data / f"{a.shape}-batches.safetensors"), *words, "--json"]


def programs(a, arm):
    """Name and command of each program of an arm, in the order of their turns."""
    known = {"peft": peft_command(a, arm)}
    if a.compile and arm not in EAGER_ONLY:
        known["peft compiled"] = peft_command(a, arm, compiled=True)
    known["sparsam"] = sparsam_command(a, arm)
    return {name: words for name, words in known.items() if a.only is None or name.split()[0] == a.only}


def run(words, threads):
    """One process to its end: its last line of JSON, with the peak memory that the system counted."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | {
        key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            process = subprocess.Popen(words, stdout=out, stderr=err, env=environment)
        except OSError as error:
            sys.exit(f"peers.py: cannot start `{words[0]}`: {error.strerror}")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if process.returncode != 0:
            sys.exit(f"peers.py: `{' '.join(words)}` ended with {process.returncode}:\n{err.read()[-2000:]}")
        lines = [line for line in out.read().splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"peers.py: `{' '.join(words)}` printed no JSON")
    result = json.loads(lines[-1])
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB on Linux
    return result | {"peak_rss_mib": usage.ru_maxrss / unit, "peak_rss_reported_mib": result.get("peak_rss_mib")}


def roofs(a):
    """How fast the peer's torch multiplies large matrices, GFLOP/s by type: as fast as this machine is known to."""
    found = run([a.python, str(PEER), "--roof", "--threads", str(a.threads)], a.threads)
    return {dtype: found[dtype] for dtype in ("f32", "bf16")}


def measure(a, arm):
    runs = {name: [] for name in programs(a, arm)}
    for turn in range(a.rounds):
        for name, words in programs(a, arm).items():
            result = run(words, a.threads)
            runs[name].append(result)
            print(f"{arm} round {turn + 1}: {name} {result['tokens_per_second']:.1f} tokens/s, "
                  f"{result['peak_rss_mib']:.0f} MiB, last loss {result['losses'][-1]:.6f}", file=sys.stderr, flush=True)
    return runs


# ---------------------------------------------------------------- reporting

def spread(runs, key):
    values = [r[key] for r in runs]
    return dict(median=statistics.median(values), lowest=min(values), highest=max(values))


def net_memory(runs):
    """Peak memory less what the imports took; a native program has none to take off."""
    return statistics.median(r["peak_rss_mib"] - r.get("rss_after_imports_mib", 0) for r in runs)


def loss_difference(ours, theirs):
    """The largest relative difference of any step."""
    if len(ours["losses"]) != len(theirs["losses"]):
        return float("inf")
    return max(abs(x - y) / abs(y) for x, y in zip(ours["losses"], theirs["losses"]))


def summarise(arm, runs, roof):
    summary = {name: dict(tokens_per_second=spread(r, "tokens_per_second"), peak_rss_mib=spread(r, "peak_rss_mib"),
                          net_mib=net_memory(r)) for name, r in runs.items()}
    # Both programs do the same work.
    operations = [r[0].get("operations_per_token") for r in runs.values()]
    if (known := next(filter(None, operations), None)) and roof:
        of_arm = roof[ARMS[arm][ARMS[arm].index("--dtype") + 1]] * 1e9
        for s in summary.values():
            s["of_roof"] = s["tokens_per_second"]["median"] * known / of_arm
    peers = [name for name in runs if name != "sparsam"]
    result = dict(arm=arm, programs=summary)
    if peers and "sparsam" in runs:
        best = max(peers, key=lambda name: summary[name]["tokens_per_second"]["median"])
        def lean(value):  # against the leaner, whichever that is
            return value(summary["sparsam"]) / min(value(summary[name]) for name in peers)

        speed = lambda name: summary[name]["tokens_per_second"]["median"]
        result |= dict(
            against=best, speed_ratio=speed("sparsam") / speed(best),
            memory_ratio=lean(lambda s: s["peak_rss_mib"]["median"]), net_memory_ratio=lean(lambda s: s["net_mib"]),
            loss_difference=loss_difference(runs["sparsam"][0], runs[best][0]))
    return result


def machine():
    info = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            info.setdefault(key.strip(), value.strip())
        memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    except OSError:  # not Linux
        memory = None
    present = (info.get("flags") or info.get("Features") or "").split()
    return dict(cpu=info.get("model name") or platform.processor() or platform.machine(), cores=os.cpu_count(),
                memory_gib=memory and round(memory, 1), flags=[f for f in CPU_FLAGS if f in present],
                system=f"{platform.system()} {platform.release()}")


def versions(a, runs):
    found = dict(python=platform.python_version())
    for arm in runs.values():
        for results in arm.values():
            found |= results[0].get("versions") or {}
    if a.only != "peft":
        answer = subprocess.run([a.sparsam, "--version"], capture_output=True, text=True)
        found["sparsam"] = answer.stdout.strip().removeprefix("sparsam ")
    return found


def markdown(a, report):
    m = report["machine"]
    lines = [
        f"{a.shape}, batch {a.batch} x {a.seq} tokens, {a.steps} steps"
        f"{', gradient checkpointing' if a.gradient_checkpointing else ''}; median of {a.rounds} (lowest to highest)", "",
        "| arm | program | tokens/s | of the GEMM roof | peak memory, MiB | net, MiB |", "|---|---|---|---|---|---|"]
    span = lambda s, digits: f"{s['median']:.{digits}f} ({s['lowest']:.{digits}f} to {s['highest']:.{digits}f})"
    for arm in report["arms"]:
        for name, s in arm["programs"].items():
            share = f"{s['of_roof']:.0%}" if "of_roof" in s else "-"
            lines.append(f"| {arm['arm']} | {name} | {span(s['tokens_per_second'], 1)} | {share} "
                         f"| {span(s['peak_rss_mib'], 0)} | {s['net_mib']:.0f} |")
    compared = [arm for arm in report["arms"] if "against" in arm]
    if compared:
        lines += ["", "| arm | against | speed | memory | net memory | largest relative loss difference |", "|---|---|---|---|---|---|"]
        lines += [f"| {arm['arm']} | {arm['against']} | {arm['speed_ratio']:.2f}x | {arm['memory_ratio']:.2f}x "
                  f"| {arm['net_memory_ratio']:.2f}x | {arm['loss_difference']:.1e} |" for arm in compared]
    if roof := report["roof_gflops"]:
        rates = ", ".join(f"{rate:.0f} GFLOP/s in {dtype}" for dtype, rate in roof.items())
        lines += ["", f"The GEMM roof is that of torch's own products of 2,048 x 2,048: {rates}. What is computed again "
                      "counts as no operations."]
    lines += ["", f"{m['cpu']}, {a.threads} of {m['cores']} cores, {m['memory_gib']} GiB, {' '.join(m['flags'])}, {m['system']}.",
              "", ", ".join(f"{k} {v}" for k, v in report["versions"].items()) + "."]
    return "\n".join(lines) + "\n"


def main():
    a = arguments()
    prepared = subprocess.run([a.python, str(PEER), "--data", a.data, "--shape", a.shape, "--prepare"],
                              env=os.environ | {"HF_HUB_OFFLINE": "1"}, stderr=subprocess.PIPE, text=True)
    if prepared.returncode != 0:
        sys.exit(f"peers.py: cannot prepare `{a.data}`:\n{prepared.stderr[-2000:]}")
    before = {} if a.only == "sparsam" else roofs(a)
    runs = {arm: measure(a, arm) for arm in a.arms}
    # The machine is not always as fast: the better of two.
    after = roofs(a) if before else {}
    roof = {dtype: max(before[dtype], after[dtype]) for dtype in before}
    report = dict(machine=machine(), versions=versions(a, runs), settings=vars(a), roof_gflops=roof,
                  arms=[summarise(arm, r, roof) for arm, r in runs.items()], runs=runs)
    output = Path(a.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    text = markdown(a, report)
    output.with_name(output.name + ".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    output.with_name(output.name + ".md").write_text(text, encoding="utf-8")
    print(text, end="")
    wrong = [arm for arm in report["arms"] if arm["arm"] in EXACT and not arm.get("loss_difference", 0) <= LOSS_TOLERANCE]
    if wrong:
        sys.exit("peers.py: not the same work, the losses differ: " + ", ".join(arm["arm"] for arm in wrong))


if __name__ == "__main__":
    main()
