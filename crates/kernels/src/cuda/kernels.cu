// The kernels of this crate on NVIDIA GPUs; products go through cuBLAS. Built to `kernels.ptx` for compute_80
// by `just cuda-ptx`, which also says whether the two agree.
//
// Activations are f32 or, where only products in bf16 read them, bf16; row-major and contiguous. No kernel uses atomics:
// each number has one writer, which adds in a fixed order, so a run repeats bit for bit. Where a kernel's shape is not
// said, it is one thread for each number, or for four of them where it takes them by `Four`: what only passes over numbers
// is as fast as memory then.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace {

constexpr float LOWEST = -3.402823466e38f;
constexpr uint32_t NO_TARGET = 0xffffffffu;

__device__ float warp_sum(float v) {
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

__device__ float warp_max(float v) {
    for (int offset = 16; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
    return v;
}

// Sum over a block whose size is a multiple of 32; every thread gets it.
__device__ float block_sum(float v) {
    __shared__ float parts[32];
    int warps = blockDim.x / 32;
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x % 32 < warps ? parts[threadIdx.x % 32] : 0.f;
    return warp_sum(v);
}

__device__ float block_max(float v) {
    __shared__ float parts[32];
    int warps = blockDim.x / 32;
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x % 32 < warps ? parts[threadIdx.x % 32] : LOWEST;
    return warp_max(v);
}

__device__ int64_t global_index() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }

// `p` and `x p'(x)` of an activation `x p(x)`: 0 SiLU, 1 GELU, 2 GELU by tanh.
__device__ float2 gate_parts(int kind, float x) {
    if (kind == 1) {
        float below = 0.5f * (1.f + erff(x * 0.70710678118654752f));
        return make_float2(below, 0.39894228040143268f * expf(-0.5f * x * x) * x);
    }
    float u = x, slope = 1.f;
    if (kind == 2) {
        const float factor = 1.5957691216057308f, cubic = 0.044715f;
        u = factor * x * (1.f + cubic * x * x);
        slope = factor * (1.f + 3.f * cubic * x * x);
    }
    float below = 1.f / (1.f + expf(-u));
    return make_float2(below, below * (1.f - below) * slope * x);
}

__device__ float wide(float x) { return x; }
__device__ float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ void put(float* to, float x) { *to = x; }
__device__ void put(__nv_bfloat16* to, float x) { *to = __float2bfloat16(x); }

// Into the one of two places that is not null.
__device__ void put_either(float* wide, __nv_bfloat16* narrow, int64_t at, float x) {
    if (wide)
        put(wide + at, x);
    else
        put(narrow + at, x);
}

// Four numbers that lie in a row, in one load or store.
template <class Number>
struct alignas(4 * sizeof(Number)) Four {
    Number x[4];
};

// Whether four numbers at a time can be had from all of these places.
template <class... Numbers>
__device__ bool in_fours(const Numbers*... places) {
    return (((uintptr_t)places % (4 * sizeof(Numbers)) == 0) && ...);
}

// Numbers `at` to `at + 4` of `count`; `whole`: whether all are there, and in_fours.
template <class Number>
__device__ void get(float (&to)[4], const Number* from, int64_t at, int64_t count, bool whole) {
    if (whole) {
        Four<Number> four = *reinterpret_cast<const Four<Number>*>(from + at);
        for (int j = 0; j < 4; j++) to[j] = wide(four.x[j]);
    } else {
        for (int j = 0; j < 4; j++) to[j] = at + j < count ? wide(from[at + j]) : 0.f;
    }
}

template <class Number>
__device__ void put(Number* to, const float (&from)[4], int64_t at, int64_t count, bool whole) {
    if (whole) {
        Four<Number> four;
        for (int j = 0; j < 4; j++) put(four.x + j, from[j]);
        *reinterpret_cast<Four<Number>*>(to + at) = four;
    } else {
        for (int j = 0; j < 4 && at + j < count; j++) put(to + at + j, from[j]);
    }
}

__device__ void put_either(float* wide, __nv_bfloat16* narrow, const float (&from)[4], int64_t at, int64_t count,
                           bool whole) {
    if (wide)
        put(wide, from, at, count, whole);
    else
        put(narrow, from, at, count, whole);
}

template <class Number>
__device__ void product_of_unit(const Number* gate, const Number* up, Number* y, int64_t count, int kind) {
    int64_t at = 4 * global_index();
    if (at >= count) return;
    bool whole = at + 4 <= count && in_fours(gate, up, y);
    float g[4], u[4];
    get(g, gate, at, count, whole);
    get(u, up, at, count, whole);
    for (int j = 0; j < 4; j++) u[j] = g[j] * gate_parts(kind, g[j]).x * u[j];
    put(y, u, at, count, whole);
}

template <class Number>
__device__ void gradients_of_unit(const Number* dy, const Number* gate, const Number* up, Number* dgate, Number* dup,
                                  int64_t count, int kind) {
    int64_t at = 4 * global_index();
    if (at >= count) return;
    bool whole = at + 4 <= count && in_fours(dy, gate, up, dgate, dup);
    float d[4], g[4], u[4];
    get(d, dy, at, count, whole);
    get(g, gate, at, count, whole);
    get(u, up, at, count, whole);
    for (int j = 0; j < 4; j++) {
        float2 parts = gate_parts(kind, g[j]);
        u[j] = d[j] * u[j] * (parts.x + parts.y);
        g[j] = d[j] * (g[j] * parts.x);
    }
    put(dgate, u, at, count, whole);
    put(dup, g, at, count, whole);
}

template <class Number>
__device__ void sum_of(Number* x, const Number* y, int64_t count) {
    int64_t at = 4 * global_index();
    if (at >= count) return;
    bool whole = at + 4 <= count && in_fours(x, y);
    float a[4], b[4];
    get(a, x, at, count, whole);
    get(b, y, at, count, whole);
    for (int j = 0; j < 4; j++) a[j] += b[j];
    put(x, a, at, count, whole);
}

template <class Number>
__device__ void copied(const float* from, Number* to, int64_t count) {
    int64_t at = 4 * global_index();
    if (at >= count) return;
    bool whole = at + 4 <= count && in_fours(from, to);
    float x[4];
    get(x, from, at, count, whole);
    put(to, x, at, count, whole);
}

// Philox4x32-10, word for word as on the CPU, where the words of 16 counters are those of 64 numbers: a thread
// for each counter.
template <class Number>
__device__ void drop(const Number* x, Number* y, int64_t count, uint32_t threshold, float scale, uint32_t site,
                     uint32_t step_low, uint32_t step_high, uint32_t key_low, uint32_t key_high) {
    int64_t group = global_index(), first = group / 16 * 64 + group % 16;
    if (first >= count) return;
    uint32_t state[4] = {(uint32_t)group, site, step_low, step_high};
    for (int round = 0; round < 10; round++) {
        uint64_t first = (uint64_t)0xD2511F53u * state[0], second = (uint64_t)0xCD9E8D57u * state[2];
        uint32_t next[4] = {(uint32_t)(second >> 32) ^ state[1] ^ key_low, (uint32_t)second,
                            (uint32_t)(first >> 32) ^ state[3] ^ key_high, (uint32_t)first};
        for (int i = 0; i < 4; i++) state[i] = next[i];
        key_low += 0x9E3779B9u;
        key_high += 0xBB67AE85u;
    }
    for (int i = 0; i < 4; i++) {
        int64_t at = first + 16 * i;
        if (at < count) put(y + at, state[i] >= threshold ? wide(x[at]) * scale : 0.f);
    }
}

// `cap tanh(x / cap)`, of which tanh y = 1 - 2 / (1 + e^2y) takes fewer instructions than tanhf; `x` without a cap.
__device__ float bent(float x, float cap) { return cap == 0.f ? x : cap - 2.f * cap / (1.f + expf(2.f / cap * x)); }

// Slope of `bent` where its result is `y`.
__device__ float slope_of_bent(float y, float cap) {
    float share = cap == 0.f ? 0.f : y / cap;
    return 1.f - share * share;
}

// Four numbers of a quantised weight for each thread, each a `value` of its place and of its block's scale. Blocks are of
// whole fours but for those of odd sizes, and dividing is what takes longest here.
template <class Value>
__device__ void expand(const float* absmax, float* wide, __nv_bfloat16* narrow, int64_t count, int block, Value value) {
    int64_t at = 4 * global_index();
    if (at >= count) return;
    float values[4], scale;
    bool whole = at + 4 <= count && in_fours(wide, narrow), together = block % 4 == 0;
    if (together) scale = absmax[(uint32_t)(at / 4) / (uint32_t)(block / 4)];
    for (int j = 0; j < 4 && at + j < count; j++) {
        if (!together) scale = absmax[(at + j) / block];
        values[j] = value(at + j, scale);
    }
    put_either(wide, narrow, values, at, count, whole);
}

// A trained tensor, as `update.rs` writes it. `mask` and `narrow` may be null; the moments are f32, or codes of eight bits
// with the greatest magnitudes of their blocks.
struct Trained {
    float* param;
    float* grad;
    const float* mask;
    __nv_bfloat16* narrow;
    void* first;
    void* second;
    float* first_absmax;
    float* second_absmax;
    int64_t count, first_block;
    float keep, step_size;
};

}  // namespace

