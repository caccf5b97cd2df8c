#!/usr/bin/env python3
"""What the frozen prefix saves: upper layers trained for several epochs, with it and without. Needs only Python.

    python table.py --sparsam target/release/sparsam --output target/prefix

The quickstart's recipe, its adapter on the top blocks alone. Each pair of runs differs in `prefix_cache.store` only,
and must leave the same adapter, byte for byte: the script ends with an error otherwise. Time and energy are those of
the training and its evaluations, without loading and answers. Nothing else should run meanwhile.

Writes <output>.md, for readers, and <output>.json, with every figure.
"""
import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sparsam", default="target/release/sparsam")
    p.add_argument("--recipe", default="configs/quickstart.yaml")
    p.add_argument("--blocks", type=int, default=6, help="how many the model has")
    p.add_argument("--top", default="6,3,2,1", help="how many of them are trained")
    p.add_argument("--epochs", default="1,3,10")
    p.add_argument("--output", default="prefix", help="path without extension")
    return p.parse_args()


def run(a, folder, top, epochs, store):
    output = folder / f"{top}-{epochs}-{store}"
    layers = ", ".join(str(layer) for layer in range(a.blocks - top, a.blocks))
    words = [a.sparsam, "-q", "train", a.recipe, f"output_dir={output}", f"epochs={epochs}",
             f"lora.layers_to_transform=[{layers}]", f"lora.target_modules={MODULES}", "save_steps=never",
             f"prefix_cache.store={store}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"table.py: `{' '.join(words)}` ended with {done.returncode}:\n{done.stderr[-2000:]}")
    record = json.loads((output / "run.json").read_text())
    results = record["results"]
    windows = {w["path"]: w for w in record["energy"]["windows"]}
    parts = [windows[name] for name in ("train", "eval") if name in windows]
    return dict(
        seconds=sum(w["seconds"] for w in parts),
        wh=1000 * sum(w["energy_kwh"]["central"] for w in parts),
        loss=results["after"]["loss"], exact_match=results["after"]["exact_match"],
        peak_mb=results["peak_memory_bytes"] / 1e6, prefix=results.get("prefix"),
        adapter=hashlib.sha256((output / "adapter_model.safetensors").read_bytes()).hexdigest())


def main():
    a = arguments()
    a.sparsam = str(Path(a.sparsam).resolve())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for top in map(int, a.top.split(",")):
            for epochs in map(int, a.epochs.split(",")):
                plain = run(a, Path(folder), top, epochs, "none")
                # Where all blocks are trained there is nothing below them.
                kept = run(a, Path(folder), top, epochs, "file") if top < a.blocks else None
                if kept and kept["adapter"] != plain["adapter"]:
                    sys.exit(f"table.py: top {top}, {epochs} epochs: the adapters differ")
                rows.append(dict(top=top, epochs=epochs, plain=plain, kept=kept))
                print(top, epochs, plain["seconds"], kept and kept["seconds"], flush=True)
    lines = ["| Blocks trained | epochs | s | Wh | with the prefix kept, s | Wh | of the time | kept, MB | peak, MB | "
             "eval loss | exact match |", "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        plain, kept = row["plain"], row["kept"]
        cells = [f"top {row['top']} of {a.blocks}", row["epochs"], f"{plain['seconds']:.1f}", f"{plain['wh']:.3g}"]
        if kept:
            cells += [f"{kept['seconds']:.1f}", f"{kept['wh']:.3g}", f"{kept['seconds'] / plain['seconds']:.0%}",
                      f"{kept['prefix']['bytes'] / 1e6:.0f}", f"{kept['peak_mb']:.0f}"]
        else:
            cells += ["-", "-", "-", "-", f"{plain['peak_mb']:.0f}"]
        exact = plain["exact_match"]
        cells += [f"{plain['loss']:.4f}", "-" if exact is None else f"{exact:.0%}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    text = "\n".join(lines) + "\n"
    output = Path(a.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text(text)
    output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
