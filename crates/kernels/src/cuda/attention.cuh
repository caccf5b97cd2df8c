// Attention and its adjoint in tiles of 64 M rows by N, on the tensor cores; a block has four warps, a warp 16 M rows.
//
// What limits it is not the products but the loads of their operands from shared memory, of which a warp needs those of
// all N columns whatever its own rows are. So queries have 32 rows a warp; the sums of the keys' adjoint would be more
// than the registers hold then.
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
// Rows of a block's own tile.
template <int M>
constexpr int ROWS = 64 * M;

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

// The first row of a tile that this warp has.
template <int M>
__device__ int own_row() { return threadIdx.x / 32 * 16 * M; }

// Row of its tile that this lane has as number 2 r of each pair of columns, r from 0 to 2 M.
template <int M>
__device__ int row_of(int r) { return own_row<M>() + r * 8 + threadIdx.x % 32 / 4; }

// s[16 M, N] = a's rows of this warp by all N rows of b, over D.
template <int D, int N, int M>
__device__ void products(const Number* a, const Number* b, float (&s)[M][N / 8][4]) {
    int lane = threadIdx.x % 32;
    a += (own_row<M>() + lane % 16) * (D + 8) + lane / 16 * 8;
    b += (lane / 16 * 8 + lane % 8) * (D + 8) + lane / 8 % 2 * 8;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int j = 0; j < N / 8; j++) s[m][j][0] = s[m][j][1] = s[m][j][2] = s[m][j][3] = 0.f;
#pragma unroll
    for (int d = 0; d < D; d += 16) {
        uint32_t left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_matrices(left[m], a + m * 16 * (D + 8) + d);
#pragma unroll
        for (int j = 0; j < N / 16; j++) {
            uint32_t right[4];
            load_matrices(right, b + j * 16 * (D + 8) + d);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(s[m][2 * j], left[m], right[0], right[1]);
                mma(s[m][2 * j + 1], left[m], right[2], right[3]);
            }
        }
    }
}

// sum[16 M, D] += p[16 M, N] b[N, D].
template <int D, int N, int M>
__device__ void accumulate(const float (&p)[M][N / 8][4], const Number* b, float (&sum)[M][D / 8][4]) {
    int lane = threadIdx.x % 32;
    b += lane % 16 * (D + 8) + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
        uint32_t left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float* from = p[m][2 * n + i / 2] + i % 2 * 2;
                left[m][i] = pair(from[0], from[1]);
            }
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            uint32_t right[4];
            load_matrices_turned(right, b + n * 16 * (D + 8) + d * 16);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(sum[m][2 * d], left[m], right[0], right[1]);
                mma(sum[m][2 * d + 1], left[m], right[2], right[3]);
            }
        }
    }
}

template <int D, int M>
__device__ void clear(float (&sum)[M][D / 8][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int d = 0; d < D / 8; d++) sum[m][d][0] = sum[m][d][1] = sum[m][d][2] = sum[m][d][3] = 0.f;
}

__device__ void put(float* to, float a, float b) { *reinterpret_cast<float2*>(to) = make_float2(a, b); }
__device__ void put(Number* to, float a, float b) { *reinterpret_cast<uint32_t*>(to) = pair(a, b); }

// Writes sum[16 M, D] times a factor for each of a lane's rows.
template <int D, int M, class To>
__device__ void store(To* to, const float (&sum)[M][D / 8][4], int first, int end, int stride, int head,
                      const float (&factors)[2 * M]) {
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        int row = first + row_of<M>(r);
        if (row >= end) continue;
#pragma unroll
        for (int d = 0; d < D / 8; d++) {
            int column = d * 8 + threadIdx.x % 4 * 2;
            const float* from = sum[r / 2][d] + r % 2 * 2;
            if (column < head) put(to + (int64_t)row * stride + column, from[0] * factors[r], from[1] * factors[r]);
        }
    }
}