extern "C" {

// A block a row. y = w (x / sqrt(mean(x^2) + epsilon)), into the one of two places that is not null; the inverse root
// is kept.
__global__ void rms_norm(const float* x, const float* weight, float* wide, __nv_bfloat16* narrow, float* roots,
                         int width, float epsilon) {
    int64_t row = blockIdx.x;
    x += row * width;
    if (wide) wide += row * width;
    else narrow += row * width;
    bool even = width % 4 == 0 && in_fours(x, weight, wide, narrow);
    float sum = 0.f, v[4], w[4];
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        get(v, x, i, width, even);
        for (int j = 0; j < 4; j++) sum += v[j] * v[j];
    }
    float root = 1.f / sqrtf(block_sum(sum) / width + epsilon);
    if (threadIdx.x == 0) roots[row] = root;
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        get(v, x, i, width, even);
        get(w, weight, i, width, even);
        for (int j = 0; j < 4; j++) v[j] = w[j] * (v[j] * root);
        put_either(wide, narrow, v, i, width, even);
    }
}

// A block a row; `residual` may be null.
__global__ void rms_norm_backward(const float* dy, const float* x, const float* weight, const float* roots,
                                  const float* residual, float* dx, int width) {
    int64_t row = blockIdx.x;
    dy += row * width;
    x += row * width;
    dx += row * width;
    if (residual) residual += row * width;
    bool even = width % 4 == 0 && in_fours(dy, x, weight, residual, dx);
    float root = roots[row], sum = 0.f, d[4], v[4], w[4];
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        get(d, dy, i, width, even);
        get(v, x, i, width, even);
        get(w, weight, i, width, even);
        for (int j = 0; j < 4; j++) sum += d[j] * w[j] * v[j];
    }
    float pull = block_sum(sum) / width * root * root * root;
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        get(d, dy, i, width, even);
        get(v, x, i, width, even);
        get(w, weight, i, width, even);
        for (int j = 0; j < 4; j++) d[j] = d[j] * w[j] * root - v[j] * pull;
        if (residual) {
            get(v, residual, i, width, even);
            for (int j = 0; j < 4; j++) d[j] = v[j] + d[j];
        }
        put(dx, d, i, width, even);
    }
}

// A block a row. y = w (x - mean) / sqrt(variance + epsilon) + bias, which may be null; mean and inverse root are kept.
__global__ void layer_norm(const float* x, const float* weight, const float* bias, float* y, float* means, float* roots,
                           int width, float epsilon) {
    int64_t row = blockIdx.x;
    x += row * width;
    y += row * width;
    float sum = 0.f, square = 0.f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += x[i];
    float mean = block_sum(sum) / width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) square += (x[i] - mean) * (x[i] - mean);
    float root = 1.f / sqrtf(block_sum(square) / width + epsilon);
    if (threadIdx.x == 0) {
        means[row] = mean;
        roots[row] = root;
    }
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        y[i] = (x[i] - mean) * root * weight[i] + (bias ? bias[i] : 0.f);
}

// A block a row. With n = (x - mean) root and g = w dy: dx = root (g - mean(g) - n mean(g n)); `residual` may be null.
__global__ void layer_norm_backward(const float* dy, const float* x, const float* weight, const float* means,
                                    const float* roots, const float* residual, float* dx, int width) {
    int64_t row = blockIdx.x;
    dy += row * width;
    x += row * width;
    dx += row * width;
    float mean = means[row], root = roots[row], level = 0.f, slope = 0.f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float g = dy[i] * weight[i];
        level += g;
        slope += g * ((x[i] - mean) * root);
    }
    level = block_sum(level) / width;
    slope = block_sum(slope) / width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float value = (dy[i] * weight[i] - level - (x[i] - mean) * root * slope) * root;
        dx[i] = residual ? residual[row * width + i] + value : value;
    }
}

