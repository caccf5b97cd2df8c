// Attention in bf16 on the tensor cores, sums and gradients in f32: `attention.cuh` has the arithmetic, this the entries
// for each width of head, rounded up; of each kernel how many rows are gone over at a time. Built to `attention.ptx` for compute_80 by `just cuda-ptx`.

#include "attention.cuh"

#define SHAPE int tokens, int heads, int kv_heads, int head, int before, int after, float scale, float cap
#define AS_SHAPE Shape{tokens, heads, kv_heads, head, before, after, scale, cap}

#define ATTENTION(D, FORWARD, OF_QUERIES, OF_KEYS)                                                                    \
    extern "C" __global__ void __launch_bounds__(128) attention_bf16_##D(                                             \
        const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v, const int* tiles,                     \
        __nv_bfloat16* out, float* log_sums, SHAPE) {                                                                 \
        forward<D, FORWARD, 2>(q, k, v, tiles, out, log_sums, AS_SHAPE);                                              \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(128) attention_bf16_backward_q_##D(                                  \
        const __nv_bfloat16* dout, const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v,            \
        const float* log_sums, const float* delta, const int* tiles, float* dq, SHAPE) {                              \
        backward_q<D, OF_QUERIES, 2>(dout, q, k, v, log_sums, delta, tiles, dq, AS_SHAPE);                            \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(128) attention_bf16_backward_kv_##D(                                 \
        const __nv_bfloat16* dout, const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v,            \
        const float* log_sums, const float* delta, const int* tiles, float* dk, float* dv, SHAPE) {                   \
        backward_kv<D, OF_KEYS>(dout, q, k, v, log_sums, delta, tiles, dk, dv, AS_SHAPE);                             \
    }

ATTENTION(64, 64, 32, 64)
ATTENTION(128, 32, 32, 32)