// A block has 64 M queries of one head; tile t is (first query, begin and end of its document).
template <int D, int N, int M>
__device__ void forward(const Number* q, const Number* k, const Number* v, const int* tiles, Number* out,
                        float* log_sums, Shape shape) {
    extern __shared__ __align__(128) Number memory[];
    constexpr int TILE = N * (D + 8);
    Number *qs = memory, *ks = qs + ROWS<M> * (D + 8), *vs = ks + 2 * TILE;
    // Those with the most keys to see come first.
    const int* tile = tiles + (gridDim.x - 1 - blockIdx.x) * 3;
    int first = tile[0], begin = tile[1], end = tile[2];
    int h = blockIdx.y, kv = h / (shape.heads / shape.kv_heads);
    int stride = shape.heads * shape.head, kv_stride = shape.kv_heads * shape.head;
    k += kv * shape.head;
    v += kv * shape.head;
    int lane = threadIdx.x % 32;
    float o[M][D / 8][4], greatest[2 * M], sum[2 * M];
    clear<D>(o);
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        greatest[r] = LOWEST;
        sum[r] = 0.f;
    }

    int low = max(begin, first - shape.before), high = min(first + ROWS<M> + shape.after, end);
    fetch<D, ROWS<M>>(qs, q + h * shape.head, first, end, stride, shape.head);
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
        float s[M][N / 8][4];
        products<D, N>(qs, ks + stage * TILE, s);
        bool whole = key + N <= end && key + N - 1 <= first + shape.after &&
                     key >= first + ROWS<M> - 1 - shape.before;
#pragma unroll
        for (int r = 0; r < 2 * M; r++) {
            float top = greatest[r];
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float& score = s[r / 2][j][r % 2 * 2 + e];
                    bool seen = whole || sees(first + row_of<M>(r), key + j * 8 + lane % 4 * 2 + e, end, shape);
                    score = seen ? score_of(score, shape) : LOWEST;
                    top = fmaxf(top, score);
                }
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            float shrink = exp2f(greatest[r] - top);
            greatest[r] = top;
            sum[r] *= shrink;
#pragma unroll
            for (int d = 0; d < D / 8; d++) {
                o[r / 2][d][r % 2 * 2] *= shrink;
                o[r / 2][d][r % 2 * 2 + 1] *= shrink;
            }
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float& score = s[r / 2][j][r % 2 * 2 + e];
                    score = score == LOWEST ? 0.f : exp2f(score - top);
                    sum[r] += score;
                }
        }
        accumulate<D, N>(s, vs + stage * TILE, o);
        __syncthreads();
    }
    wait_for_copies<0>();
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        int row = first + row_of<M>(r);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        if (lane % 4 == 0 && row < end) log_sums[(int64_t)h * shape.tokens + row] = (greatest[r] + log2f(sum[r])) * LN_2;
        sum[r] = 1.f / sum[r];
    }
    store<D>(out + h * shape.head, o, first, end, stride, shape.head, sum);
}

// A block has 64 M queries of one head and goes over the keys they see.
template <int D, int N, int M>
__device__ void backward_q(const Number* dout, const Number* q, const Number* k, const Number* v,
                           const float* log_sums, const float* delta, const int* tiles, float* dq, Shape shape) {
    extern __shared__ __align__(128) Number memory[];
    constexpr int TILE = N * (D + 8);
    Number *qs = memory, *douts = qs + ROWS<M> * (D + 8), *ks = douts + ROWS<M> * (D + 8), *vs = ks + 2 * TILE;
    const int* tile = tiles + (gridDim.x - 1 - blockIdx.x) * 3;
    int first = tile[0], begin = tile[1], end = tile[2];
    int h = blockIdx.y, kv = h / (shape.heads / shape.kv_heads);
    int stride = shape.heads * shape.head, kv_stride = shape.kv_heads * shape.head;
    k += kv * shape.head;
    v += kv * shape.head;
    float sum[M][D / 8][4], log_sum[2 * M], mean[2 * M], scales[2 * M];
    clear<D>(sum);
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        int row = first + row_of<M>(r);
        int64_t at = (int64_t)h * shape.tokens + row;
        log_sum[r] = row < end ? log_sums[at] * LOG2_E : 0.f;
        mean[r] = row < end ? delta[at] : 0.f;
        scales[r] = shape.scale;
    }

    int low = max(begin, first - shape.before), high = min(first + ROWS<M> + shape.after, end);
    fetch<D, ROWS<M>>(qs, q + h * shape.head, first, end, stride, shape.head);
    fetch<D, ROWS<M>>(douts, dout + h * shape.head, first, end, stride, shape.head);
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
        float s[M][N / 8][4], dp[M][N / 8][4];
        products<D, N>(qs, ks + stage * TILE, s);
        products<D, N>(douts, vs + stage * TILE, dp);
        bool whole = key + N <= end && key + N - 1 <= first + shape.after &&
                     key >= first + ROWS<M> - 1 - shape.before && first + ROWS<M> <= end;