// into[column] += sum over the rows of dy, or of dy (x - mean) root where `x` is not null; without `means` and `roots`
// these are 0 and 1. With `lengths` the sum is divided by that of its column, where it is not 0. 32 columns a block of
// 32 x 32.
__global__ void column_sum(const float* dy, const float* x, const float* means, const float* roots,
                           const float* lengths, float* into, int rows, int width) {
    __shared__ float parts[32][33];
    int column = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.f;
    if (column < width)
        for (int row = threadIdx.y; row < rows; row += 32) {
            int64_t at = (int64_t)row * width + column;
            float factor = x ? (x[at] - (means ? means[row] : 0.f)) * (roots ? roots[row] : 1.f) : 1.f;
            sum += dy[at] * factor;
        }
    parts[threadIdx.x][threadIdx.y] = sum;
    __syncthreads();
    sum = warp_sum(parts[threadIdx.y][threadIdx.x]);
    column = blockIdx.x * 32 + threadIdx.y;
    if (threadIdx.x != 0 || column >= width) return;
    if (lengths) sum = lengths[column] > 0.f ? sum / lengths[column] : 0.f;
    into[column] += sum;
}

// A block a row: its Euclidean length.
__global__ void row_lengths(const float* x, float* lengths, int width) {
    int64_t row = blockIdx.x;
    float sum = 0.f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += x[row * width + i] * x[row * width + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) lengths[row] = sqrtf(sum);
}

// A block a token. Turns the pairs (i, i + half) of each head by the angle of the token's position, into the one of two
// places that is not null, of which `wide` may be `x`; what a head has beyond its pairs stays as it is.
__global__ void rope(const float* x, float* wide, __nv_bfloat16* narrow, const uint32_t* positions,
                     const float* cosines, const float* sines, int heads, int head, int half, float way) {
    int64_t token = blockIdx.x, start = token * heads * head;
    cosines += (int64_t)positions[token] * half;
    sines += (int64_t)positions[token] * half;
    for (int k = threadIdx.x; k < heads * half; k += blockDim.x) {
        int i = k % half;
        int64_t at = start + k / half * head + i;
        float cosine = cosines[i], sine = sines[i] * way, a = x[at], b = x[at + half];
        put_either(wide, narrow, at, a * cosine - b * sine);
        put_either(wide, narrow, at + half, b * cosine + a * sine);
    }
    int rest = head - 2 * half;
    if (wide == x || rest == 0) return;
    for (int k = threadIdx.x; k < heads * rest; k += blockDim.x) {
        int64_t at = start + k / rest * head + 2 * half + k % rest;
        put_either(wide, narrow, at, x[at]);
    }
}

// y = act(gate) up, all of one type.
__global__ void gated(const float* gate, const float* up, float* y, int64_t count, int kind) {
    product_of_unit(gate, up, y, count, kind);
}
__global__ void gated_bf16(const __nv_bfloat16* gate, const __nv_bfloat16* up, __nv_bfloat16* y, int64_t count,
                           int kind) {
    product_of_unit(gate, up, y, count, kind);
}

// Its adjoint, all of one type; the gradients may take the places of gate and up.
__global__ void gated_backward(const float* dy, const float* gate, const float* up, float* dgate, float* dup,
                               int64_t count, int kind) {
    gradients_of_unit(dy, gate, up, dgate, dup, count, kind);
}
__global__ void gated_backward_bf16(const __nv_bfloat16* dy, const __nv_bfloat16* gate, const __nv_bfloat16* up,
                                    __nv_bfloat16* dgate, __nv_bfloat16* dup, int64_t count, int kind) {
    gradients_of_unit(dy, gate, up, dgate, dup, count, kind);
}

__global__ void activate(const float* x, float* y, int64_t count, int kind) {
    int64_t i = global_index();
    if (i < count) y[i] = x[i] * gate_parts(kind, x[i]).x;
}

__global__ void activate_backward(const float* dy, const float* x, float* dx, int64_t count, int kind) {
    int64_t i = global_index();
    if (i >= count) return;
    float2 parts = gate_parts(kind, x[i]);
    dx[i] = dy[i] * (parts.x + parts.y);
}

__global__ void add(float* x, const float* y, int64_t count) { sum_of(x, y, count); }
__global__ void add_bf16(__nv_bfloat16* x, const __nv_bfloat16* y, int64_t count) { sum_of(x, y, count); }

__global__ void subtract(const float* x, const float* y, float* z, int64_t count) {
    int64_t i = global_index();
    if (i < count) z[i] = x[i] - y[i];
}

__global__ void add_bias(float* y, const float* bias, int64_t count, int width) {
    int64_t i = global_index();
    if (i < count) y[i] += bias[i % width];
}

// y = x magnitude[column] / length[column], 0 where the length is 0.
__global__ void rescale_columns(const float* x, const float* magnitudes, const float* lengths, float* y, int64_t count,
                                int width) {
    int64_t i = global_index();
    if (i >= count) return;
    float length = lengths[i % width];
    y[i] = length > 0.f ? x[i] * (magnitudes[i % width] * (1.f / length)) : 0.f;
}

__global__ void copy(const float* from, float* to, int64_t count) { copied(from, to, count); }
__global__ void narrow(const float* from, __nv_bfloat16* to, int64_t count) { copied(from, to, count); }

// to[rows[i]] = from[i], a block a row.
__global__ void scatter_rows(const float* from, const uint32_t* rows, float* to, int width) {
    const float* source = from + (int64_t)blockIdx.x * width;
    float* target = to + (int64_t)rows[blockIdx.x] * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) target[i] = source[i];
}

// A block for each different token: its rows of dx, listed in `order` from starts[b] to starts[b + 1], are
// added to row ids[b] of `into` one after the other.
__global__ void add_rows(const float* dx, const uint32_t* order, const uint32_t* starts, const uint32_t* ids,
                         float* into, int width) {
    float* target = into + (int64_t)ids[blockIdx.x] * width;
    uint32_t begin = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = target[i];
        for (uint32_t k = begin; k < end; k++) sum += dx[(int64_t)order[k] * width + i];
        target[i] = sum;
    }
}

