#!/usr/bin/env python3
"""Makes the seeds of the targets that read binary files. Needs only Python.

    python seeds.py
"""
import json
import struct
from pathlib import Path

SEEDS = Path(__file__).resolve().parent / "seeds"


def write(target, name, data):
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


# ------------------------------------------------------------------ GGUF

def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind, data):
    formats = {"u32": (4, "<I"), "f32": (6, "<f"), "bool": (7, "<B")}
    if kind == "text":
        return struct.pack("<I", 8) + text(data)
    if kind == "texts":
        return struct.pack("<IIQ", 9, 8, len(data)) + b"".join(map(text, data))
    if kind == "i32s":
        return struct.pack("<IIQ", 9, 5, len(data)) + struct.pack(f"<{len(data)}i", *data)
    if kind == "f32s":
        return struct.pack("<IIQ", 9, 6, len(data)) + struct.pack(f"<{len(data)}f", *data)
    code, layout = formats[kind]
    return struct.pack("<I", code) + struct.pack(layout, data)


def gguf(metadata, tensors, version=3):
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, (kind, data) in metadata.items():
        out += text(key) + value(kind, data)
    offset = 0
    for name, (shape, code, size) in tensors.items():
        out += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        out += struct.pack("<IQ", code, offset)
        offset += -(-size // 32) * 32
    out += bytes(-len(out) % 32)
    return out + bytes(offset)


TOKENS = ["<unk>", "<s>", "</s>"] + [f"t{i}" for i in range(13)]
MODEL = {
    "general.architecture": ("text", "llama"),
    "general.file_type": ("u32", 0),
    "llama.block_count": ("u32", 1),
    "llama.context_length": ("u32", 32),
    "llama.embedding_length": ("u32", 32),
    "llama.feed_forward_length": ("u32", 32),
    "llama.attention.head_count": ("u32", 2),
    "llama.attention.head_count_kv": ("u32", 1),
    "llama.rope.freq_base": ("f32", 10000.0),
    "llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5),
    "llama.vocab_size": ("u32", len(TOKENS)),
    "tokenizer.ggml.model": ("text", "llama"),
    "tokenizer.ggml.tokens": ("texts", TOKENS),
    "tokenizer.ggml.scores": ("f32s", [0.0] * len(TOKENS)),
    "tokenizer.ggml.token_type": ("i32s", [2, 3, 3] + [1] * 13),
    "tokenizer.ggml.bos_token_id": ("u32", 1),
    "tokenizer.ggml.eos_token_id": ("u32", 2),
}


def tensors(code, row):
    """Every tensor of that model; `row` is the bytes of 32 numbers."""
    matrix = lambda rows: ((rows, 32), code, rows * row)
    vector = ((32,), 0, 128)
    parts = {"attn_q": matrix(32), "attn_k": matrix(16), "attn_v": matrix(16), "attn_output": matrix(32),
             "ffn_gate": matrix(32), "ffn_up": matrix(32), "ffn_down": matrix(32), "attn_norm": vector,
             "ffn_norm": vector}
    named = {f"blk.0.{name}.weight": tensor for name, tensor in parts.items()}
    return {"token_embd.weight": matrix(len(TOKENS)), "output_norm.weight": vector} | named


def make_gguf():
    whole = gguf(MODEL, tensors(0, 128))
    write("gguf", "f32", whole)
    write("gguf", "q8_0", gguf(MODEL, tensors(8, 34)))
    write("gguf", "q4_0", gguf(MODEL, tensors(2, 18)))
    write("gguf", "cut", whole[: len(whole) // 2])
    write("gguf", "header", whole[:24])
    write("gguf", "huge", b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**61))
    write("gguf", "version", gguf(MODEL, tensors(0, 128), version=9))
    huge = dict(MODEL) | {"llama.embedding_length": ("u32", 2**31), "llama.block_count": ("u32", 2**32 - 1)}
    write("gguf", "absurd", gguf(huge, tensors(0, 128)))


# ----------------------------------------------------------- safetensors

def safetensors(header, data):
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def make_safetensors():
    tensor = lambda begin, end, shape, dtype="F32": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    shard = safetensors({"__metadata__": {"format": "pt"}, "a": tensor(0, 16, [4]), "b": tensor(16, 40, [2, 3])}, bytes(40))
    write("safetensors", "shard", b"\1" + shard)
    write("safetensors", "cut", b"\1" + shard[:-7])
    write("safetensors", "overlap", b"\1" + safetensors({"a": tensor(0, 16, [4]), "b": tensor(8, 24, [4])}, bytes(24)))
    write("safetensors", "beyond", b"\1" + safetensors({"a": tensor(0, 2**60, [2**58])}, bytes(8)))
    write("safetensors", "long_header", b"\1" + struct.pack("<Q", 2**62) + b"{}")
    write("safetensors", "kinds", b"\1" + safetensors({"a": tensor(0, 2, [1], "BF16"), "b": tensor(2, 3, [1], "U8")}, bytes(3)))
    index = lambda names: json.dumps({"metadata": {"total_size": 40}, "weight_map": names}).encode()
    write("safetensors", "index", b"\0" + index({"a": "a.safetensors", "b": "a.safetensors"}))
    write("safetensors", "escape", b"\0" + index({"a": "../a.safetensors"}))
    write("safetensors", "missing", b"\0" + index({"a": "z.safetensors", "c": "a.safetensors"}))
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "rms_norm_eps": 1e-5,
              "max_position_embeddings": 128, "hidden_act": "silu", "rope_theta": 10000.0,
              "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                               "original_max_position_embeddings": 64}}
    write("safetensors", "config", b"\2" + json.dumps(config).encode())
    write("safetensors", "config_zero", b"\2" + json.dumps(config | {"num_attention_heads": 0}).encode())


# -------------------------------------------------------- adapter settings

def make_adapter_config():
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0,
              "target_modules": ["q_proj", "v_proj"], "bias": "none", "base_model_name_or_path": "families/llama"}
    variants = {
        "plain": {},
        "patterns": {"rank_pattern": {"q_proj": 2, r"layers\.1\..*": 3}, "alpha_pattern": {"v_proj": 1.5}},
        "regex": {"target_modules": ".*q_proj", "exclude_modules": "(a|b)+c"},
        "bad_regex": {"target_modules": "((((", "layers_to_transform": [0, 1]},
        "classes": {"task_type": "SEQ_CLS", "modules_to_save": ["score"]},
        "zero": {"r": 0},
        "huge": {"r": 2**63, "lora_alpha": 1e308, "use_rslora": True},
        "pissa": {"init_lora_weights": "pissa"},
    }
    for name, changes in variants.items():
        write("adapter_config", name, json.dumps(config | changes).encode())


if __name__ == "__main__":
    make_gguf()
    make_safetensors()
    make_adapter_config()
