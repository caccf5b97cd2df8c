"""Puts bitsandbytes' 4-bit layers in place of a decoder's projections, as QLoRA does; the head and the embedding stay."""
import torch
from torch import nn

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def quantise(model, kind, compute=torch.float32):
    """`kind` is none, nf4 or nf4-dq; the layers compute in `compute`."""
    if kind == "none":
        return
    from bitsandbytes.nn import Linear4bit, Params4bit

    for path, module in list(model.named_modules()):
        parent, _, leaf = path.rpartition(".")
        if not isinstance(module, nn.Linear) or leaf not in PROJECTIONS:
            continue
        double = kind == "nf4-dq"
        layer = Linear4bit(module.in_features, module.out_features, bias=module.bias is not None,
                           compute_dtype=compute, compress_statistics=double, quant_type="nf4")
        layer.weight = Params4bit(module.weight.data, requires_grad=False, compress_statistics=double,
                                  quant_type="nf4", blocksize=64)
        layer.bias = module.bias
        layer = layer.to(module.weight.device)  # this is where bitsandbytes quantises
        if layer.weight.quant_state is None:
            raise RuntimeError(f"bitsandbytes left {path} unquantised on {module.weight.device}")
        setattr(model.get_submodule(parent), leaf, layer)