#define PHILOX \
    int64_t count, uint32_t threshold, float scale, uint32_t site, uint32_t step_low, uint32_t step_high, \
        uint32_t key_low, uint32_t key_high
__global__ void dropout(const float* x, float* y, PHILOX) {
    drop(x, y, count, threshold, scale, site, step_low, step_high, key_low, key_high);
}
__global__ void dropout_bf16(const __nv_bfloat16* x, __nv_bfloat16* y, PHILOX) {
    drop(x, y, count, threshold, scale, site, step_low, step_high, key_low, key_high);
}

// A block a row of logits, which are bent under `cap` if that is not 0. Its loss, whether the target is the likeliest
// token, and in place of the logits `grad_scale (softmax - onehot)`, unless `grad_scale` is 0. The target is kept apart
// from the others, so that nothing is lost where it is nearly certain.
__global__ void cross_entropy(float* logits, const uint32_t* targets, float* losses, float* correct, int vocabulary,
                              float grad_scale, float cap) {
    int64_t row = blockIdx.x;
    logits += row * vocabulary;
    uint32_t target = targets[row];
    if (target == NO_TARGET) {
        if (threadIdx.x == 0) losses[row] = correct[row] = 0.f;
        if (grad_scale == 0.f) return;
        for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) logits[i] = 0.f;
        return;
    }
    float chosen = bent(logits[target], cap), greatest = LOWEST;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) greatest = fmaxf(greatest, logits[i]);
    greatest = bent(block_max(greatest), cap);
    float others = 0.f;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x)
        if (i != target) others += expf(bent(logits[i], cap) - greatest);
    others = block_sum(others);
    float sum = others + expf(chosen - greatest);
    if (threadIdx.x == 0) {
        losses[row] = chosen == greatest ? log1pf(others) : logf(sum) - (chosen - greatest);
        correct[row] = chosen == greatest ? 1.f : 0.f;
    }
    if (grad_scale == 0.f) return;
    float factor = grad_scale / sum;
    __syncthreads();
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float logit = bent(logits[i], cap);
        float slope = i == target ? -others : expf(logit - greatest);
        logits[i] = slope * factor * slope_of_bent(logit, cap);
    }
}

// Of the tensors that a step goes through the one whose numbers this block has. They have blocks one after the other.
static __device__ const Trained* tensor_of_block(const Trained* all, int count) {
    int first = 0;
    for (int last = count - 1; first < last;) {
        int middle = (first + last + 1) / 2;
        if (all[middle].first_block <= blockIdx.x) first = middle;
        else last = middle - 1;
    }
    return all + first;
}

// The gradient of a number, none where it stays as it is.
static __device__ float gradient(const Trained& of, int64_t i) { return of.mask ? of.grad[i] * of.mask[i] : of.grad[i]; }

// What is left of a number by the decay.
static __device__ float kept(const Trained& of, int64_t i) {
    return of.param[i] * (of.mask ? 1.f - (1.f - of.keep) * of.mask[i] : of.keep);
}

// The number after its step; its copy follows.
static __device__ void moved(const Trained& of, int64_t i, float m, float v, float eps, float root_correction) {
    float value = kept(of, i) - of.step_size * (m / (sqrtf(v) / root_correction + eps));
    of.param[i] = value;
    if (of.narrow) put(of.narrow + i, value);
}

// Blocks of 4096 numbers: the sum of the squares of each one's gradients.
__global__ void square_sums(const Trained* all, int count, float* parts) {
    const Trained of = *tensor_of_block(all, count);
    int64_t start = (blockIdx.x - of.first_block) * 4096, end = min(start + 4096, of.count);
    float sum = 0.f;
    for (int64_t i = start + threadIdx.x; i < end; i += blockDim.x) sum += gradient(of, i) * gradient(of, i);
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// One block of 256: the root of the sum of all parts, and what gradients are to be multiplied with so that it is at most
// `most`, as torch.nn.utils.clip_grad_norm_ has it; always 1 where `most` is below 0.
__global__ void norm_and_scale(const float* parts, int count, float most, float* both) {
    __shared__ double sums[256];
    double sum = 0.;
    for (int i = threadIdx.x; i < count; i += 256) sum += parts[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < 256; i++) sum += sums[i];
    double norm = sqrt(sum), scale = most / (norm + 1e-6);
    both[0] = (float)norm;
    both[1] = most >= 0.f && scale < 1. ? (float)scale : 1.f;
}

// Whether the norm of the gradients is a number; a step does nothing where it is none.
static __device__ bool is_number(float norm) { return norm - norm == 0.f; }

// One step of AdamW in PyTorch's order, see `adamw.rs`. Blocks of 4096 numbers. Where `clears` is not 0 the gradients are
// cleared.
__global__ void adamw(const Trained* all, int count, const float* norm_and_scale, int clears, float lerp, float beta2,
                      float beta2_rest, float eps, float root_correction) {
    if (!is_number(norm_and_scale[0])) return;
    float scale = norm_and_scale[1];
    const Trained of = *tensor_of_block(all, count);
    float *first = (float*)of.first, *second = (float*)of.second;
    int64_t start = (blockIdx.x - of.first_block) * 4096, end = min(start + 4096, of.count);
    for (int64_t i = start + threadIdx.x; i < end; i += blockDim.x) {
        float g = gradient(of, i) * scale;
        float m = first[i] + lerp * (g - first[i]);
        float v = second[i] * beta2 + beta2_rest * g * g;
        first[i] = m;
        second[i] = v;
        moved(of, i, m, v, eps, root_correction);
        if (clears) of.grad[i] = 0.f;
    }
}

// The place of the level of a rising map of 256 that is nearest to `share`; of two that are equally near, the lower.
static __device__ int nearest_level(const float* levels, float share) {
    int code = 0;
    for (int half = 128; half > 0; half /= 2)
        if (share > 0.5f * (levels[code + half - 1] + levels[code + half])) code += half;
    return code;
}

// The same step with moments in eight bits, see `adamw/eight_bit.rs`: blocks of 256 numbers, which share a greatest
// magnitude.
__global__ void adamw_eight_bit(const Trained* all, int count, const float* norm_and_scale, int clears, float lerp,
                                float beta2, float beta2_rest, float eps, float root_correction,
                                const float* signed_levels, const float* unsigned_levels) {
    __shared__ float of_first[256];
    __shared__ float of_second[256];
    if (!is_number(norm_and_scale[0])) return;
    float scale = norm_and_scale[1];
    of_first[threadIdx.x] = signed_levels[threadIdx.x];
    of_second[threadIdx.x] = unsigned_levels[threadIdx.x];
    __syncthreads();
    const Trained of = *tensor_of_block(all, count);
    uint8_t *first = (uint8_t*)of.first, *second = (uint8_t*)of.second;
    int64_t block = blockIdx.x - of.first_block, i = block * 256 + threadIdx.x;
    float m = 0.f, v = 0.f;
    if (i < of.count) {
        float g = gradient(of, i) * scale;
        m = of_first[first[i]] * of.first_absmax[block];
        v = of_second[second[i]] * of.second_absmax[block];
        m = m + lerp * (g - m);
        v = v * beta2 + beta2_rest * g * g;
        moved(of, i, m, v, eps, root_correction);
        if (clears) of.grad[i] = 0.f;
    }
    // What has grown beyond f32 counts as its greatest number. All have read the old magnitudes before the maximum is
    // known, so one thread may write the new ones.
    float greatest_m = fminf(block_max(fabsf(m)), -LOWEST), greatest_v = fminf(block_max(v), -LOWEST);
    if (threadIdx.x == 0) {
        of.first_absmax[block] = greatest_m;
        of.second_absmax[block] = greatest_v;
    }
    if (i >= of.count) return;
    first[i] = nearest_level(of_first, greatest_m > 0.f ? m / greatest_m : 0.f);
    second[i] = nearest_level(of_second, greatest_v > 0.f ? v / greatest_v : 0.f);
}

// Four-bit codes, two a byte with the first in the high half, times the scale of their block; four numbers a thread.
__global__ void expand_four_bits(const uint8_t* packed, const float* absmax, const float* levels, float* wide,
                                 __nv_bfloat16* narrow, int64_t count, int block) {
    __shared__ float table[16];
    if (threadIdx.x < 16) table[threadIdx.x] = levels[threadIdx.x];
    __syncthreads();
    expand(absmax, wide, narrow, count, block, [&](int64_t at, float scale) {
        return table[at % 2 ? packed[at / 2] & 15 : packed[at / 2] >> 4] * scale;
    });
}

// Eight-bit codes times the scale of their block, a row, over 127; four numbers a thread.
__global__ void expand_eight_bits(const int8_t* codes, const float* absmax, float* wide, __nv_bfloat16* narrow,
                                  int64_t count, int block) {
    expand(absmax, wide, narrow, count, block, [&](int64_t at, float scale) { return codes[at] * scale / 127.f; });
}

}  // extern "C"

