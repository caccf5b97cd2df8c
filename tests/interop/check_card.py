#!/usr/bin/env python3
"""Reads a model card with huggingface_hub, prints its emissions and checks the types of what the Hub reads.

    python check_card.py README.md [--require-emissions] [--require-results]

Exit code 1 on a failure, with every reason on a line of its own. Needs no network.
"""
import argparse
import json
import math
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

from huggingface_hub import ModelCard

TEXT, NUMBER, TEXTS = "text", "a number of 0 or more", "text or a list of texts"
FIELDS = dict(library_name=TEXT, license=TEXT, pipeline_tag=TEXT, base_model=TEXTS, datasets=TEXTS, language=TEXTS, tags=TEXTS)
EMISSIONS = dict(emissions=NUMBER, energy_consumed=NUMBER, source=TEXT, training_type=TEXT, geographical_location=TEXT, hardware_used=TEXT)
TRAINING_TYPES = ("pre-training", "fine-tuning")


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("card")
    p.add_argument("--require-emissions", action="store_true")
    p.add_argument("--require-results", action="store_true", help="a model-index with at least one finite value")
    return p.parse_args()


def number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_a(kind, value):
    if kind is TEXT:
        return isinstance(value, str) and value.strip() != ""
    if kind is NUMBER:
        return number(value) and value >= 0
    return is_a(TEXT, value) or isinstance(value, list) and value != [] and all(is_a(TEXT, v) for v in value)


def wrong_types(values, kinds, prefix=""):
    return [f"{prefix}{key} is {values[key]!r}, wanted {kind}" for key, kind in kinds.items()
            if values.get(key) is not None and not is_a(kind, values[key])]


def wrong_emissions(block, required):
    if block is None:
        return ["there is no co2_eq_emissions"] if required else []
    if not isinstance(block, dict):
        return [f"co2_eq_emissions is {block!r}, wanted a mapping"]
    reasons = wrong_types(block, EMISSIONS, "co2_eq_emissions.")
    reasons += [f"co2_eq_emissions.{key} is not a key the Hub knows" for key in block.keys() - EMISSIONS.keys()]
    if block.get("emissions") is None:
        reasons.append("co2_eq_emissions has no emissions (grams)")
    if block.get("training_type") not in (None, *TRAINING_TYPES):
        reasons.append(f"co2_eq_emissions.training_type is {block['training_type']!r}, wanted one of {', '.join(TRAINING_TYPES)}")
    return reasons


def wrong_results(results, required):
    if not results:
        return ["there is no model-index"] if required else []
    return [f"the result {r.metric_type!r} of the model-index is {r.metric_value!r}, wanted a number"
            for r in results if not number(r.metric_value)]


def main():
    a = arguments()
    try:
        card = ModelCard.load(a.card)
    except Exception as error:  # whatever the reader raises, the card cannot be read
        sys.exit(f"FAILED: {a.card}: {type(error).__name__}: {error}")
    data = card.data.to_dict()
    block = data.get("co2_eq_emissions")
    print(json.dumps({"co2_eq_emissions": block}, ensure_ascii=False, indent=2, default=str))
    reasons = wrong_types(data, FIELDS)
    reasons += wrong_emissions(block, a.require_emissions)
    reasons += wrong_results(card.data.eval_results, a.require_results)
    if not card.text.strip():
        reasons.append("the card has no text")
    for reason in reasons:
        print(f"FAILED: {reason}")
    sys.exit(1 if reasons else 0)


if __name__ == "__main__":
    main()
