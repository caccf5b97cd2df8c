#!/usr/bin/env python3
"""sparsam and Python's huggingface_hub before the same Hub on loopback and over the same cache.

    python check_hub.py --sparsam target/release/sparsam --loopback target/release/examples/loopback

Fetches with one and finds with the other, both ways; trains, publishes, and reads the published card and its
grams with Python. Exit code 1 on the first failure. Needs no network.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

TOKEN = "hf_loopback_secret"
RECIPE = """model: org/sprout
data: {train: train.jsonl}
lora: {r: 2, alpha: 4}
max_length: 64
packing: false
batch_size: 2
max_steps: 2
save_steps: never
country: DEU
output_dir: run
"""
PYTHON = r"""
import json, os, sys
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub import scan_cache_dir
what, repo = sys.argv[1:]
if what == "cached":
    folder = snapshot_download(repo, local_files_only=True)
    weights = hf_hub_download(repo, "model.safetensors")
    revisions = [list(r.revisions)[0].commit_hash for r in scan_cache_dir().repos if r.repo_id == repo]
    print(json.dumps({"folder": folder, "weights": weights, "revisions": revisions}))
elif what == "download":
    print(json.dumps({"folder": snapshot_download(repo)}))
elif what == "published":
    card = ModelCard.load(repo)
    info = HfApi().model_info(repo, files_metadata=True)
    print(json.dumps({"emissions": card.data.co2_eq_emissions, "base": card.data.base_model,
                      "files": {s.rfilename: s.size for s in info.siblings}}))
"""


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sparsam", required=True, type=pathlib.Path)
    p.add_argument("--loopback", required=True, type=pathlib.Path)
    return p.parse_args()


def check(holds, what):
    print(("ok: " if holds else "FAILED: ") + what)
    if not holds:
        sys.exit(1)


def main():
    a = arguments()
    sparsam = str(a.sparsam.resolve())
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        env |= {"HF_HOME": str(work / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

        def run(*command, **more):
            done = subprocess.run(command, cwd=work, env=env | more, text=True, capture_output=True)
            if done.returncode != 0:
                sys.exit(f"FAILED: {' '.join(command[:3])}\n{done.stdout}{done.stderr}")
            return done.stdout.strip()

        def python(*command, **more):
            return json.loads(run(sys.executable, "-c", PYTHON, *command, **more).splitlines()[-1])

        run(sparsam, "unpack", "builtin:sprout", "-o", "sprout")
        server = subprocess.Popen([a.loopback.resolve(), f"models/org/sprout={work}/sprout"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            env["HF_ENDPOINT"] = server.stdout.readline().strip()

            fetched = pathlib.Path(run(sparsam, "fetch", "org/sprout"))
            before = (fetched / "model.safetensors").stat().st_mtime_ns
            found = python("cached", "org/sprout")
            check(found["folder"] == str(fetched), "Python finds the snapshot that sparsam fetched")
            check(found["weights"] == str(fetched / "model.safetensors")
                  and (fetched / "model.safetensors").stat().st_mtime_ns == before,
                  "Python asks the Hub and takes the weights out of the cache")
            check(found["revisions"] == [fetched.name], "Python's scan of the cache knows the commit")

            there = {"HF_HOME": str(work / "python")}
            folder = python("download", "org/sprout", **there)["folder"]
            own = run(sparsam, "fetch", "org/sprout", HF_HUB_OFFLINE="1", **there)
            check(own == folder, "sparsam finds, offline, the snapshot that Python fetched")

            rows = [{"prompt": f"Tree {i}?", "completion": f"Lime {i}"} for i in range(8)]
            (work / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (work / "recipe.yaml").write_text(RECIPE)
            run(sparsam, "-q", "train", "recipe.yaml")
            run(sparsam, "-q", "publish", "run", "me/trees")
            read = python("published", "me/trees")
            record = json.loads((work / "run/run.json").read_text())
            grams = record["energy"]["emissions_g"]["central"]
            said = read["emissions"]["emissions"]
            check(abs(said - grams) <= 1e-3 * grams, f"Python reads {said} g on the published card, run.json has {grams}")
            check(read["base"] == "org/sprout", "and its base")
            sizes = {name: (work / "run" / name).stat().st_size for name in ("adapter_model.safetensors", "run.json")}
            check(all(read["files"].get(name) == size for name, size in sizes.items()), "and its files")
        finally:
            server.stdin.close()
            server.wait(timeout=10)


if __name__ == "__main__":
    main()
