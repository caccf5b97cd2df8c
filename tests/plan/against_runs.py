#!/usr/bin/env python3
"""Holds `sparsam plan` against real runs: twelve recipes of different shape, each planned, then run. Needs only Python.

    python against_runs.py --sparsam target/release/sparsam --output target/plan

Each recipe is a change of one small recipe on the built-in model (or on --model), long enough that its time can be
measured. With --rounds all are planned and run so many times, one after the other, and the medians of planned and
measured count: machines that are shared change their speed for half a minute and more. Planned and measured stand
side by side, with what they differ by. Nothing else should run meanwhile.

Writes <output>.md, for readers, and <output>.json, with every figure.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """\
model: {model}
lora: {{r: 16, alpha: 32}}
data: {{train: {data}/train.jsonl, eval: {data}/eval.jsonl}}
max_length: 256
batch_size: 8
learning_rate: 1.0e-3
eval_steps: never
save_steps: never
country: DEU
logging: {{tensorboard: false}}
"""
SHAPES = {  # what is changed; the number of steps is for the built-in model
    "LoRA r 16": ["max_steps=60"],
    "LoRA r 64, long texts": ["lora.r=64", "lora.alpha=128", "max_length=512", "batch_size=4", "max_steps=60"],
    "LoRA q and v, no packing": ["lora.target_modules=[q_proj, v_proj]", "packing=false", "batch_size=4", "max_steps=200"],
    "LoRA bf16": ["dtype=bf16", "batch_size=12", "max_steps=40"],
    "LoRA on NF4": ["quantize=nf4", "max_steps=60"],
    "LoRA on int8, dropout": ["quantize=int8", "lora.dropout=0.1", "batch_size=2", "max_steps=200"],
    "full": ["method=full", "learning_rate=2e-4", "max_steps=50"],
    "full, eight bits": ["method=full", "optim=adamw_8bit", "learning_rate=2e-4", "max_steps=50"],
    "full, checkpointed": ["method=full", "learning_rate=2e-4", "gradient_checkpointing=true", "batch_size=16", "max_steps=20"],
    "full, selectively": ["method=full", "learning_rate=2e-4", "gradient_checkpointing=selective", "batch_size=16", "max_steps=20"],
    "accumulated, evaluated": ["gradient_accumulation_steps=4", "batch_size=2", "eval_steps=15", "max_steps=45"],
    "answers before and after": ["max_steps=40", "eval_steps=20", "eval_generation.samples=30", "save_steps=10"],
}
FIGURES = {  # name: (unit, divisor, where the plan has it, where the run has it, allowed)
    "memory": ("MB", 1e6, "peak_bytes", lambda run: run["results"]["peak_memory_bytes"], 0.05),
    "time": ("s", 1, "seconds", lambda run: run["energy"]["duration_seconds"], 0.15),
    "energy": ("Wh", 1e-3, "energy_kwh", lambda run: run["energy"]["energy_kwh"]["central"], 0.15),
}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sparsam", default="target/release/sparsam")
    p.add_argument("--model", default="builtin:sprout")
    p.add_argument("--output", default="plan", help="path without extension")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps-factor", type=float, default=1.0, help="times the steps of each recipe, for another model")
    return p.parse_args()


def sparsam(a, folder, words, turn):
    # Steps that were tried at another time say little about this one: a cache of its own.
    environment = os.environ | {"SPARSAM_CACHE": str(folder / f"cache-{turn}")}
    done = subprocess.run([a.sparsam, "-q", *words], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"against_runs.py: `sparsam {' '.join(words)}` ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def measured(a, folder, number, changes, turn):
    changes = [c if not c.startswith("max_steps=") else f"max_steps={max(4, round(int(c[10:]) * a.steps_factor))}"
               for c in changes]
    plan = json.loads(sparsam(a, folder, ["plan", "recipe.yaml", *changes, "--json"], turn))
    output = f"run-{number}-{turn}"
    sparsam(a, folder, ["train", "recipe.yaml", *changes, f"output_dir={output}"], turn)
    run = json.loads((folder / output / "run.json").read_text())
    arm = plan["arms"][0]
    return {name: {"planned": arm[key]["central"] / divisor, "low": arm[key]["low"] / divisor,
                   "high": arm[key]["high"] / divisor, "measured": of_run(run) / divisor}
            for name, (_, divisor, key, of_run, _) in FIGURES.items()}


def medians(rounds):
    """Of each figure of a recipe over its rounds, with how far the rounds lay apart."""
    figures = {}
    for name in FIGURES:
        each = [figures_of[name] for figures_of in rounds]
        figures[name] = {key: statistics.median(f[key] for f in each) for key in each[0]}
        figures[name]["each"] = [off(f) for f in each]
    return figures


def off(figure):
    return figure["planned"] / figure["measured"] - 1


def table(rows):
    lines = ["| Recipe | " + " | ".join(f"{name} planned, {unit} | measured | off" for name, (unit, *_) in FIGURES.items()) + " |",
             "|---|" + "--:|--:|--:|" * len(FIGURES)]
    for name, figures in rows.items():
        cells = [f"{f['planned']:.3g} | {f['measured']:.3g} | {off(f):+.1%}" for f in figures.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    a = arguments()
    a.sparsam = str(Path(a.sparsam).resolve())
    if not a.model.startswith("builtin:"):
        a.model = str(Path(a.model).resolve())
    turns = {name: [] for name in SHAPES}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        text = RECIPE.format(model=a.model, data=ROOT / "datasets" / "city-trees")
        (folder / "recipe.yaml").write_text(text)
        for turn in range(a.rounds):
            for number, (name, changes) in enumerate(SHAPES.items()):
                turns[name].append(measured(a, folder, number, changes, turn))
                figures = turns[name][-1]
                print(turn + 1, name, {key: f"{off(figure):+.1%}" for key, figure in figures.items()}, flush=True)
    rows = {name: medians(rounds) for name, rounds in turns.items()}
    summary = []
    for name, (*_, allowed) in FIGURES.items():
        errors = [abs(off(figures[name])) for figures in rows.values()]
        inside = sum(f["low"] <= f["measured"] <= f["high"] for f in (figures[name] for figures in rows.values()))
        singles = [abs(single) for figures in rows.values() for single in figures[name]["each"]]
        summary.append(f"- {name}: within {allowed:.0%} in {sum(e <= allowed for e in errors)} of {len(errors)}, "
                       f"median off {statistics.median(errors):.1%}, most {max(errors):.1%}; "
                       f"inside the planned range in {inside}; single rounds within {allowed:.0%} in "
                       f"{sum(e <= allowed for e in singles)} of {len(singles)}")
    output = Path(a.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    text = f"# Plan against reality on `{a.model}`, medians of {a.rounds}\n\n{table(rows)}\n\n" + "\n".join(summary) + "\n"
    output.with_suffix(".md").write_text(text)
    output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
