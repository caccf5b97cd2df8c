// Attention and its adjoint in tiles of 64 rows by N, on the tensor cores; a block has four warps, a warp 16 rows.
//
// Rows of a tile lie D + 8 numbers apart in shared memory, so that the eight rows a load takes are in different banks.
// While a tile is computed with, the next is on its way. Scores are in units of log 2. No atomics: keys and queries are
// gone over by kernels of their own, each number has one writer.
//
// Dao, "FlashAttention-2", arXiv 2307.08691.

#pragma once

#include "tensor_core.cuh"

namespace {

constexpr float LOWEST = -3.402823466e38f, LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;
constexpr int ROWS = 64;

// As in kernels.cu: a query sees keys from `before` places before it to `after` places behind it.
struct Shape {
    int tokens, heads, kv_heads, head, before, after;
    float scale, cap;
};

typedef __nv_bfloat16 Number;

__device__ bool sees(int query, int key, int end, const Shape& shape) {
    return query < end && key < end && key <= query + shape.after && key >= query - shape.before;
}

// A product of a query and a key as a score in units of log 2, and the slope of what bends it under a cap.
__device__ float score_of(float product, const Shape& shape) {
    if (shape.cap == 0.f) return product * (shape.scale * LOG2_E);
    // cap tanh(x / cap) by tanh y = 1 - 2 / (1 + e^2y).
    float power = exp2f(product * (2.f * LOG2_E * shape.scale / shape.cap));
    return shape.cap * LOG2_E * (1.f - 2.f / (1.f + power));
}
__device__ float slope_of(float score, const Shape& shape) {
    float share = shape.cap == 0.f ? 0.f : score / (shape.cap * LOG2_E);
    return 1.f - share * share;
}

__device__ uint32_t pair(float a, float b) {
    __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<uint32_t*>(&both);
}

// COUNT rows of a head from `first` on into shared memory, zeros past `end` and past the head's width.
template <int D, int COUNT>
__device__ void fetch(Number* to, const Number* from, int first, int end, int stride, int head) {
    for (int i = threadIdx.x; i < COUNT * (D / 8); i += 128) {
        int row = i / (D / 8), column = i % (D / 8) * 8;
        bool inside = first + row < end && column < head;
        copy_async(to + row * (D + 8) + column, inside ? from + (int64_t)(first + row) * stride + column : from, inside);
    }
}

// s[16, N] = a's rows of this warp by all N rows of b, over D.
template <int D, int N>
__device__ void products(const Number* a, const Number* b, float (&s)[N / 8][4]) {
    int lane = threadIdx.x % 32;
    a += (threadIdx.x / 32 * 16 + lane % 16) * (D + 8) + lane / 16 * 8;
    b += (lane / 16 * 8 + lane % 8) * (D + 8) + lane / 8 % 2 * 8;
#pragma unroll
    for (int j = 0; j < N / 8; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.f;
#pragma unroll
    for (int d = 0; d < D; d += 16) {
        uint32_t left[4];
        load_matrices(left, a + d);
#pragma unroll
        for (int j = 0; j < N / 16; j++) {
            uint32_t right[4];
            load_matrices(right, b + j * 16 * (D + 8) + d);
            mma(s[2 * j], left, right[0], right[1]);
            mma(s[2 * j + 1], left, right[2], right[3]);
        }
    }
}

// sum[16, D] += p[16, N] b[N, D].
template <int D, int N>
__device__ void accumulate(const float (&p)[N / 8][4], const Number* b, float (&sum)[D / 8][4]) {
    int lane = threadIdx.x % 32;
    b += lane % 16 * (D + 8) + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
        uint32_t left[4] = {pair(p[2 * n][0], p[2 * n][1]), pair(p[2 * n][2], p[2 * n][3]),
                            pair(p[2 * n + 1][0], p[2 * n + 1][1]), pair(p[2 * n + 1][2], p[2 * n + 1][3])};
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            uint32_t right[4];
            load_matrices_turned(right, b + n * 16 * (D + 8) + d * 16);
            mma(sum[2 * d], left, right[0], right[1]);
            mma(sum[2 * d + 1], left, right[2], right[3]);
        }
    }
}