namespace {

__device__ float half_at(const uint8_t* bytes) {
    return __half2float(__ushort_as_half((uint16_t)(bytes[0] | bytes[1] << 8)));
}

__device__ uint32_t word_at(const uint8_t* bytes) {
    return bytes[0] | bytes[1] << 8 | bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

// a b - c and a b + c of numbers that are each rounded, as on the CPU.
__device__ float times_less(float a, float b, float c) { return __fsub_rn(__fmul_rn(a, b), c); }
__device__ float times_more(float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); }

// Number i of the 32 numbers `unit` of a block, as in `ggml.rs`; `kind` is ggml's number of the type.
__device__ float of_block(int kind, const uint8_t* block, int unit, int i) {
    int high = i / 16;
    switch (kind) {
        case 2:
        case 3: {  // Q4_0, Q4_1
            int at = kind == 2 ? 2 : 4, code = block[at + i % 16] >> 4 * high & 15;
            if (kind == 2) return (code - 8) * half_at(block);
            return times_more(code, half_at(block), half_at(block + 2));
        }
        case 6:
        case 7: {  // Q5_0, Q5_1
            int at = kind == 6 ? 2 : 4;
            int code = (block[at + 4 + i % 16] >> 4 * high & 15) | (word_at(block + at) >> i & 1) << 4;
            if (kind == 6) return (code - 16) * half_at(block);
            return times_more(code, half_at(block), half_at(block + 2));
        }
        case 8: return (int8_t)block[2 + i] * half_at(block);  // Q8_0
        case 9: return (int8_t)block[4 + i] * half_at(block);  // Q8_1
        case 10: {                                             // Q2_K
            int small = block[2 * unit + high], code = block[16 + unit / 4 * 32 + i] >> 2 * (unit % 4) & 3;
            return times_less(half_at(block + 80) * (small & 15), code, half_at(block + 82) * (small >> 4));
        }
        case 11: {  // Q3_K
            const uint8_t* scales = block + 96;
            int at = 2 * unit + high, low = at < 8 ? scales[at] & 15 : scales[at - 8] >> 4;
            int top = scales[8 + at % 4] >> 2 * (at / 4) & 3;
            float scale = half_at(block + 108) * ((top << 4 | low) - 32);
            int code = block[32 + unit / 4 * 32 + i] >> 2 * (unit % 4) & 3;
            return scale * (code - (block[i] >> unit & 1 ? 0 : 4));
        }
        case 12:
        case 13: {  // Q4_K, Q5_K
            const uint8_t* scales = block + 4;
            int scale = scales[unit] & 63, offset = scales[unit + 4] & 63;
            if (unit >= 4) {
                scale = (scales[unit + 4] & 15) | scales[unit - 4] >> 6 << 4;
                offset = scales[unit + 4] >> 4 | scales[unit] >> 6 << 4;
            }
            const uint8_t* codes = block + (kind == 12 ? 16 : 48) + unit / 2 * 32;
            int code = codes[i] >> 4 * (unit % 2) & 15;
            if (kind == 13) code |= (block[16 + i] >> unit & 1) << 4;
            return times_less(half_at(block) * scale, code, half_at(block + 2) * offset);
        }
        case 14: {  // Q6_K
            int part = unit / 4, quarter = unit % 4;
            int low = block[part * 64 + quarter % 2 * 32 + i] >> 4 * (quarter / 2) & 15;
            int code = low | (block[128 + part * 32 + i] >> 2 * quarter & 3) << 4;
            return half_at(block + 208) * (int8_t)block[192 + part * 8 + quarter * 2 + high] * (code - 32);
        }
        default: return (int8_t)block[4 + unit * 32 + i] * __uint_as_float(word_at(block));  // Q8_K
    }
}

}  // namespace

