#!/usr/bin/env python3
"""The peer's side of a measurement: PEFT on PyTorch trains a Llama-architecture model of a given shape.

    python peft_peer.py --data DIR --shape 135m --prepare      # writes the files below
    python peft_peer.py --data DIR --shape 135m --method lora --dtype f32

Both programs start from the same files, so that they do the same arithmetic:

    DIR/135m/                        config.json, model.safetensors: seeded random weights, f32
    DIR/135m-lora.safetensors        the A matrices of rank 16; B starts at zero
    DIR/135m-batches.safetensors     ids [16, 8, 1024]; step i trains on ids[i % 16, :batch, :seq]

A step is forward, mean next-token loss, backward, AdamW without decay. The
first two steps warm up and are not counted. The last line on stdout is JSON.
"""
import argparse
import ctypes
import json
import resource
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

SHAPES = {
    "tiny": dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
                 intermediate_size=688, vocab_size=4096, tie_word_embeddings=True),
    "135m": dict(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                 intermediate_size=1536, vocab_size=49152, tie_word_embeddings=True),
    "qwen0.5b": dict(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
                     intermediate_size=4864, vocab_size=151936, tie_word_embeddings=True),
    "1.1b": dict(hidden_size=2048, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
                 intermediate_size=5632, vocab_size=32000, tie_word_embeddings=False),
    "7b": dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
               intermediate_size=11008, vocab_size=32000, tie_word_embeddings=False),
    "8b": dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
               intermediate_size=14336, vocab_size=128256, tie_word_embeddings=False),
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
RANK, ALPHA, LEARNING_RATE, WARM_UP = 16, 32, 2e-4, 2


def installed(name):
    """The version of a package, or None: bitsandbytes is needed by the NF4 arms only."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path("peer-data"), metavar="DIR")
    p.add_argument("--shape", choices=SHAPES, default="135m")
    p.add_argument("--prepare", action="store_true",
                   help="write what is missing of the files, then stop; weights in --dtype, drawn on --device")
    p.add_argument("--method", choices=["lora", "full"], default="lora")
    p.add_argument("--dtype", choices=DTYPES, default="f32", help="of the base, and of the weights in full training")
    p.add_argument("--quantize", choices=["none", "nf4", "nf4-dq"], default="none")
    p.add_argument("--gradient-checkpointing", action="store_true")
    p.add_argument("--compile", action="store_true", help="with torch.compile")
    p.add_argument("--device", default="cpu")
    p.add_argument("--roof", action="store_true", help="how fast this torch multiplies square matrices, then stop")
    p.add_argument("--rows", type=Path, help="rows of uneven length instead of the batches")
    p.add_argument("--write-rows", type=Path, metavar="JSONL", help="write --rows from questions and answers, then stop")
    p.add_argument("--tokenizer", type=Path, help="tokenizer.json for --write-rows")
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    if not (a.prepare or a.roof) and a.steps <= WARM_UP:
        p.error(f"--steps must be more than the {WARM_UP} that warm up")
    return a


def files(a):
    return a.data / a.shape, a.data / f"{a.shape}-lora.safetensors", a.data / f"{a.shape}-batches.safetensors"


def prepare(a):
    """Writes the files that are missing. The seeds make them the same everywhere, but for weights drawn on a GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, lora, batches = files(a)
    a.data.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        config = LlamaConfig(**SHAPES[a.shape], rope_theta=100000.0, rms_norm_eps=1e-5, max_position_embeddings=4096,
                             initializer_range=0.02, bos_token_id=1, eos_token_id=2)
        with torch.device(a.device):
            model = LlamaForCausalLM(config)
        model.to(DTYPES[a.dtype]).save_pretrained(folder, max_shard_size="100GB")
    if not batches.exists():
        seeded = torch.Generator().manual_seed(1)
        length = 2048 if a.shape == "8b" else 1024
        ids = torch.randint(0, SHAPES[a.shape]["vocab_size"], (16, 8, length), generator=seeded)
        save_file({"ids": ids}, batches)
    if not lora.exists():
        torch.manual_seed(2)
        model = with_lora(load_base(folder, DTYPES[a.dtype]))
        save_file({k: p.detach().float().contiguous() for k, p in model.named_parameters() if "lora_A" in k}, lora)


def operations(a):
    """Multiplications and additions that a token needs, two for each weight and direction; what is computed again is none.

    Of frozen weights there is no gradient, and attention is over the keys that are seen.
    """
    s = SHAPES[a.shape]
    hidden, wide, layers = s["hidden_size"], s["intermediate_size"], s["num_hidden_layers"]
    kv = hidden // s["num_attention_heads"] * s["num_key_value_heads"]
    projections = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden), (hidden, wide), (hidden, wide), (wide, hidden)]
    weights = layers * sum(m * n for m, n in projections) + hidden * s["vocab_size"]
    branches = layers * sum(RANK * (m + n) for m, n in projections)
    attention = layers * 7 * a.seq * hidden  # two products forward and five back, over half of the places
    return attention + (6 * weights if a.method == "full" else 4 * weights + 6 * branches)


def roof():
    """GFLOP/s of torch's products of 2,048 x 2,048 matrices, the best of some."""
    found = {}
    for name, dtype in DTYPES.items():
        left, right = (torch.rand(2048, 2048).to(dtype) for _ in range(2))
        seconds = []
        for _ in range(12):
            begin = time.perf_counter()
            torch.mm(left, right)
            seconds.append(time.perf_counter() - begin)
        found[name] = 2 * 2048**3 / min(seconds) / 1e9
    return found


