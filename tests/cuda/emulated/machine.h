// A GPU's thread blocks on the processor, for the kernels of `crates/kernels/src/cuda`: enough of CUDA C++ to run
// them unchanged, slowly, one block after the other.
//
// Each thread of a block is a coroutine that runs until it has to wait for its warp or its block. Which of them
// runs next is drawn, some warps are slow, and a copy in flight (`cp.async`) happens at once or when it is waited for,
// which is drawn too: a missing barrier shows as a wrong number.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

inline Dim3 threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) alignas(n)

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float rsqrtf(float v) { return 1.f / sqrtf(v); }

namespace emulated {

enum class Waits { No, Warp, Block, Done };

// What a lane brings to an exchange with its warp.
struct Lane {
    uint32_t words[16];
    const void* pointer;
};

struct Copy {
    void* to;
    const void* from;
    int bytes;
    void run() const {
        memset(to, 0, 16);
        memcpy(to, from, bytes);
    }
};

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    Waits waits = Waits::No;
    Lane given, taken;
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
};

inline ucontext_t scheduler;
inline std::vector<Thread> threads;
inline std::vector<std::vector<Lane>> exchanged;
inline unsigned current;
inline std::vector<char> dynamic;
inline std::function<void()> body;
inline std::mt19937 draw(1);

inline void* dynamic_memory() { return (void*)(((uintptr_t)dynamic.data() + 127) / 128 * 128); }

inline void wait(Waits what) {
    threads[current].waits = what;
    swapcontext(&threads[current].context, &scheduler);
}

// Hands `mine` to the warp; afterwards `lane(i)` is what lane i handed over.
inline void exchange(const Lane& mine) {
    threads[current].given = mine;
    wait(Waits::Warp);
}
inline const Lane& lane(unsigned index) { return exchanged[current / 32][index]; }

inline void enter() {
    body();
    threads[current].waits = Waits::Done;
    swapcontext(&threads[current].context, &scheduler);
}

inline void fail(const char* what) {
    fprintf(stderr, "emulated: %s\n", what);
    exit(1);
}

// Runs a block until all its threads are done.
inline void run_block(unsigned count) {
    unsigned done = 0;
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; i++) order[i] = i;
    std::vector<unsigned> slowness(count / 32);
    for (auto& warp : slowness) warp = draw() % 2 * 60;
    while (done < count) {
        bool moved = false;
        std::shuffle(order.begin(), order.end(), draw);
        for (unsigned i : order) {
            if (threads[i].waits != Waits::No) continue;
            current = i;
            threadIdx = {i % blockDim.x, i / blockDim.x, 0};
            swapcontext(&scheduler, &threads[i].context);
            moved = true;
            if (threads[i].waits == Waits::Done) {
                done++;
                if (!threads[i].open.empty() || !threads[i].groups.empty()) fail("copies left in flight");
            }
        }
        for (unsigned warp = 0; warp < count / 32; warp++) {
            unsigned waiting = 0;
            for (unsigned i = 0; i < 32; i++) waiting += threads[warp * 32 + i].waits == Waits::Warp;
            if (waiting != 32) continue;
            // Some warps are slow, so that others get ahead of them as far as the barriers let them.
            moved = true;
            if (draw() % 64 < slowness[warp]) continue;
            for (unsigned i = 0; i < 32; i++) {
                exchanged[warp][i] = threads[warp * 32 + i].given;
                threads[warp * 32 + i].waits = Waits::No;
            }
        }
        unsigned waiting = 0;
        for (auto& thread : threads) waiting += thread.waits == Waits::Block;
        if (waiting > 0 && waiting + done == count) {
            for (auto& thread : threads)
                if (thread.waits == Waits::Block) thread.waits = Waits::No;
            moved = true;
        }
        if (!moved && done < count) fail("threads wait for each other");
    }
}

