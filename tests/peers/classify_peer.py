#!/usr/bin/env python3
"""sparsam and PEFT on PyTorch train the same classifier on the same files, in turn, once for each seed.

    python classify_peer.py --sparsam sparsam --model minilm --data datasets --output out [--seeds 1 2] [--only banking77]

`--data` holds `banking77/{train,test}.csv` and `germeval2018/germeval2018.{training,test}.txt`. Both sides read the
same CSV files, use LoRA on all projections with the head trained whole, AdamW without decay, a linear schedule with
a warm-up of a tenth, and batches of the same number of texts; they shuffle and begin at random each in its own way,
so that figures agree within the noise between seeds and not to the digit. Peak memory is that of the whole process
(ru_maxrss of the child); time is that of the steps, as each side counts it, without loading and evaluation.
"""
import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

TASKS = {  # name: (epochs, learning rate, longest text)
    "germeval2018": (3, 5e-4, 64),
    "banking77": (2, 1e-3, 64),
}
BATCH, RANK, ALPHA, DROPOUT, WARMUP = 16, 16, 32, 0.0, 0.1


def rows_of(name, data, part):
    if name == "banking77":
        with open(data / name / f"{part}.csv", newline="", encoding="utf-8") as file:
            return [(row["text"], row["category"]) for row in csv.DictReader(file)]
    part = {"train": "training", "test": "test"}[part]
    lines = (data / name / f"germeval2018.{part}.txt").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("\t")[:2]) for line in lines if line.strip()]


def prepare(name, data, folder, most):
    for part in ("train", "test"):
        rows = rows_of(name, data, part)
        # The files are in the order of their classes: a drawn part keeps the mixture.
        if most[part] and most[part] < len(rows):
            rows = random.Random(0).sample(rows, most[part])
        with open(folder / f"{name}-{part}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(rows)


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def macro_f1(truths, answers):
    """Mean F1 over the classes that occur, as scikit-learn has it."""
    scores = []
    for label in set(truths) | set(answers):
        right = sum(t == a == label for t, a in zip(truths, answers))
        scores.append(2 * right / (truths.count(label) + answers.count(label)))
    return sum(scores) / len(scores)


def peft_side(args):
    """One run in PEFT; prints a line of JSON."""
    import numpy
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    epochs, rate, longest = TASKS[args.task]
    train, test = (read(args.folder / f"{args.task}-{part}.csv") for part in ("train", "test"))
    labels = sorted({label for _, label in train})
    numbers = {label: number for number, label in enumerate(labels)}
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(labels), dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(
        task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules="all-linear"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    per_epoch = -(-len(train) // BATCH)
    steps = epochs * per_epoch
    schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP * steps), steps)

    def encode(rows):
        batch = tokenizer([text for text, _ in rows], truncation=True, max_length=longest, padding=True,
                          return_tensors="pt")
        return batch, torch.tensor([numbers[label] for _, label in rows])

    generator = numpy.random.default_rng(args.seed)
    model.train()
    seconds = 0.0
    for _ in range(epochs):
        order = generator.permutation(len(train))
        for first in range(0, len(train), BATCH):
            batch, truths = encode([train[i] for i in order[first:first + BATCH]])
            began = time.perf_counter()
            loss = torch.nn.functional.cross_entropy(model(**batch).logits, truths)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            seconds += time.perf_counter() - began
    model.eval()
    answers = []
    with torch.no_grad():
        for first in range(0, len(test), 64):
            batch, _ = encode(test[first:first + 64])
            answers += model(**batch).logits.argmax(-1).tolist()
    truths = [numbers[label] for _, label in test]
    print(json.dumps(dict(
        macro_f1=macro_f1(truths, answers), seconds=seconds, trained=sum(p.numel() for p in trained),
        accuracy=sum(t == a for t, a in zip(truths, answers)) / len(truths))))


def peak_of(command, **options):
    """Output of a command, and the most memory its process held, in MiB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} ended with {process.returncode}")
    return out.decode(), usage.ru_maxrss / 1024


def sparsam_side(args, task, seed):
    epochs, rate, longest = TASKS[task]
    folder = args.output / f"{task}-{seed}"
    recipe = args.output / f"{task}.yaml"
    recipe.write_text(json.dumps(dict(
        model=str(args.model), task="classification", lora=dict(r=RANK, alpha=ALPHA, dropout=DROPOUT),
        data=dict(train=str(args.output / f"{task}-train.csv"), eval=str(args.output / f"{task}-test.csv")),
        max_length=longest, epochs=epochs, batch_size=BATCH, learning_rate=rate, lr_scheduler="linear",
        warmup_ratio=WARMUP, eval_steps="never", save_steps="never", threads=args.threads)), encoding="utf-8")
    command = [args.sparsam, "train", str(recipe), f"seed={seed}", f"output_dir={folder}", "--quiet"]
    _, peak = peak_of(command)
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    after = run["results"]["classes"]["after"]
    return dict(macro_f1=after["macro_f1"], accuracy=after["accuracy"], seconds=run["results"]["train_seconds"],
                trained=run["trainable_parameters"], peak_mib=peak)


def peers(args):
    args.output.mkdir(parents=True, exist_ok=True)
    results = []
    for task in args.only or TASKS:
        prepare(task, args.data, args.output, dict(train=args.train, test=args.test))
        for seed in args.seeds:
            ours = sparsam_side(args, task, seed)
            out, peak = peak_of([sys.executable, __file__, "--task", task, "--seed", str(seed), "--folder",
                                 str(args.output), "--model", str(args.model), "--threads", str(args.threads)],
                                stderr=subprocess.DEVNULL)
            theirs = json.loads(out.splitlines()[-1]) | dict(peak_mib=peak)
            results.append(dict(task=task, seed=seed, sparsam=ours, peft=theirs))
            print(json.dumps(results[-1]), flush=True)
            (args.output / "classify-peers.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = ["| data | macro F1 sparsam | macro F1 PEFT | time, sparsam/PEFT | peak memory, sparsam/PEFT |",
             "|---|---|---|---|---|"]
    for task in args.only or TASKS:
        of = [result for result in results if result["task"] == task]
        column = lambda side, key: [result[side][key] for result in of]
        spread = lambda side: " ".join(f"{100 * value:.1f}" for value in column(side, "macro_f1"))
        ratio = lambda key: statistics.mean(column("sparsam", key)) / statistics.mean(column("peft", key))
        lines.append(f"| {task} | {spread('sparsam')} | {spread('peft')} | {ratio('seconds'):.2f} | "
                     f"{ratio('peak_mib'):.2f} |")
    table = "\n".join(lines)
    (args.output / "classify-peers.md").write_text(table + "\n", encoding="utf-8")
    print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a small encoder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sparsam", default="target/release/sparsam")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--train", type=int, help="draw so many texts to train on; all by default")
    parser.add_argument("--test", type=int, help="draw so many texts to measure on; all by default")
    parser.add_argument("--only", nargs="+", choices=TASKS)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        peft_side(args)
    elif args.data and args.output:
        peers(args)
    else:
        parser.error("--data and --output are needed")


if __name__ == "__main__":
    main()