#pragma unroll
        for (int r = 0; r < 2 * M; r++)
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float& product = s[r / 2][j][r % 2 * 2 + e];
                    int column = key + j * 8 + threadIdx.x % 4 * 2 + e;
                    bool seen = whole || sees(first + row_of<M>(r), column, end, shape);
                    float score = score_of(product, shape), p = seen ? exp2f(score - log_sum[r]) : 0.f;
                    product = p * (dp[r / 2][j][r % 2 * 2 + e] - mean[r]) * slope_of(score, shape);
                }
        accumulate<D, N>(s, ks + stage * TILE, sum);
        __syncthreads();
    }
    wait_for_copies<0>();
    store<D>(dq + h * shape.head, sum, first, end, stride, shape.head, scales);
}

// A block has 64 keys of one key head and goes over the queries of all heads of its group that see them.
template <int D, int N>
__device__ void backward_kv(const Number* dout, const Number* q, const Number* k, const Number* v,
                            const float* log_sums, const float* delta, const int* tiles, float* dk, float* dv,
                            Shape shape) {
    extern __shared__ __align__(128) Number memory[];
    constexpr int TILE = N * (D + 8);
    Number *ks = memory, *vs = ks + ROWS<1> * (D + 8), *qs = vs + ROWS<1> * (D + 8), *douts = qs + 2 * TILE;
    float *sums = reinterpret_cast<float*>(douts + 2 * TILE), *means = sums + 2 * N;
    const int* tile = tiles + blockIdx.x * 3;
    int first = tile[0], begin = tile[1], end = tile[2];
    int kv = blockIdx.y, group = shape.heads / shape.kv_heads;
    int stride = shape.heads * shape.head, kv_stride = shape.kv_heads * shape.head;
    float dks[1][D / 8][4], dvs[1][D / 8][4];
    clear<D>(dks);
    clear<D>(dvs);

    // What sees a key reaches from `after` places before it to `before` places behind it.
    int low = max(begin, first - shape.after), high = min(first + ROWS<1> + shape.before, end);
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
    fetch<D, ROWS<1>>(ks, k + kv * shape.head, first, end, kv_stride, shape.head);
    fetch<D, ROWS<1>>(vs, v + kv * shape.head, first, end, kv_stride, shape.head);
    ask(0, 0);
    commit();
    for (int step = 0, stage = 0; step < steps; step++, stage ^= 1) {
        if (step + 1 < steps) ask(step + 1, stage ^ 1);
        commit();
        wait_for_copies<1>();
        __syncthreads();
        int query = low + step % each * N;
        float s[1][N / 8][4], dp[1][N / 8][4];
        products<D, N>(ks, qs + stage * TILE, s);
        products<D, N>(vs, douts + stage * TILE, dp);
        bool whole = first + ROWS<1> <= end && query + N <= end && query + shape.after >= first + ROWS<1> - 1 &&
                     first >= query + N - 1 - shape.before;
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int column = j * 8 + threadIdx.x % 4 * 2 + e % 2, key = first + row_of<1>(e / 2);
                float &product = s[0][j][e], &slope = dp[0][j][e];
                bool seen = whole || sees(query + column, key, end, shape);
                float score = score_of(product, shape);
                product = seen ? exp2f(score - sums[stage * N + column]) : 0.f;
                slope = product * (slope - means[stage * N + column]) * slope_of(score, shape);
            }
        accumulate<D, N>(s, douts + stage * TILE, dvs);
        accumulate<D, N>(dp, qs + stage * TILE, dks);
        __syncthreads();
    }
    wait_for_copies<0>();
    store<D>(dk + kv * shape.head, dks, first, end, kv_stride, shape.head, {shape.scale, shape.scale});
    store<D>(dv + kv * shape.head, dvs, first, end, kv_stride, shape.head, {1.f, 1.f});
}

}  // namespace