def write_rows(a):
    """Rows of a file with questions and answers, a token that ends each included.

    Ids that the shape's vocabulary does not have become others, which to weights that were drawn is all the same.
    """
    from tokenizers import Tokenizer

    vocabulary = SHAPES[a.shape]["vocab_size"]
    tokenizer = Tokenizer.from_file(str(a.tokenizer))
    ids, lengths, begins = [], [], []
    with open(a.write_rows, encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            question = tokenizer.encode(row["question"] + "\n").ids
            answer = tokenizer.encode(row["answer"], add_special_tokens=False).ids + [2]
            ids += question + answer
            lengths.append(len(question) + len(answer))
            begins.append(len(question))
    save_file({"ids": torch.tensor(ids) % vocabulary, "lengths": torch.tensor(lengths), "begins": torch.tensor(begins)}, a.rows)


def padded(a):
    """Inputs, mask and labels of each step's rows, padded to the longest of them, and how many tokens are real."""
    rows = load_file(a.rows)
    parts = rows["ids"].split(rows["lengths"].tolist())
    begins = rows["begins"].tolist()
    for step in range(a.steps):
        places = [(step * a.batch + i) % len(parts) for i in range(a.batch)]
        longest = max(len(parts[i]) for i in places)
        x, mask, labels = (torch.full((a.batch, longest), fill) for fill in (0, 0, -100))
        for row, i in enumerate(places):
            length = len(parts[i])
            x[row, :length], mask[row, :length] = parts[i], 1
            labels[row, begins[i]:length] = parts[i][begins[i]:]
        yield x, mask, labels, int(mask.sum())


def load_base(folder, dtype):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.config.use_cache = False
    return model


def with_lora(model):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=PROJECTIONS))


def quantise(model, double, compute, device):
    """NF4 layers of bitsandbytes in place of the projections."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for path, module in list(model.named_modules()):
        parent, _, leaf = path.rpartition(".")
        if not isinstance(module, nn.Linear) or leaf not in PROJECTIONS:
            continue
        layer = Linear4bit(module.in_features, module.out_features, bias=False, compute_dtype=compute,
                           compress_statistics=double, quant_type="nf4")
        layer.weight = Params4bit(module.weight.data, requires_grad=False, compress_statistics=double,
                                  quant_type="nf4", blocksize=64)
        layer = layer.to(device)  # this is where bitsandbytes quantises
        if layer.weight.quant_state is None:
            raise RuntimeError(f"bitsandbytes left {path} unquantised on {device}")
        setattr(model.get_submodule(parent), leaf, layer)


def build(a):
    """The model ready to train, and the parameters that do."""
    folder, lora, _ = files(a)
    model = load_base(folder, DTYPES[a.dtype])
    if a.quantize != "none":
        quantise(model, a.quantize == "nf4-dq", DTYPES[a.dtype], a.device)
    model = model.to(a.device)
    if a.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if a.method == "lora":
        model = with_lora(model)
        named = dict(model.named_parameters())
        with torch.no_grad():
            for key, value in load_file(lora).items():
                named[key].copy_(value)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    return (torch.compile(model) if a.compile else model), trained


def gpu_joules():
    """What all GPUs have drawn by NVML's counters, or None where there is none."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    count, sum_ = ctypes.c_uint(), 0.0
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return None
    for index in range(count.value):
        gpu, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(gpu)) or \
                nvml.nvmlDeviceGetTotalEnergyConsumption(gpu, ctypes.byref(millijoules)):
            return None
        sum_ += millijoules.value / 1e3
    return sum_


def train(a, model, trained):
    """Losses, seconds and real tokens of every step, and joules a token of those after the first."""
    if a.rows:
        batches = padded(a)
    else:
        ids = load_file(files(a)[2])["ids"]
        rows = (ids[i % len(ids), :a.batch, :a.seq].contiguous() for i in range(a.steps))
        batches = ((x, None, x, x.numel()) for x in rows)
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    wait = torch.cuda.synchronize if a.device.startswith("cuda") else lambda: None
    losses, seconds, tokens = [], [], []
    joules = gpu_joules if a.device.startswith("cuda") else lambda: None
    for step, (x, mask, labels, real) in enumerate(batches):
        if step == WARM_UP:
            wait()
            before = joules()
        x, labels = x.to(a.device), labels.to(a.device)
        mask = None if mask is None else mask.to(a.device)
        wait()
        begin = time.perf_counter()
        loss = model(input_ids=x, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        seconds.append(time.perf_counter() - begin)
        losses.append(loss.item())
        tokens.append(real)
    after = joules()
    drawn = None if before is None or after is None else (after - before) / sum(tokens[WARM_UP:])
    return losses, seconds, tokens, drawn


def peak_rss_mib():
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    if a.write_rows:
        write_rows(a)
        return
    if a.roof:
        print(json.dumps(roof()))
        return
    prepare(a)
    if a.prepare:
        return
    import peft  # noqa: F401  so that what the imports take is known before the model is there
    from transformers import AutoModelForCausalLM  # noqa: F401

    imported = peak_rss_mib()
    losses, seconds, tokens, drawn = train(a, *build(a))
    # Steps of one size are as fast as the median one; others have to be added up.
    rate = sum(tokens[WARM_UP:]) / sum(seconds[WARM_UP:]) if a.rows else tokens[-1] / statistics.median(seconds[WARM_UP:])
    print(json.dumps(dict(
        tokens_per_second=rate, peak_rss_mib=peak_rss_mib(), losses=losses,
        operations_per_token=None if a.rows else operations(a), step_seconds=seconds, rss_after_imports_mib=imported, joules_per_token=drawn,
        peak_device_mib=torch.cuda.max_memory_allocated() / 2**20 if a.device.startswith("cuda") else None,
        versions={name: installed(name) for name in ("torch", "transformers", "peft", "bitsandbytes")},
        cpu_capability=torch.backends.cpu.get_cpu_capability())))


if __name__ == "__main__":
    main()
