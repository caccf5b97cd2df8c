// `attention.cu` against attention as it is written down.

#include <array>

#include "attention.cu"

#include "reference.h"

typedef void Forward(const Number*, const Number*, const Number*, const int*, Number*, float*, SHAPE);
typedef void BackwardQ(const Number*, const Number*, const Number*, const Number*, const float*, const float*, const int*, float*, SHAPE);
typedef void BackwardKv(const Number*, const Number*, const Number*, const Number*, const float*, const float*, const int*, float*, float*, SHAPE);

// `next`: rows that the kernels go over at a time, forward, by queries and by keys.
static void check(const AttentionCase& c, int width, std::array<int, 3> next, Forward* forward, BackwardQ* backward_q, BackwardKv* backward_kv) {
    int tokens = c.tokens();
    size_t wide = (size_t)tokens * c.heads * c.head, kv_wide = (size_t)tokens * c.kv_heads * c.head;
    Floats q = normal(wide, 1.5f), k = normal(kv_wide, 1.5f), v = normal(kv_wide), dout = normal(wide);
    auto nq = narrowed(q), nk = narrowed(k), nv = narrowed(v), ndout = narrowed(dout);
    auto expected = attention_reference(c, q, k, v, dout);
    auto tiles = c.tiles(128), key_tiles = c.tiles(64);
    unsigned count = tiles.size() / 3, key_count = key_tiles.size() / 3, heads = c.heads, kv_heads = c.kv_heads;
    int row = (width + 8) * 2;
    Narrow out = unwritten_narrow(wide);
    Floats log_sums = unwritten((size_t)c.heads * tokens);
    emulated::launch({count, heads}, {128}, row * (128 + 4 * next[0]), [&] {
        forward(nq.data(), nk.data(), nv.data(), tiles.data(), out.data(), log_sums.data(), tokens, c.heads, c.kv_heads, c.head, c.reach.before, c.reach.after, c.scale(), c.cap);
    });
    near("attention, " + c.name(), widened(out), expected.out, 5e-3);
    near("log-sums, " + c.name(), log_sums, expected.log_sums, 1e-5);
    Floats delta = narrow(expected.delta), dq = unwritten(wide), dk = unwritten(kv_wide), dv = unwritten(kv_wide);
    emulated::launch({count, heads}, {128}, row * (256 + 4 * next[1]), [&] {
        backward_q(ndout.data(), nq.data(), nk.data(), nv.data(), log_sums.data(), delta.data(), tiles.data(), dq.data(), tokens, c.heads, c.kv_heads, c.head, c.reach.before, c.reach.after, c.scale(), c.cap);
    });
    emulated::launch({key_count, kv_heads}, {128}, row * (128 + 4 * next[2]) + 16 * next[2], [&] {
        backward_kv(ndout.data(), nq.data(), nk.data(), nv.data(), log_sums.data(), delta.data(), key_tiles.data(), dk.data(), dv.data(), tokens, c.heads, c.kv_heads, c.head, c.reach.before, c.reach.after, c.scale(), c.cap);
    });
    // Where a query sees itself alone the scores have no say, and their gradients are rounding alone.
    if (c.reach.before + c.reach.after > 0) {
        near("dq, " + c.name(), dq, expected.dq, 8e-3);
        near("dk, " + c.name(), dk, expected.dk, 8e-3);
    }
    near("dv, " + c.name(), dv, expected.dv, 8e-3);
}

int main() {
    int shapes[][3] = {{2, 1, 64}, {3, 3, 8}, {4, 2, 40}, {2, 1, 128}, {2, 2, 96}};
    for (auto& shape : shapes)
        for (Reach reach : {Reach{ALL, 0}, Reach{0, 0}, Reach{36, 0}, Reach{99, 0}, Reach{ALL, ALL}, Reach{50, 50}}) {
            float cap = between(0, 3) == 0 ? 1.5f : 0.f;
            AttentionCase c{shape[0], shape[1], shape[2], reach, cap, {between(1, 300), 1, between(60, 70), 64, between(125, 131), between(1, 150)}};
            if (c.head <= 64)
                check(c, 64, {64, 32, 64}, attention_bf16_64, attention_bf16_backward_q_64, attention_bf16_backward_kv_64);
            else
                check(c, 128, {32, 32, 32}, attention_bf16_128, attention_bf16_backward_q_128, attention_bf16_backward_kv_128);
        }
    printf("attention.cu: %s\n", failures ? "WRONG" : "as it should be");
    return failures != 0;
}