template <int D>
__device__ void clear(float (&sum)[D / 8][4]) {
#pragma unroll
    for (int d = 0; d < D / 8; d++) sum[d][0] = sum[d][1] = sum[d][2] = sum[d][3] = 0.f;
}

__device__ void put(float* to, float a, float b) { *reinterpret_cast<float2*>(to) = make_float2(a, b); }
__device__ void put(Number* to, float a, float b) { *reinterpret_cast<uint32_t*>(to) = pair(a, b); }

// Writes sum[16, D] times a factor for each of a lane's two rows.
template <int D, class To>
__device__ void store(To* to, const float (&sum)[D / 8][4], int first, int end, int stride, int head, float upper,
                      float lower) {
    int lane = threadIdx.x % 32, row = first + threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
        int column = d * 8 + lane % 4 * 2;
        if (column >= head) continue;
        if (row < end) put(to + (int64_t)row * stride + column, sum[d][0] * upper, sum[d][1] * upper);
        if (row + 8 < end) put(to + (int64_t)(row + 8) * stride + column, sum[d][2] * lower, sum[d][3] * lower);
    }
}

// A block has 64 queries of one head; tile t is (first query, begin and end of its document).
template <int D, int N>
__device__ void forward(const Number* q, const Number* k, const Number* v, const int* tiles, Number* out,
                        float* log_sums, Shape shape) {
    extern __shared__ __align__(128) Number memory[];
    constexpr int TILE = N * (D + 8);
    Number *qs = memory, *ks = qs + ROWS * (D + 8), *vs = ks + 2 * TILE;
    // Those with the most keys to see come first.
    const int* tile = tiles + (gridDim.x - 1 - blockIdx.x) * 3;
    int first = tile[0], begin = tile[1], end = tile[2];
    int h = blockIdx.y, kv = h / (shape.heads / shape.kv_heads);
    int stride = shape.heads * shape.head, kv_stride = shape.kv_heads * shape.head;
    k += kv * shape.head;
    v += kv * shape.head;
    int lane = threadIdx.x % 32, row = first + threadIdx.x / 32 * 16 + lane / 4;
    float o[D / 8][4], greatest[2] = {LOWEST, LOWEST}, sum[2] = {0.f, 0.f};
    clear<D>(o);

    int low = max(begin, first - shape.before), high = min(first + ROWS + shape.after, end);
    fetch<D, ROWS>(qs, q + h * shape.head, first, end, stride, shape.head);
    fetch<D, N>(ks, k, low, end, kv_stride, shape.head);
    fetch<D, N>(vs, v, low, end, kv_stride, shape.head);
    commit();
    for (int key = low, stage = 0; key < high; key += N, stage ^= 1) {
        if (key + N < high) {
            fetch<D, N>(ks + (stage ^ 1) * TILE, k, key + N, end, kv_stride, shape.head);
            fetch<D, N>(vs + (stage ^ 1) * TILE, v, key + N, end, kv_stride, shape.head);
        }
        commit();
        wait_for_copies<1>();
        __syncthreads();
        float s[N / 8][4];
        products<D, N>(qs, ks + stage * TILE, s);
        bool whole = key + N <= end && key + N - 1 <= first + shape.after && key >= first + ROWS - 1 - shape.before;
        float top[2] = {greatest[0], greatest[1]};
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int column = key + j * 8 + lane % 4 * 2 + e % 2;
                bool seen = whole || sees(row + e / 2 * 8, column, end, shape);
                s[j][e] = seen ? score_of(s[j][e], shape) : LOWEST;
                top[e / 2] = fmaxf(top[e / 2], s[j][e]);
            }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 2));
            float shrink = exp2f(greatest[r] - top[r]);
            greatest[r] = top[r];
            sum[r] *= shrink;
