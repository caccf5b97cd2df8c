// Attention in bf16 on the tensor cores, sums in f32: `attention.cuh` has the arithmetic, this the entries for each
// width of head, rounded up. Built to `attention.ptx` for compute_80 by `just cuda-ptx`.

#include "attention.cuh"

#define ATTENTION(D, N)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128) attention_bf16_##D(                                             \
        const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v, const int* tiles, float* out,         \
        float* log_sums, int tokens, int heads, int kv_heads, int head, int window, float scale) {                    \
        forward<D, 64>(q, k, v, tiles, out, log_sums, Shape{tokens, heads, kv_heads, head, window, scale});           \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(128) attention_bf16_backward_q_##D(                                  \
        const __nv_bfloat16* dout, const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v,            \
        const float* log_sums, const float* delta, const int* tiles, float* dq, int tokens, int heads, int kv_heads,  \
        int head, int window, float scale) {                                                                          \
        backward_q<D, N>(dout, q, k, v, log_sums, delta, tiles, dq,                                                   \
                         Shape{tokens, heads, kv_heads, head, window, scale});                                        \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(128) attention_bf16_backward_kv_##D(                                 \
        const __nv_bfloat16* dout, const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v,            \
        const float* log_sums, const float* delta, const int* tiles, float* dk, float* dv, int tokens, int heads,     \
        int kv_heads, int head, int window, float scale) {                                                            \
        backward_kv<D, N>(dout, q, k, v, log_sums, delta, tiles, dk, dv,                                              \
                          Shape{tokens, heads, kv_heads, head, window, scale});                                       \
    }

ATTENTION(64, 64)
ATTENTION(128, 32)