extern "C" {

// Blocks of a GGUF file, of `length` numbers in `size` bytes: the rows that `rows` names, or all where it is null. Units of
// 32 numbers are counted in words, since dividing longer numbers would take longer than all the rest.
__global__ void expand_ggml(const uint8_t* bytes, const uint32_t* rows, float* wide, __nv_bfloat16* narrow,
                            int64_t count, int columns, int kind, int length, int size) {
    int64_t i = global_index();
    if (i >= count) return;
    uint32_t unit = i / 32, of_row = columns / 32, units = length / 32;
    uint32_t row = unit / of_row, place = unit % of_row;
    if (rows) row = rows[row];
    const uint8_t* block = bytes + ((int64_t)row * (of_row / units) + place / units) * size;
    float value = of_block(kind, block, place % units, i % 32);
    put_either(wide, narrow, i, value);
}

// Row sums of dout * out, which is in one of two places, for each head: `[heads, tokens]`, a warp each.
__global__ void attention_delta(const float* dout, const float* out, const __nv_bfloat16* narrow_out, float* delta,
                                int tokens, int heads, int head) {
    int64_t item = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (item >= (int64_t)tokens * heads) return;
    int64_t token = item / heads, h = item % heads;
    int64_t at = item * head;
    float sum = 0.f;
    for (int i = threadIdx.x % 32; i < head; i += 32)
        sum += dout[at + i] * (out ? out[at + i] : wide(narrow_out[at + i]));
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[h * tokens + token] = sum;
}

}  // extern "C"

