#!/usr/bin/env python3
"""Loads an adapter folder into PEFT and compares its logits with those sparsam computed.

    python check_adapter.py --base MODEL --adapter FOLDER --logits FILE

FILE is a safetensors file with `input_ids` [n] and `logits` [n, vocabulary].
An adapter that does not fit can load and do nothing, or load with the wrong
scale; so any warning is a failure, the logits must agree, and they must differ
from the base's. Exit code 1 on a failure, with the reason as the last line.
"""
import argparse
import logging
import os
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from quantise import quantise

# Said by PEFT's own calls into transformers, whatever the adapter.
NOT_ABOUT_THE_ADAPTER = ["`is_gradient_checkpointing` is deprecated"]


class Collected(logging.Handler):
    """Keeps every log record of level warning or above."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(f"{record.name}: {record.getMessage()}")


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--base", required=True)
    p.add_argument("--adapter", required=True)
    p.add_argument("--logits", required=True)
    p.add_argument("--quantize", choices=["none", "nf4", "nf4-dq"], default="none", help="of the base")
    p.add_argument("--tolerance", type=float, default=1e-4)
    return p.parse_args()


def listen():
    """Warnings become errors; the libraries' logs are collected, even where they do not propagate."""
    warnings.simplefilter("error")
    for message in NOT_ABOUT_THE_ADAPTER:
        warnings.filterwarnings("ignore", message=message)
    collected = Collected()
    for name in ("", "peft", "transformers", "safetensors", "huggingface_hub"):
        logging.getLogger(name).addHandler(collected)
    return collected


def fail(reason):
    print(f"FAILED: {reason}")
    sys.exit(1)


@torch.no_grad()
def main():
    a = arguments()
    torch.set_num_threads(1)
    work = load_file(a.logits)
    ids, ours = work["input_ids"].long().reshape(1, -1), work["logits"].float()
    base = AutoModelForCausalLM.from_pretrained(a.base, dtype=torch.float32)
    quantise(base, a.quantize)
    without = base(input_ids=ids).logits[0]
    if ours.shape != without.shape:
        fail(f"the file holds logits {list(ours.shape)}, the model gives {list(without.shape)}")

    collected = listen()
    try:
        model = PeftModel.from_pretrained(base, a.adapter)
        theirs = model(input_ids=ids).logits[0]
    except Warning as w:
        fail(f"warning on load: {w}")
    if collected.messages:
        fail("logged on load: " + "; ".join(collected.messages))

    effect = (theirs - without).abs().max().item()
    difference = (theirs - ours).abs().max().item()
    print(f"max |logit difference| {difference:.3e} over {list(ours.shape)}, effect of the adapter {effect:.3e}")
    if not effect > 10 * a.tolerance:
        fail("the adapter has no effect worth comparing")
    if not difference <= a.tolerance:  # also when it is NaN
        fail(f"the logits differ by more than {a.tolerance:g}")


if __name__ == "__main__":
    main()