#pragma unroll
            for (int d = 0; d < D / 8; d++) {
                o[d][2 * r] *= shrink;
                o[d][2 * r + 1] *= shrink;
            }
        }
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[j][e] = s[j][e] == LOWEST ? 0.f : exp2f(s[j][e] - greatest[e / 2]);
                sum[e / 2] += s[j][e];
            }
        accumulate<D, N>(s, vs + stage * TILE, o);
        __syncthreads();
    }
    wait_for_copies<0>();
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        if (lane % 4 == 0 && row + r * 8 < end)
            log_sums[(int64_t)h * shape.tokens + row + r * 8] = (greatest[r] + log2f(sum[r])) * LN_2;
    }
    store<D>(out + h * shape.head, o, first, end, stride, shape.head, 1.f / sum[0], 1.f / sum[1]);
}

// A block has 64 queries of one head and goes over the keys they see.
template <int D, int N>
__device__ void backward_q(const Number* dout, const Number* q, const Number* k, const Number* v,
                           const float* log_sums, const float* delta, const int* tiles, float* dq, Shape shape) {
    extern __shared__ __align__(128) Number memory[];
    constexpr int TILE = N * (D + 8);
    Number *qs = memory, *douts = qs + ROWS * (D + 8), *ks = douts + ROWS * (D + 8), *vs = ks + 2 * TILE;
    const int* tile = tiles + (gridDim.x - 1 - blockIdx.x) * 3;
    int first = tile[0], begin = tile[1], end = tile[2];
    int h = blockIdx.y, kv = h / (shape.heads / shape.kv_heads);
    int stride = shape.heads * shape.head, kv_stride = shape.kv_heads * shape.head;
    k += kv * shape.head;
    v += kv * shape.head;
    int lane = threadIdx.x % 32, row = first + threadIdx.x / 32 * 16 + lane / 4;
    float sum[D / 8][4], log_sum[2], mean[2];
    clear<D>(sum);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int64_t at = (int64_t)h * shape.tokens + row + r * 8;
        log_sum[r] = row + r * 8 < end ? log_sums[at] * LOG2_E : 0.f;
        mean[r] = row + r * 8 < end ? delta[at] : 0.f;
    }

    int low = max(begin, first - shape.before), high = min(first + ROWS + shape.after, end);
    fetch<D, ROWS>(qs, q + h * shape.head, first, end, stride, shape.head);
    fetch<D, ROWS>(douts, dout + h * shape.head, first, end, stride, shape.head);
    fetch<D, N>(ks, k, low, end, kv_stride, shape.head);
    fetch<D, N>(vs, v, low, end, kv_stride, shape.head);
    commit();
    for (int key = low, stage = 0; key < high; key += N, stage ^= 1) {
        if (key + N < high) {
            fetch<D, N>(ks + (stage ^ 1) * TILE, k, key + N, end, kv_stride, shape.head);
            fetch<D, N>(vs + (stage ^ 1) * TILE, v, key + N, end, kv_stride, shape.head);
        }
        commit();
        wait_for_copies<1>();
        __syncthreads();
        float s[N / 8][4], dp[N / 8][4];
        products<D, N>(qs, ks + stage * TILE, s);
        products<D, N>(douts, vs + stage * TILE, dp);
        bool whole = key + N <= end && key + N - 1 <= first + shape.after &&
                     key >= first + ROWS - 1 - shape.before && first + ROWS <= end;
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int column = key + j * 8 + lane % 4 * 2 + e % 2;
                bool seen = whole || sees(row + e / 2 * 8, column, end, shape);
                float score = score_of(s[j][e], shape), p = seen ? exp2f(score - log_sum[e / 2]) : 0.f;
                s[j][e] = p * (dp[j][e] - mean[e / 2]) * slope_of(score, shape);
            }
        accumulate<D, N>(s, ks + stage * TILE, sum);
        __syncthreads();
    }
    wait_for_copies<0>();
    store<D>(dq + h * shape.head, sum, first, end, stride, shape.head, shape.scale, shape.scale);
}