namespace {

// A query sees keys from `before` places before it to `after` places behind it, of its own document. Scores are bent
// under `cap`, if that is not 0.
struct Shape {
    int tokens, heads, kv_heads, head, before, after;
    float scale, cap;
};

// B x D numbers of rows first.. of a head into shared memory, zero past `end` and past the head's width.
template <int D, int B>
__device__ void fetch(float* to, const float* from, int first, int end, int stride, int head) {
    for (int k = threadIdx.x; k < B * D; k += 256) {
        int row = k / D, column = k % D;
        bool inside = first + row < end && column < head;
        to[row * (D + 1) + column] = inside ? from[(int64_t)(first + row) * stride + column] : 0.f;
    }
}

// Scores of B rows of `a` against B rows of `b`: thread (ty, tx) of 16 x 16 has rows ty + 16 i, columns tx + 16 j.
template <int D, int B>
__device__ void products(const float* a, const float* b, float (&s)[B / 16][B / 16]) {
    constexpr int R = B / 16;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    for (int i = 0; i < R; i++)
        for (int j = 0; j < R; j++) s[i][j] = 0.f;
#pragma unroll 8
    for (int d = 0; d < D; d++) {
        float left[R], right[R];
        for (int i = 0; i < R; i++) left[i] = a[(ty + 16 * i) * (D + 1) + d];
        for (int j = 0; j < R; j++) right[j] = b[(tx + 16 * j) * (D + 1) + d];
        for (int i = 0; i < R; i++)
            for (int j = 0; j < R; j++) s[i][j] += left[i] * right[j];
    }
}

__device__ bool sees(int query, int key, int end, const Shape& shape) {
    return query < end && key < end && key <= query + shape.after && key >= query - shape.before;
}

// A block has B queries of one head; tile t is (first query, begin and end of its document).
template <int D, int B>
__device__ void forward(const float* q, const float* k, const float* v, const int* tiles, float* out, float* log_sums,
                        Shape shape) {
    extern __shared__ float memory[];
    constexpr int R = B / 16, C = D / 16;
    float *qs = memory, *ks = qs + B * (D + 1), *vs = ks + B * (D + 1), *ps = vs + B * (D + 1);
    int first = tiles[blockIdx.x * 3], begin = tiles[blockIdx.x * 3 + 1], end = tiles[blockIdx.x * 3 + 2];
    int h = blockIdx.y, kv = h / (shape.heads / shape.kv_heads);
    int stride = shape.heads * shape.head, kv_stride = shape.kv_heads * shape.head;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    fetch<D, B>(qs, q + h * shape.head, first, end, stride, shape.head);
    float o[R][C], greatest[R], sum[R];
    for (int i = 0; i < R; i++) {
        greatest[i] = LOWEST;
        sum[i] = 0.f;
        for (int c = 0; c < C; c++) o[i][c] = 0.f;
    }
    int low = max(begin, first - shape.before), high = min(first + B + shape.after, end);
    for (int key = low; key < high; key += B) {
        __syncthreads();
        fetch<D, B>(ks, k + kv * shape.head, key, end, kv_stride, shape.head);
        fetch<D, B>(vs, v + kv * shape.head, key, end, kv_stride, shape.head);
        __syncthreads();
        float s[R][R];
        products<D, B>(qs, ks, s);
        for (int i = 0; i < R; i++) {
            int query = first + ty + 16 * i;
            float top = LOWEST;
            for (int j = 0; j < R; j++) {
                bool seen = sees(query, key + tx + 16 * j, end, shape);
                s[i][j] = seen ? bent(s[i][j] * shape.scale, shape.cap) : LOWEST;
                top = fmaxf(top, s[i][j]);
            }
            for (int offset = 8; offset > 0; offset /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
            top = fmaxf(top, greatest[i]);
            float shrink = expf(greatest[i] - top), added = 0.f;
            for (int j = 0; j < R; j++) {
                float p = s[i][j] == LOWEST ? 0.f : expf(s[i][j] - top);
                ps[(ty + 16 * i) * (B + 1) + tx + 16 * j] = p;
                added += p;
            }
            for (int offset = 8; offset > 0; offset /= 2) added += __shfl_xor_sync(0xffffffffu, added, offset);
            sum[i] = sum[i] * shrink + added;
            greatest[i] = top;
            for (int c = 0; c < C; c++) o[i][c] *= shrink;
        }
        __syncthreads();
#pragma unroll 2
        for (int n = 0; n < B; n++) {
            float p[R];
            for (int i = 0; i < R; i++) p[i] = ps[(ty + 16 * i) * (B + 1) + n];
            for (int c = 0; c < C; c++) {
                float value = vs[n * (D + 1) + tx + 16 * c];
                for (int i = 0; i < R; i++) o[i][c] += p[i] * value;
            }
        }
    }
    for (int i = 0; i < R; i++) {
        int query = first + ty + 16 * i;
        if (query >= end) continue;
        for (int c = 0; c < C; c++) {
            int column = tx + 16 * c;
            if (column < shape.head) out[(int64_t)query * stride + h * shape.head + column] = o[i][c] / sum[i];
        }
        if (tx == 0) log_sums[(int64_t)h * shape.tokens + query] = greatest[i] + logf(sum[i]);
    }
}

// Probabilities and their gradients of B queries against B keys, into shared memory `[B, B + 1]`.
template <int D, int B>
__device__ void score_gradients(const float* qs, const float* ks, const float* vs, const float* douts, float* ps,
                                float* ds, const float* log_sums, const float* delta, int query, int key, int end,
                                Shape shape) {
    constexpr int R = B / 16;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float s[R][R], dp[R][R];
    products<D, B>(qs, ks, s);
    products<D, B>(douts, vs, dp);
    for (int i = 0; i < R; i++) {
        int row = ty + 16 * i;
        float log_sum = query + row < end ? log_sums[query + row] : 0.f;
        float mean = query + row < end ? delta[query + row] : 0.f;
        for (int j = 0; j < R; j++) {
            int column = tx + 16 * j;
            float score = bent(s[i][j] * shape.scale, shape.cap);
            float p = sees(query + row, key + column, end, shape) ? expf(score - log_sum) : 0.f;
            ps[row * (B + 1) + column] = p;
            ds[row * (B + 1) + column] = p * (dp[i][j] - mean) * shape.scale * slope_of_bent(score, shape.cap);
        }
    }
}

// A block has B queries of one head and goes over the keys they see.
template <int D, int B>
__device__ void backward_q(const float* dout, const float* q, const float* k, const float* v, const float* log_sums,
                           const float* delta, const int* tiles, float* dq, Shape shape) {
    extern __shared__ float memory[];
    constexpr int R = B / 16, C = D / 16;
    float *qs = memory, *ks = qs + B * (D + 1), *vs = ks + B * (D + 1), *douts = vs + B * (D + 1);
    float *ps = douts + B * (D + 1), *ds = ps + B * (B + 1);
    int first = tiles[blockIdx.x * 3], begin = tiles[blockIdx.x * 3 + 1], end = tiles[blockIdx.x * 3 + 2];
    int h = blockIdx.y, kv = h / (shape.heads / shape.kv_heads);
    int stride = shape.heads * shape.head, kv_stride = shape.kv_heads * shape.head;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    fetch<D, B>(qs, q + h * shape.head, first, end, stride, shape.head);
    fetch<D, B>(douts, dout + h * shape.head, first, end, stride, shape.head);
    float sum[R][C];
    for (int i = 0; i < R; i++)
        for (int c = 0; c < C; c++) sum[i][c] = 0.f;
    int low = max(begin, first - shape.before), high = min(first + B + shape.after, end);
    for (int key = low; key < high; key += B) {
        __syncthreads();
        fetch<D, B>(ks, k + kv * shape.head, key, end, kv_stride, shape.head);
        fetch<D, B>(vs, v + kv * shape.head, key, end, kv_stride, shape.head);
        __syncthreads();
        score_gradients<D, B>(qs, ks, vs, douts, ps, ds, log_sums + (int64_t)h * shape.tokens,
                              delta + (int64_t)h * shape.tokens, first, key, end, shape);
        __syncthreads();
#pragma unroll 2
        for (int n = 0; n < B; n++)
            for (int c = 0; c < C; c++) {
                float value = ks[n * (D + 1) + tx + 16 * c];
                for (int i = 0; i < R; i++) sum[i][c] += ds[(ty + 16 * i) * (B + 1) + n] * value;
            }
    }
    for (int i = 0; i < R; i++)
        for (int c = 0; c < C; c++) {
            int query = first + ty + 16 * i, column = tx + 16 * c;
            if (query < end && column < shape.head)
                dq[(int64_t)query * stride + h * shape.head + column] = sum[i][c];
        }
}

// A block has B keys of one key head and goes over the queries of all heads of its group that see them.
template <int D, int B>
__device__ void backward_kv(const float* dout, const float* q, const float* k, const float* v, const float* log_sums,
                            const float* delta, const int* tiles, float* dk, float* dv, Shape shape) {
    extern __shared__ float memory[];
    constexpr int R = B / 16, C = D / 16;
    float *qs = memory, *ks = qs + B * (D + 1), *vs = ks + B * (D + 1), *douts = vs + B * (D + 1);
    float *ps = douts + B * (D + 1), *ds = ps + B * (B + 1);
    int first = tiles[blockIdx.x * 3], begin = tiles[blockIdx.x * 3 + 1], end = tiles[blockIdx.x * 3 + 2];
    int kv = blockIdx.y, group = shape.heads / shape.kv_heads;
    int stride = shape.heads * shape.head, kv_stride = shape.kv_heads * shape.head;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    fetch<D, B>(ks, k + kv * shape.head, first, end, kv_stride, shape.head);
    fetch<D, B>(vs, v + kv * shape.head, first, end, kv_stride, shape.head);
    float dks[R][C], dvs[R][C];
    for (int i = 0; i < R; i++)
        for (int c = 0; c < C; c++) dks[i][c] = dvs[i][c] = 0.f;
    // What sees a key reaches from `after` places before it to `before` places behind it.
    int low = max(begin, first - shape.after), high = min(first + B + shape.before, end);
    for (int h = kv * group; h < (kv + 1) * group; h++)
        for (int query = low; query < high; query += B) {
            __syncthreads();
            fetch<D, B>(qs, q + h * shape.head, query, end, stride, shape.head);
            fetch<D, B>(douts, dout + h * shape.head, query, end, stride, shape.head);
            __syncthreads();
            score_gradients<D, B>(qs, ks, vs, douts, ps, ds, log_sums + (int64_t)h * shape.tokens,
                                  delta + (int64_t)h * shape.tokens, query, first, end, shape);
            __syncthreads();
#pragma unroll 2
            for (int n = 0; n < B; n++)
                for (int c = 0; c < C; c++) {
                    float value = qs[n * (D + 1) + tx + 16 * c], gradient = douts[n * (D + 1) + tx + 16 * c];
                    for (int i = 0; i < R; i++) {
                        dks[i][c] += ds[n * (B + 1) + ty + 16 * i] * value;
                        dvs[i][c] += ps[n * (B + 1) + ty + 16 * i] * gradient;
                    }
                }
        }
    for (int i = 0; i < R; i++)
        for (int c = 0; c < C; c++) {
            int key = first + ty + 16 * i, column = tx + 16 * c;
            if (key < end && column < shape.head) {
                int64_t at = (int64_t)key * kv_stride + kv * shape.head + column;
                dk[at] = dks[i][c];
                dv[at] = dvs[i][c];
            }
        }
}

}  // namespace

#define SHAPE int tokens, int heads, int kv_heads, int head, int before, int after, float scale, float cap
#define AS_SHAPE Shape{tokens, heads, kv_heads, head, before, after, scale, cap}

// One entry for each width of head, rounded up: D numbers, tiles of B.
#define ATTENTION(D, B)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) attention_##D(                                                  \
        const float* q, const float* k, const float* v, const int* tiles, float* out, float* log_sums, SHAPE) {       \
        forward<D, B>(q, k, v, tiles, out, log_sums, AS_SHAPE);                                                       \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) attention_backward_q_##D(                                       \
        const float* dout, const float* q, const float* k, const float* v, const float* log_sums, const float* delta, \
        const int* tiles, float* dq, SHAPE) {                                                                         \
        backward_q<D, B>(dout, q, k, v, log_sums, delta, tiles, dq, AS_SHAPE);                                        \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) attention_backward_kv_##D(                                      \
        const float* dout, const float* q, const float* k, const float* v, const float* log_sums, const float* delta, \
        const int* tiles, float* dk, float* dv, SHAPE) {                                                              \
        backward_kv<D, B>(dout, q, k, v, log_sums, delta, tiles, dk, dv, AS_SHAPE);                                   \
    }