inline void launch(Dim3 grid, Dim3 block, size_t shared, std::function<void()> kernel) {
    unsigned count = block.x * block.y;
    if (count % 32 != 0) fail("a block is not whole warps");
    gridDim = grid;
    blockDim = block;
    body = std::move(kernel);
    exchanged.assign(count / 32, std::vector<Lane>(32));
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
            // NaN everywhere, and nothing of the block before.
            dynamic.assign(shared + 128, (char)0xff);
            if (threads.size() != count) threads = std::vector<Thread>(count);
            for (auto& thread : threads) {
                thread.waits = Waits::No;
                thread.groups.clear();
                thread.open.clear();
                thread.stack.resize(64 << 10);
                getcontext(&thread.context);
                thread.context.uc_stack.ss_sp = thread.stack.data();
                thread.context.uc_stack.ss_size = thread.stack.size();
                thread.context.uc_link = nullptr;
                makecontext(&thread.context, enter, 0);
            }
            run_block(count);
        }
}

}  // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::Waits::Block); }
inline void __syncwarp() { emulated::exchange({}); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    emulated::Lane mine{};
    memcpy(mine.words, &value, sizeof(T));
    emulated::exchange(mine);
    T other;
    memcpy(&other, emulated::lane((emulated::current % 32) ^ mask).words, sizeof(T));
    return other;
}

// The instructions that `tensor_core.cuh` writes in PTX.
namespace {

inline float wide(uint16_t bits) { return __uint_as_float((uint32_t)bits << 16); }

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32, fragments as in the PTX manual.
inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emulated::Lane mine{};
    for (int i = 0; i < 4; i++) mine.words[i] = a[i];
    mine.words[4] = b0;
    mine.words[5] = b1;
    emulated::exchange(mine);
    unsigned lane = emulated::current % 32;
    for (int e = 0; e < 4; e++) {
        unsigned row = lane / 4 + (e / 2) * 8, column = lane % 4 * 2 + e % 2;
        double sum = c[e];
        for (unsigned k = 0; k < 16; k++) {
            // a: register (k / 8) * 2 + row / 8 of lane row % 8 * 4 + k % 8 / 2, half k % 2.
            uint32_t left = emulated::lane(row % 8 * 4 + k % 8 / 2).words[k / 8 * 2 + row / 8];
            uint32_t right = emulated::lane(column * 4 + k % 8 / 2).words[4 + k / 8];
            sum += (double)wide(left >> (k % 2 * 16)) * wide(right >> (k % 2 * 16));
        }
        c[e] = (float)sum;
    }
}

inline void load_matrices(uint32_t (&r)[4], const void* row, bool turned) {
    emulated::Lane mine{};
    mine.pointer = row;
    if ((uintptr_t)row % 16 != 0) emulated::fail("ldmatrix: a row is not aligned to 16 bytes");
    emulated::exchange(mine);
    unsigned lane = emulated::current % 32;
    for (int m = 0; m < 4; m++) {
        uint16_t pair[2];
        for (unsigned half = 0; half < 2; half++) {
            unsigned row = lane / 4, column = lane % 4 * 2 + half;
            if (turned) std::swap(row, column);
            pair[half] = ((const uint16_t*)emulated::lane(m * 8 + row).pointer)[column];
        }
        r[m] = pair[0] | (uint32_t)pair[1] << 16;
    }
}
inline void load_matrices(uint32_t (&r)[4], const void* row) { load_matrices(r, row, false); }
inline void load_matrices_turned(uint32_t (&r)[4], const void* row) { load_matrices(r, row, true); }

inline void copy_async(void* to, const void* from, bool inside) {
    if ((uintptr_t)to % 16 != 0 || (inside && (uintptr_t)from % 16 != 0))
        emulated::fail("cp.async: an address is not aligned to 16 bytes");
    emulated::Copy copy{to, from, inside ? 16 : 0};
    if (emulated::draw() % 2) copy.run();
    else emulated::threads[emulated::current].open.push_back(copy);
}
inline void commit() {
    auto& thread = emulated::threads[emulated::current];
    thread.groups.push_back(std::move(thread.open));
    thread.open.clear();
}
template <int LEFT>
void wait_for_copies() {
    auto& groups = emulated::threads[emulated::current].groups;
    while (groups.size() > LEFT) {
        for (auto& copy : groups.front()) copy.run();
        groups.erase(groups.begin());
    }
}

}  // namespace