// A block has 64 keys of one key head and goes over the queries of all heads of its group that see them.
template <int D, int N>
__device__ void backward_kv(const Number* dout, const Number* q, const Number* k, const Number* v,
                            const float* log_sums, const float* delta, const int* tiles, float* dk, float* dv,
                            Shape shape) {
    extern __shared__ __align__(128) Number memory[];
    constexpr int TILE = N * (D + 8);
    Number *ks = memory, *vs = ks + ROWS * (D + 8), *qs = vs + ROWS * (D + 8), *douts = qs + 2 * TILE;
    float *sums = reinterpret_cast<float*>(douts + 2 * TILE), *means = sums + 2 * N;
    const int* tile = tiles + blockIdx.x * 3;
    int first = tile[0], begin = tile[1], end = tile[2];
    int kv = blockIdx.y, group = shape.heads / shape.kv_heads;
    int stride = shape.heads * shape.head, kv_stride = shape.kv_heads * shape.head;
    int lane = threadIdx.x % 32, row = first + threadIdx.x / 32 * 16 + lane / 4;
    float dks[D / 8][4], dvs[D / 8][4];
    clear<D>(dks);
    clear<D>(dvs);

    // What sees a key reaches from `after` places before it to `before` places behind it.
    int low = max(begin, first - shape.after), high = min(first + ROWS + shape.before, end);
    int each = (high - low + N - 1) / N, steps = each * group;
    auto ask = [&](int step, int stage) {
        int h = kv * group + step / each, query = low + step % each * N;
        fetch<D, N>(qs + stage * TILE, q + h * shape.head, query, end, stride, shape.head);
        fetch<D, N>(douts + stage * TILE, dout + h * shape.head, query, end, stride, shape.head);
        if (threadIdx.x < N) {
            int64_t at = (int64_t)h * shape.tokens + query + threadIdx.x;
            bool inside = query + (int)threadIdx.x < end;
            sums[stage * N + threadIdx.x] = inside ? log_sums[at] * LOG2_E : 0.f;
            means[stage * N + threadIdx.x] = inside ? delta[at] : 0.f;
        }
    };
    fetch<D, ROWS>(ks, k + kv * shape.head, first, end, kv_stride, shape.head);
    fetch<D, ROWS>(vs, v + kv * shape.head, first, end, kv_stride, shape.head);
    ask(0, 0);
    commit();
    for (int step = 0, stage = 0; step < steps; step++, stage ^= 1) {
        if (step + 1 < steps) ask(step + 1, stage ^ 1);
        commit();
        wait_for_copies<1>();
        __syncthreads();
        int query = low + step % each * N;
        float s[N / 8][4], dp[N / 8][4];
        products<D, N>(ks, qs + stage * TILE, s);
        products<D, N>(vs, douts + stage * TILE, dp);
        bool whole = first + ROWS <= end && query + N <= end && query + shape.after >= first + ROWS - 1 &&
                     first >= query + N - 1 - shape.before;
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int column = j * 8 + lane % 4 * 2 + e % 2, key = row + e / 2 * 8;
                bool seen = whole || sees(query + column, key, end, shape);
                float score = score_of(s[j][e], shape), p = seen ? exp2f(score - sums[stage * N + column]) : 0.f;
                s[j][e] = p;
                dp[j][e] = p * (dp[j][e] - means[stage * N + column]) * slope_of(score, shape);
            }
        accumulate<D, N>(s, douts + stage * TILE, dvs);
        accumulate<D, N>(dp, qs + stage * TILE, dks);
        __syncthreads();
    }
    wait_for_copies<0>();
    store<D>(dk + kv * shape.head, dks, first, end, kv_stride, shape.head, shape.scale, shape.scale);
    store<D>(dv + kv * shape.head, dvs, first, end, kv_stride, shape.head, 1.f, 1.f);
}

}  // namespace