ATTENTION(16, 32)
ATTENTION(32, 32)
ATTENTION(64, 32)
ATTENTION(128, 32)
ATTENTION(256, 16)

// A token of a generation against the cache of its sequence, `shares` blocks for each head: `rows` has six addresses and
// numbers a token, of which this reads the last four: its keys, its values, the first key it sees and the end of those.
// Warps share a block's keys; each has a greatest score and sums of its own, put together at the end. With one share the
// result goes to `out`; with more, each leaves its sums, its greatest score and its total for `join_shares`.
extern "C" __global__ void __launch_bounds__(256)
    attention_cached(const float* q, const int64_t* rows, float* out, float* share_tops, float* share_totals, int heads,
                     int kv_heads, int head, int shares, float scale, float cap) {
    constexpr int WARPS = 8, PARTS = 8;
    __shared__ float tops[WARPS], totals[WARPS], parts[WARPS][32 * PARTS];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, h = blockIdx.y, kv = h / (heads / kv_heads);
    int token = blockIdx.x / shares, share = blockIdx.x % shares;
    rows += (int64_t)token * 6;
    const float* keys = reinterpret_cast<const float*>(rows[2]) + kv * head;
    const float* values = reinterpret_cast<const float*>(rows[3]) + kv * head;
    int64_t at = ((int64_t)token * heads + h) * head, stride = (int64_t)kv_heads * head;
    int64_t each = (rows[5] - rows[4] + shares - 1) / shares, low = rows[4] + share * each;
    int64_t high = low + each < rows[5] ? low + each : rows[5];
    float query[PARTS], sum[PARTS], greatest = LOWEST, total = 0.f;
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        int column = lane + 32 * i;
        query[i] = column < head ? q[at + column] * scale : 0.f;
        sum[i] = 0.f;
    }
    for (int64_t key = low + warp; key < high; key += WARPS) {
        float score = 0.f;
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            int column = lane + 32 * i;
            if (column < head) score += query[i] * keys[key * stride + column];
        }
        score = bent(warp_sum(score), cap);
        float top = fmaxf(greatest, score), shrink = expf(greatest - top), p = expf(score - top);
        greatest = top;
        total = total * shrink + p;
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            int column = lane + 32 * i;
            if (column < head) sum[i] = sum[i] * shrink + p * values[key * stride + column];
        }
    }
    if (lane == 0) {
        tops[warp] = greatest;
        totals[warp] = total;
    }
#pragma unroll
    for (int i = 0; i < PARTS; i++) parts[warp][lane + 32 * i] = sum[i];
    __syncthreads();
    float top = LOWEST, all = 0.f;
    for (int w = 0; w < WARPS; w++) top = fmaxf(top, tops[w]);
    for (int w = 0; w < WARPS; w++) all += totals[w] * expf(tops[w] - top);
    int column = threadIdx.x;
    if (column >= head) return;
    float value = 0.f;
    for (int w = 0; w < WARPS; w++) value += parts[w][column] * expf(tops[w] - top);
    if (shares == 1) {
        out[at + column] = value / all;
        return;
    }
    int64_t place = (int64_t)blockIdx.x * heads + h;
    out[place * head + column] = value;
    if (column == 0) {
        share_tops[place] = top;
        share_totals[place] = all;
    }
}

// What the shares of a token's keys left, put together: a block a token and head.
extern "C" __global__ void join_shares(const float* sums, const float* tops, const float* totals, float* out, int heads,
                                       int head, int shares) {
    int h = blockIdx.y;
    int64_t first = (int64_t)blockIdx.x * shares * heads + h;
    float top = LOWEST, all = 0.f;
    for (int s = 0; s < shares; s++) top = fmaxf(top, tops[first + s * heads]);
    for (int s = 0; s < shares; s++) all += totals[first + s * heads] * expf(tops[first + s * heads] - top);
    for (int column = threadIdx.x; column < head; column += blockDim.x) {
        float value = 0.f;
        for (int s = 0; s < shares; s++) {
            int64_t place = first + s * heads;
            value += sums[place * head + column] * expf(tops[place] - top);
        }
        out[((int64_t)blockIdx.x * heads + h) * head + column] = value / all;
    }
}

// The new keys and values of a generation to the addresses that `rows` (see above) begins with, a block a token.
extern "C" __global__ void append_rows(const float* keys, const float* values, const int64_t* rows, int width) {
    int64_t token = blockIdx.x;
    float* to_keys = reinterpret_cast<float*>(rows[token * 6]);
    float* to_values = reinterpret_cast<float*>(rows[token * 6 + 1]);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        to_keys[i] = keys[token * width + i];
        to_values[i] = values[token * width + i];
    }
}
