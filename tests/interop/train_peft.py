#!/usr/bin/env python3
"""Trains an adapter with PEFT on given batches and prints the losses, to be laid beside sparsam's step for step.

    python train_peft.py --base MODEL --adapter INITIAL --batches FILE --lr 5e-3

INITIAL is an adapter folder (sparsam's or PEFT's) to start from. FILE is a
safetensors file with `ids` [steps, batch, length] and, if part of the tokens is
not trained, `labels` of the same shape with -100 where nothing is predicted.
Step i trains on ids[i]: AdamW on the mean next-token loss over the batch. The
last line on stdout is JSON: losses (before each update), gradient norms (before
clipping), learning rates.
"""
import argparse
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, get_scheduler

from quantise import quantise


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--base", required=True)
    p.add_argument("--adapter", required=True)
    p.add_argument("--batches", required=True)
    p.add_argument("--lr", type=float, required=True)
    p.add_argument("--steps", type=int, help="fewer than the file holds")
    p.add_argument("--quantize", choices=["none", "nf4", "nf4-dq"], default="none")
    p.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="of the base; the adapter is f32")
    p.add_argument("--weight-decay", type=float, default=0.0)
    p.add_argument("--beta1", type=float, default=0.9)
    p.add_argument("--beta2", type=float, default=0.999)
    p.add_argument("--max-grad-norm", type=float, default=float("inf"))
    p.add_argument("--scheduler", choices=["constant_with_warmup", "linear", "cosine"], default="constant_with_warmup")
    p.add_argument("--warmup-steps", type=int, default=0)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--output", help="folder for the trained adapter")
    return p.parse_args()


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[a.dtype]
    model = AutoModelForCausalLM.from_pretrained(a.base, dtype=dtype)
    quantise(model, a.quantize, dtype)
    model = PeftModel.from_pretrained(model, a.adapter, is_trainable=True)
    model.train()

    work = load_file(a.batches)
    ids = work["ids"].long()
    labels = work.get("labels", ids).long()
    steps = min(a.steps or len(ids), len(ids))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=a.lr, betas=(a.beta1, a.beta2), eps=1e-8, weight_decay=a.weight_decay)
    scheduler = get_scheduler(a.scheduler, optimizer, a.warmup_steps, steps)
    losses, norms, rates = [], [], []
    for i in range(steps):
        logits = model(input_ids=ids[i]).logits.float()
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[i][:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(trained, a.max_grad_norm).item())
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    if a.output:
        model.save_pretrained(a.output)
    print(json.dumps(dict(losses=losses, grad_norms=norms, learning_rates=rates)))


if __name__ == "__main__":
    main()
