#!/usr/bin/env python3
"""GGUF files of sparsam beside those of llama.cpp's own converters, tensor for tensor and key for key.

    python check_gguf.py --sparsam target/release/sparsam --llama-cpp DIR --model MODEL --adapter RUN

DIR is a checkout of llama.cpp, or `vendor/llama.cpp` in the source package of llama-cpp-python on PyPI: it holds
`convert_hf_to_gguf.py`, `convert_lora_to_gguf.py` and `gguf-py`. Both sides write the model with the adapter merged
into it, and the adapter alone, in f32 and f16. Every tensor must be there on both sides with the same shape, type and
bytes, and every key that both write must have the same value; keys of one side are listed. Needs the Python with
PEFT (torch, transformers). Exit code 1 with the reason as the last line.
"""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

# Names of the file and of its maker, which are each side's own.
OWN = {"general.name", "general.quantization_version", "general.size_label", "general.basename", "general.finetune",
       "GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}
# Of a tokenizer.json the converter gives every token the same score, from which llama.cpp cannot tell the order of the
# merges, and calls the unknown token a control token. sparsam writes both as SentencePiece's own files have them.
UNKNOWN, CONTROL = 2, 3


def as_in_sentencepiece(name, ours, theirs):
    if name == "tokenizer.ggml.scores":
        return len(set(theirs)) == 1 and len(set(ours)) > 1
    if name == "tokenizer.ggml.token_type":
        differ = [(x, y) for x, y in zip(ours, theirs) if x != y]
        return len(ours) == len(theirs) and differ == [(UNKNOWN, CONTROL)]
    return False


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sparsam", default="target/release/sparsam")
    p.add_argument("--llama-cpp", type=Path, required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--adapter", required=True)
    return p.parse_args()


def run(words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(map(str, words))}` ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")


def read(path):
    from gguf import GGUFReader

    reader = GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: (tuple(int(n) for n in t.shape), t.tensor_type.name, t.data.tobytes()) for t in reader.tensors}
    return keys, tensors


def compare(what, ours, theirs):
    (keys, tensors), (their_keys, their_tensors) = read(ours), read(theirs)
    if tensors.keys() != their_tensors.keys():
        sys.exit(f"{what}: tensors of one side only: {sorted(tensors.keys() ^ their_tensors.keys())}")
    for name, (shape, kind, data) in tensors.items():
        other_shape, other_kind, other = their_tensors[name]
        if (shape, kind) != (other_shape, other_kind):
            sys.exit(f"{what}: {name} is {shape} {kind} here and {other_shape} {other_kind} there")
        if data != other:
            sys.exit(f"{what}: the numbers of {name} differ")
    both = (keys.keys() & their_keys.keys()) - OWN
    for name in sorted(both):
        if as_in_sentencepiece(name, keys[name], their_keys[name]):
            print(f"{what}: {name} as in SentencePiece's files here, not there")
        elif keys[name] != their_keys[name]:
            sys.exit(f"{what}: {name} is {str(keys[name])[:200]} here and {str(their_keys[name])[:200]} there")
    print(f"{what}: {len(tensors)} tensors equal byte for byte, {len(both)} keys compared; "
          f"here only: {', '.join(sorted(keys.keys() - their_keys.keys() - OWN)) or 'none'}; "
          f"there only: {', '.join(sorted(their_keys.keys() - keys.keys() - OWN)) or 'none'}")


def main():
    a = arguments()
    sys.path.insert(0, str(a.llama_cpp / "gguf-py"))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        merged = folder / "merged"
        run([a.sparsam, "-q", "merge", a.adapter, "-b", a.model, "-o", merged])
        for kind in ("f32", "f16"):
            ours, theirs = folder / f"ours-{kind}.gguf", folder / f"theirs-{kind}.gguf"
            run([a.sparsam, "-q", "export", a.adapter, "-b", a.model, "-f", "gguf", "--type", kind, "-o", ours])
            run([sys.executable, a.llama_cpp / "convert_hf_to_gguf.py", merged, "--outtype", kind, "--outfile", theirs])
            compare(f"model, {kind}", ours, theirs)
            ours, theirs = folder / f"lora-{kind}.gguf", folder / f"their-lora-{kind}.gguf"
            run([a.sparsam, "-q", "export", a.adapter, "-b", a.model, "-f", "gguf-lora", "--type", kind, "-o", ours])
            run([sys.executable, a.llama_cpp / "convert_lora_to_gguf.py", a.adapter, "--base", a.model,
                 "--outtype", kind, "--outfile", theirs])
            compare(f"adapter, {kind}", ours, theirs)


if __name__ == "__main__":
    main()
