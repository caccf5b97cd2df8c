// `kernels.cu` against the same operations as they are written down.

#include "kernels.cu"

#include "reference.h"

typedef void Forward(const float*, const float*, const float*, const int*, float*, float*, SHAPE);
typedef void BackwardQ(const float*, const float*, const float*, const float*, const float*, const float*, const int*, float*, SHAPE);
typedef void BackwardKv(const float*, const float*, const float*, const float*, const float*, const float*, const int*, float*, float*, SHAPE);

static void attention_check(const AttentionCase& c, int width, int tile, Forward* forward, BackwardQ* backward_q, BackwardKv* backward_kv) {
    int tokens = c.tokens();
    size_t wide = (size_t)tokens * c.heads * c.head, kv_wide = (size_t)tokens * c.kv_heads * c.head;
    Floats q = normal(wide), k = normal(kv_wide), v = normal(kv_wide), dout = normal(wide);
    auto expected = attention_reference(c, q, k, v, dout);
    auto tiles = c.tiles(tile);
    unsigned count = tiles.size() / 3, heads = c.heads, kv_heads = c.kv_heads;
    Floats out = unwritten(wide), log_sums = unwritten((size_t)c.heads * tokens), delta = log_sums;
    emulated::launch({count, heads}, {256}, 4 * (3 * tile * (width + 1) + tile * (tile + 1)), [&] {
        forward(q.data(), k.data(), v.data(), tiles.data(), out.data(), log_sums.data(), tokens, c.heads, c.kv_heads, c.head, c.reach.before, c.reach.after, c.scale(), c.cap);
    });
    near("attention, " + c.name(), out, expected.out, 2e-6);
    near("log-sums, " + c.name(), log_sums, expected.log_sums, 2e-6);
    emulated::launch({(unsigned)(tokens * c.heads + 7) / 8}, {256}, 0, [&] {
        attention_delta(dout.data(), out.data(), nullptr, delta.data(), tokens, c.heads, c.head);
    });
    near("delta, " + c.name(), delta, expected.delta, 2e-6);
    Floats rounded = out, same = unwritten(delta.size()), again = same;
    Narrow narrow_out = narrowed(rounded);
    for (bool narrow : {false, true})
        emulated::launch({(unsigned)(tokens * c.heads + 7) / 8}, {256}, 0, [&] {
            attention_delta(dout.data(), narrow ? nullptr : rounded.data(), narrow ? narrow_out.data() : nullptr, (narrow ? again : same).data(), tokens, c.heads, c.head);
        });
    near("delta of an output in bf16, " + c.name(), again, same, 0);
    Floats dq = unwritten(wide), dk = unwritten(kv_wide), dv = unwritten(kv_wide);
    size_t shared = 4 * (4 * tile * (width + 1) + 2 * tile * (tile + 1));
    emulated::launch({count, heads}, {256}, shared, [&] {
        backward_q(dout.data(), q.data(), k.data(), v.data(), log_sums.data(), delta.data(), tiles.data(), dq.data(), tokens, c.heads, c.kv_heads, c.head, c.reach.before, c.reach.after, c.scale(), c.cap);
    });
    emulated::launch({count, kv_heads}, {256}, shared, [&] {
        backward_kv(dout.data(), q.data(), k.data(), v.data(), log_sums.data(), delta.data(), tiles.data(), dk.data(), dv.data(), tokens, c.heads, c.kv_heads, c.head, c.reach.before, c.reach.after, c.scale(), c.cap);
    });
    // Where a query sees itself alone the scores have no say, and their gradients are rounding alone.
    if (c.reach.before + c.reach.after > 0) {
        near("dq, " + c.name(), dq, expected.dq, 5e-6);
        near("dk, " + c.name(), dk, expected.dk, 5e-6);
    }
    near("dv, " + c.name(), dv, expected.dv, 5e-6);
}

#define CHECK(D, B) attention_check(c, D, B, attention_##D, attention_backward_q_##D, attention_backward_kv_##D)

static void attention_checks() {
    int shapes[][3] = {{4, 2, 8}, {3, 1, 32}, {2, 2, 48}, {2, 1, 100}, {2, 1, 200}};
    for (auto& shape : shapes)
        for (Reach reach : {Reach{ALL, 0}, Reach{0, 0}, Reach{20, 0}, Reach{ALL, ALL}, Reach{13, 13}}) {
            float cap = between(0, 3) == 0 ? 1.5f : 0.f;
            AttentionCase c{shape[0], shape[1], shape[2], reach, cap, {between(1, 60), 1, 32, between(1, 60)}};
            switch (c.head) {
                case 8: CHECK(16, 32); break;
                case 32: CHECK(32, 32); break;
                case 48: CHECK(64, 32); break;
                case 100: CHECK(128, 32); break;
                default: CHECK(256, 16);
            }
        }
}

// New tokens over the caches of their sequences: the last rows of attention over the whole.
static void cache_checks() {
    int shapes[][3] = {{4, 2, 8}, {3, 1, 64}, {2, 2, 100}, {2, 1, 256}};
    for (auto& shape : shapes)
        for (int before : {ALL, 0, 20}) {
            AttentionCase c{shape[0], shape[1], shape[2], {before, 0}, before == ALL ? 1.5f : 0.f, {between(2, 60), 1, between(30, 70)}};
            int tokens = c.tokens(), width = c.heads * c.head, kv_width = c.kv_heads * c.head;
            Floats q = normal(tokens * width), k = normal(tokens * kv_width), v = normal(tokens * kv_width);
            auto all = attention_reference(c, q, k, v, Floats(tokens * width));
            std::vector<Floats> caches;
            std::vector<std::vector<float*>> at;
            std::vector<int64_t> rows;
            Floats new_q, new_k, new_v;
            Doubles wanted;
            int begin = 0;
            for (int length : c.lengths) {
                int added = length == 1 ? 1 : between(1, std::min(length, 4)), old = length - added;
                for (Floats* from : {&k, &v}) {
                    caches.push_back(unwritten((size_t)(length + 3) * kv_width));
                    std::copy(from->begin() + begin * kv_width, from->begin() + (begin + old) * kv_width, caches.back().begin());
                }
                float *keys = caches[caches.size() - 2].data(), *values = caches.back().data();
                for (int place = old; place < length; place++) {
                    int token = begin + place;
                    rows.insert(rows.end(), {(int64_t)(keys + place * kv_width), (int64_t)(values + place * kv_width), (int64_t)keys, (int64_t)values, std::max(0, place - before), place + 1});
                    new_q.insert(new_q.end(), q.begin() + token * width, q.begin() + (token + 1) * width);
                    new_k.insert(new_k.end(), k.begin() + token * kv_width, k.begin() + (token + 1) * kv_width);
                    new_v.insert(new_v.end(), v.begin() + token * kv_width, v.begin() + (token + 1) * kv_width);
                    wanted.insert(wanted.end(), all.out.begin() + token * width, all.out.begin() + (token + 1) * width);
                }
                begin += length;
            }
            unsigned count = rows.size() / 6, heads = c.heads;
            Floats out = unwritten((size_t)count * width);
            emulated::launch({count}, {64}, 0, [&] { append_rows(new_k.data(), new_v.data(), rows.data(), kv_width); });
            emulated::launch({count, heads}, {256}, 0, [&] { attention_cached(new_q.data(), rows.data(), out.data(), nullptr, nullptr, c.heads, c.kv_heads, c.head, 1, c.scale(), c.cap); });
            near("attention over a cache, " + c.name(), out, wanted, 2e-6);
            // More shares than some have keys.
            for (unsigned shares : {2u, 5u}) {
                Floats sums = unwritten((size_t)count * shares * width), tops = unwritten(count * shares * heads), totals = tops, joined = unwritten((size_t)count * width);
                emulated::launch({count * shares, heads}, {256}, 0, [&] { attention_cached(new_q.data(), rows.data(), sums.data(), tops.data(), totals.data(), c.heads, c.kv_heads, c.head, shares, c.scale(), c.cap); });
                emulated::launch({count, heads}, {128}, 0, [&] { join_shares(sums.data(), tops.data(), totals.data(), joined.data(), c.heads, c.head, shares); });
                near("attention over a cache in shares, " + c.name(), joined, wanted, 2e-6);
            }
        }
}

static unsigned row_threads(int width) { return (unsigned)std::clamp((width + 31) / 32, 1, 8) * 32; }

static void norm_checks() {
    // The gradient of one number alone is rounding alone.
    int shapes[][2] = {{1, 5}, {7, 33}, {70, 300}};
    for (auto& shape : shapes) {
        int rows = shape[0], width = shape[1];
        unsigned count = rows;
        Floats x = normal(rows * width), weight = normal(width), dy = normal(rows * width), residual = normal(rows * width), into = normal(width);
        Floats y = unwritten(rows * width), roots = unwritten(rows), dx = y, rounded;
        Doubles wanted(rows * width), wanted_dx(rows * width), wanted_into(into.begin(), into.end());
        for (int r = 0; r < rows; r++) {
            double square = 0, pull = 0;
            for (int i = 0; i < width; i++) square += (double)x[r * width + i] * x[r * width + i];
            double root = 1 / std::sqrt(square / width + 1e-5);
            for (int i = 0; i < width; i++) {
                int at = r * width + i;
                wanted[at] = weight[i] * x[at] * root;
                wanted_into[i] += dy[at] * (x[at] * root);
                pull += (double)dy[at] * weight[i] * x[at];
            }
            for (int i = 0; i < width; i++) {
                int at = r * width + i;
                wanted_dx[at] = residual[at] + dy[at] * weight[i] * root - x[at] * pull / width * root * root * root;
            }
        }
        emulated::launch({count}, {row_threads(width)}, 0, [&] { rms_norm(x.data(), weight.data(), y.data(), nullptr, roots.data(), width, 1e-5f); });
        Floats same_roots = unwritten(rows);
        Narrow narrow = unwritten_narrow(rows * width), of_wide = narrowed(rounded = y);
        emulated::launch({count}, {row_threads(width)}, 0, [&] { rms_norm(x.data(), weight.data(), nullptr, narrow.data(), same_roots.data(), width, 1e-5f); });
        near("rms_norm in bf16", widened(narrow), widened(of_wide), 0);
        near("roots", same_roots, roots, 0);
        emulated::launch({count}, {row_threads(width)}, 0, [&] { rms_norm_backward(dy.data(), x.data(), weight.data(), roots.data(), residual.data(), dx.data(), width); });
        emulated::launch({(unsigned)(width + 31) / 32}, {32, 32}, 0, [&] { column_sum(dy.data(), x.data(), nullptr, roots.data(), nullptr, into.data(), rows, width); });
        near("rms_norm", y, wanted, 1e-6);
        near("rms_norm_backward", dx, wanted_dx, 1e-6);
        near("weight of the norm", into, wanted_into, 2e-6);
    }
}

static void layer_norm_checks() {
    // One number alone has no deviation, and two have gradients that are rounding alone.
    int shapes[][2] = {{1, 9}, {7, 33}, {70, 300}};
    for (auto& shape : shapes)
        for (bool with_bias : {false, true}) {
            int rows = shape[0], width = shape[1];
            unsigned count = rows;
            Floats x = normal(rows * width), weight = normal(width), bias = normal(width), dy = normal(rows * width), residual = normal(rows * width);
            Floats into = normal(width), into_bias = normal(width);
            for (auto& value : x) value += 3.f;
            Floats y = unwritten(rows * width), means = unwritten(rows), roots = unwritten(rows), dx = y;
            Doubles wanted(rows * width), wanted_dx(rows * width), wanted_into(into.begin(), into.end()), wanted_bias(into_bias.begin(), into_bias.end());
            for (int r = 0; r < rows; r++) {
                double mean = 0, square = 0, level = 0, slope = 0;
                for (int i = 0; i < width; i++) mean += (double)x[r * width + i] / width;
                for (int i = 0; i < width; i++) square += std::pow(x[r * width + i] - mean, 2) / width;
                double root = 1 / std::sqrt(square + 1e-5);
                for (int i = 0; i < width; i++) {
                    int at = r * width + i;
                    double n = (x[at] - mean) * root;
                    wanted[at] = weight[i] * n + (with_bias ? bias[i] : 0.f);
                    wanted_into[i] += dy[at] * n;
                    wanted_bias[i] += dy[at];
                    level += (double)dy[at] * weight[i] / width;
                    slope += (double)dy[at] * weight[i] * n / width;
                }
                for (int i = 0; i < width; i++) {
                    int at = r * width + i;
                    wanted_dx[at] = (with_bias ? residual[at] : 0.f) + root * (dy[at] * weight[i] - level - (x[at] - mean) * root * slope);
                }
            }
            const float *b = with_bias ? bias.data() : nullptr, *past = with_bias ? residual.data() : nullptr;
            emulated::launch({count}, {row_threads(width)}, 0, [&] { layer_norm(x.data(), weight.data(), b, y.data(), means.data(), roots.data(), width, 1e-5f); });
            emulated::launch({count}, {row_threads(width)}, 0, [&] { layer_norm_backward(dy.data(), x.data(), weight.data(), means.data(), roots.data(), past, dx.data(), width); });
            emulated::launch({(unsigned)(width + 31) / 32}, {32, 32}, 0, [&] { column_sum(dy.data(), x.data(), means.data(), roots.data(), nullptr, into.data(), rows, width); });
            emulated::launch({(unsigned)(width + 31) / 32}, {32, 32}, 0, [&] { column_sum(dy.data(), nullptr, nullptr, nullptr, nullptr, into_bias.data(), rows, width); });
            near("layer_norm", y, wanted, 2e-6);
            near("layer_norm_backward", dx, wanted_dx, 2e-5);
            near("weight of the layer norm", into, wanted_into, 5e-6);
            near("bias of the layer norm", into_bias, wanted_bias, 2e-6);
        }
}

// What DoRA needs: lengths of rows, rescaled columns, the gradient of the magnitudes.
static void rescaling_checks() {
    int rows = 70, width = 133;
    Floats x = normal(rows * width), dy = normal(rows * width), magnitudes = normal(width), lengths = normal(width), into = normal(width);
    for (auto& length : lengths) length = std::abs(length) + 0.1f;
    lengths[5] = 0.f;
    Floats of_rows = unwritten(rows), y = unwritten(rows * width);
    Doubles wanted_rows, wanted, wanted_into(into.begin(), into.end());
    for (int r = 0; r < rows; r++) {
        double square = 0;
        for (int i = 0; i < width; i++) {
            int at = r * width + i;
            square += std::pow((double)x[at], 2);
            wanted.push_back(i == 5 ? 0. : (double)x[at] * magnitudes[i] / lengths[i]);
            if (i != 5) wanted_into[i] += (double)dy[at] * x[at] / lengths[i];
        }
        wanted_rows.push_back(std::sqrt(square));
    }
    emulated::launch({(unsigned)rows}, {row_threads(width)}, 0, [&] { row_lengths(x.data(), of_rows.data(), width); });
    emulated::launch({(unsigned)(rows * width + 255) / 256}, {256}, 0, [&] { rescale_columns(x.data(), magnitudes.data(), lengths.data(), y.data(), rows * width, width); });
    emulated::launch({(unsigned)(width + 31) / 32}, {32, 32}, 0, [&] { column_sum(dy.data(), x.data(), nullptr, nullptr, lengths.data(), into.data(), rows, width); });
    near("lengths of rows", of_rows, wanted_rows, 1e-6);
    near("rescaled columns", y, wanted, 1e-6);
    near("gradient of the magnitudes", into, wanted_into, 5e-6);
}

static void activation_checks() {
    int count = 700;
    Floats x = normal(count, 2.f), dy = normal(count), up = normal(count), y = unwritten(count), dx = unwritten(count), dup = dx;
    // The gated unit has its operands from numbers of bf16, so that both its kernels have the same.
    Narrow gate_16 = narrowed(x), up_16 = narrowed(up), dy_16 = narrowed(dy), y_16 = unwritten_narrow(count);
    for (int kind : {0, 1, 2}) {
        auto bend = [&](double x) {
            if (kind == 1) return x * 0.5 * (1 + std::erf(x / std::sqrt(2.)));
            double u = kind == 2 ? 2 * std::sqrt(2 / M_PI) * x * (1 + 0.044715 * x * x) : x;
            return x / (1 + std::exp(-u));
        };
        Doubles wanted, wanted_dx;
        for (int i = 0; i < count; i++) {
            wanted.push_back(bend(x[i]));
            wanted_dx.push_back(dy[i] * (bend(x[i] + 1e-5) - bend(x[i] - 1e-5)) / 2e-5);
        }
        emulated::launch({3}, {256}, 0, [&] { activate(x.data(), y.data(), count, kind); });
        emulated::launch({3}, {256}, 0, [&] { activate_backward(dy.data(), x.data(), dx.data(), count, kind); });
        near("activation", y, wanted, 1e-6);
        near("gradient of the activation", dx, wanted_dx, 1e-6);
        Doubles product, dgate, of_up;
        for (int i = 0; i < count; i++) {
            product.push_back(wanted[i] * up[i]);
            dgate.push_back(wanted_dx[i] * up[i]);
            of_up.push_back(wanted[i] * dy[i]);
        }
        emulated::launch({3}, {256}, 0, [&] { gated(x.data(), up.data(), y.data(), count, kind); });
        emulated::launch({3}, {256}, 0, [&] { gated_bf16(gate_16.data(), up_16.data(), y_16.data(), count, kind); });
        near("gated product", y, product, 1e-6);
        near("gated product in bf16", widened(y_16), product, ROUNDING);
        // In the places of gate and up.
        dx = x, dup = up;
        Narrow dgate_16 = gate_16, dup_16 = up_16;
        emulated::launch({3}, {256}, 0, [&] { gated_backward(dy.data(), dx.data(), dup.data(), dx.data(), dup.data(), count, kind); });
        emulated::launch({3}, {256}, 0, [&] { gated_backward_bf16(dy_16.data(), dgate_16.data(), dup_16.data(), dgate_16.data(), dup_16.data(), count, kind); });
        near("gradient of the gate", dx, dgate, 1e-6);
        near("gradient of the rest", dup, of_up, 1e-6);
        near("gradient of the gate in bf16", widened(dgate_16), dgate, ROUNDING);
        near("gradient of the rest in bf16", widened(dup_16), of_up, ROUNDING);
    }
}

static void loss_checks() {
    int vocabularies[] = {2, 517, 1501, 517};
    for (int at = 0; at < 4; at++) {
        int vocabulary = vocabularies[at];
        float cap = at == 3 ? 2.f : 0.f;
        unsigned rows = 4;
        Floats logits = normal(rows * vocabulary, 3.f), losses = unwritten(rows), correct = unwritten(rows);
        std::vector<uint32_t> targets;
        Doubles wanted(logits.size()), wanted_losses, wanted_correct;
        for (unsigned r = 0; r < rows; r++) {
            const float* row = logits.data() + r * vocabulary;
            if (r == 2) {
                targets.push_back(NO_TARGET);
                wanted_losses.push_back(0);
                wanted_correct.push_back(0);
                continue;
            }
            int likeliest = std::max_element(row, row + vocabulary) - row;
            targets.push_back(r == 0 ? likeliest : between(0, vocabulary));
            auto bend = [&](double x) { return cap == 0 ? x : cap * std::tanh(x / cap); };
            double sum = 0;
            for (int i = 0; i < vocabulary; i++) sum += std::exp(bend(row[i]));
            for (int i = 0; i < vocabulary; i++) {
                double slope = cap == 0 ? 1 : 1 - std::pow(bend(row[i]) / cap, 2);
                double others = i == (int)targets[r] ? std::exp(bend(row[i])) - sum : std::exp(bend(row[i]));
                wanted[r * vocabulary + i] = 0.37 * others / sum * slope;
            }
            wanted_losses.push_back(std::log(sum) - bend(row[targets[r]]));
            wanted_correct.push_back((int)targets[r] == likeliest);
        }
        Floats kept = logits;
        emulated::launch({rows}, {512}, 0, [&] { cross_entropy(logits.data(), targets.data(), losses.data(), correct.data(), vocabulary, 0.f, cap); });
        near("logits that are only read", logits, kept, 0);
        emulated::launch({rows}, {512}, 0, [&] { cross_entropy(logits.data(), targets.data(), losses.data(), correct.data(), vocabulary, 0.37f, cap); });
        near("losses", losses, wanted_losses, 1e-6);
        near("hits", correct, wanted_correct, 0);
        near("gradient of the logits", logits, wanted, 2e-6);
    }
}

// A tensor of which a step sees the gradients.
static Trained of_step(Floats& grad, int64_t first_block) {
    Trained of{};
    of.grad = grad.data();
    of.count = grad.size();
    of.first_block = first_block;
    return of;
}

static void sum_checks() {
    for (int count : {1, 1000, 70001}) {
        Floats x = normal(count), y = normal(31);
        unsigned blocks = (count + 4095) / 4096;
        Trained both[] = {of_step(x, 0), of_step(y, blocks)};
        Floats parts = unwritten(blocks + 1), found = unwritten(2);
        emulated::launch({blocks + 1}, {256}, 0, [&] { square_sums(both, 2, parts.data()); });
        double wanted = 0;
        for (auto& numbers : {x, y})
            for (float v : numbers) wanted += (double)v * v;
        wanted = std::sqrt(wanted);
        for (double most : {-1., 0., 0.7 * wanted, 2 * wanted}) {
            emulated::launch({1}, {256}, 0, [&] { norm_and_scale(parts.data(), blocks + 1, most, found.data()); });
            double scale = most < 0 ? 1 : std::min(1., most / (wanted + 1e-6));
            near("norm and scale", found, Doubles{wanted, scale}, 2e-6);
        }
    }
    int width = 70, rows = 40;
    Floats dx = normal(rows * width), into = normal(10 * width);
    Doubles wanted(into.begin(), into.end());
    std::vector<uint32_t> order, starts, ids;
    std::vector<int> drawn;
    for (int i = 0; i < rows; i++) drawn.push_back(between(0, 10));
    for (int id = 0; id < 10; id++) {
        unsigned start = order.size();
        for (int i = 0; i < rows; i++)
            if (drawn[i] == id) order.push_back(i);
        if (order.size() > start) {
            starts.push_back(start);
            ids.push_back(id);
        }
    }
    starts.push_back(rows);
    for (int i = 0; i < rows * width; i++) wanted[drawn[i / width] * width + i % width] += dx[i];
    emulated::launch({(unsigned)ids.size()}, {row_threads(width)}, 0, [&] { add_rows(dx.data(), order.data(), starts.data(), ids.data(), into.data(), width); });
    near("rows of the embedding", into, wanted, 1e-6);
}

static void expansion_checks() {
    int count = 64 * 3 + 17;
    Floats levels = normal(16), absmax = normal(4), wide = unwritten(count);
    std::vector<uint8_t> packed((count + 1) / 2);
    for (auto& byte : packed) byte = between(0, 256);
    std::vector<__nv_bfloat16> narrow(count);
    Doubles wanted;
    for (int i = 0; i < count; i++) wanted.push_back((double)levels[i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4] * absmax[i / 64]);
    emulated::launch({1}, {256}, 0, [&] { expand_four_bits(packed.data(), absmax.data(), levels.data(), wide.data(), nullptr, count, 64); });
    near("four bits", wide, wanted, 1e-7);
    emulated::launch({1}, {256}, 0, [&] { expand_four_bits(packed.data(), absmax.data(), levels.data(), nullptr, narrow.data(), count, 64); });
    for (int i = 0; i < count; i++) wide[i] = __bfloat162float(narrow[i]);
    near("four bits in bf16", wide, wanted, 4e-3);
}

// Blocks of GGUF files and candle's numbers of them, as crates/kernels/tests/ggml.rs wrote them, bit for bit.
static void ggml_checks() {
    FILE* file = fopen("tests/cuda/emulated/ggml.bin", "rb");
    if (!file) emulated::fail("tests/cuda/emulated/ggml.bin is missing");
    uint32_t head[3];
    int kinds = 0;
    for (; fread(head, 4, 3, file) == 3; kinds++) {
        int kind = head[0], blocks = head[1], count = head[2], columns = count / 2, length = count / blocks;
        int sizes[] = {0, 0, 18, 20, 0, 0, 22, 24, 34, 36, 84, 110, 144, 176, 210, 292};
        std::vector<uint8_t> bytes(blocks * sizes[kind]);
        Floats expected(count), wide = unwritten(count);
        if (fread(bytes.data(), 1, bytes.size(), file) != bytes.size() || fread(expected.data(), 4, count, file) != (size_t)count)
            emulated::fail("tests/cuda/emulated/ggml.bin ends too early");
        std::string name = "blocks of type " + std::to_string(kind);
        unsigned threads = (count + 255) / 256;
        auto expand = [&](const uint32_t* rows, float* wide, __nv_bfloat16* narrow, int count) {
            emulated::launch({threads}, {256}, 0, [&] { expand_ggml(bytes.data(), rows, wide, narrow, count, columns, kind, length, sizes[kind]); });
        };
        expand(nullptr, wide.data(), nullptr, count);
        near(name, wide, expected, 0);
        uint32_t rows[] = {1};
        wide = unwritten(columns);
        expand(rows, wide.data(), nullptr, columns);
        near(name + ", a row", wide, Floats(expected.begin() + columns, expected.end()), 0);
        std::vector<__nv_bfloat16> narrow(count);
        wide = unwritten(count);
        expand(nullptr, nullptr, narrow.data(), count);
        for (int i = 0; i < count; i++) wide[i] = __bfloat162float(narrow[i]);
        near(name + " in bf16", wide, expected, 4e-3);
    }
    fclose(file);
    near("types of blocks", {(float)kinds}, Doubles{12}, 0);
}

// The dynamic map: seven decades, each cut into twice as many steps as the one below, with zero and one.
static Floats dynamic_levels(bool with_sign) {
    Floats levels{0.f, 1.f};
    for (int decade = 0; decade < 7; decade++) {
        int steps = with_sign ? 1 << decade : 2 << decade;
        for (int i = 0; i < steps; i++) {
            double level = (0.1 + 0.9 * (i + 0.5) / steps) * std::pow(10., decade - 6);
            levels.push_back(level);
            if (with_sign) levels.push_back(-level);
        }
    }
    std::sort(levels.begin(), levels.end());
    return levels;
}

// Every code is that of a level nearest to its share of the greatest number in its block.
static void nearest_check(const std::string& what, const std::vector<uint8_t>& codes, const Floats& absmax, const Floats& levels, const Doubles& wanted) {
    Doubles greatest(absmax.size());
    for (size_t i = 0; i < wanted.size(); i++) greatest[i / 256] = std::max(greatest[i / 256], std::fabs(wanted[i]));
    near("greatest of " + what, absmax, greatest, 1e-6);
    double worst = 0;
    for (size_t i = 0; i < wanted.size(); i++) {
        if (greatest[i / 256] == 0) {
            worst = std::max(worst, (double)std::fabs(levels[codes[i]]));
            continue;
        }
        double share = wanted[i] / greatest[i / 256], least = 2;
        for (float level : levels) least = std::min(least, std::fabs(share - level));
        worst = std::max(worst, std::fabs(share - levels[codes[i]]) - least);
    }
    if (worst > 1e-6) printf("WRONG %s: a level %.2g further away than the nearest\n", what.c_str(), worst);
    failures += worst > 1e-6;
}

static void eight_bit_checks() {
    Floats with_sign = dynamic_levels(true), without = dynamic_levels(false);
    for (int count : {1, 255, 256, 257, 1000}) {
        size_t blocks = (count + 255) / 256;
        Floats param = normal(count), absmax(blocks, 0.f), absmax_sq(blocks, 0.f);
        std::vector<uint8_t> codes(count, 0), codes_sq(count, 0);
        const double beta1 = 0.9, beta2 = 0.99, rate = 0.03, decay = 0.1, eps = 1e-8, scale = 0.5;
        for (int step = 1; step <= 4; step++) {
            // Small and large ones; the first step of the second block has no gradient at all.
            Floats grad = normal(count, std::pow(10.f, (float)between(-8, 4)));
            for (int i = 256; i < count && i < 512 && step == 1; i++) grad[i] = 0.f;
            Doubles wanted(param.begin(), param.end()), m(count), v(count);
            double correction1 = 1 - std::pow(beta1, step), correction2 = std::sqrt(1 - std::pow(beta2, step));
            for (int i = 0; i < count; i++) {
                double g = grad[i] * scale;
                m[i] = beta1 * with_sign[codes[i]] * absmax[i / 256] + (1 - beta1) * g;
                v[i] = beta2 * without[codes_sq[i]] * absmax_sq[i / 256] + (1 - beta2) * g * g;
                wanted[i] = wanted[i] * (1 - rate * decay) - rate / correction1 * m[i] / (std::sqrt(v[i]) / correction2 + eps);
            }
            Trained of = of_step(grad, 0);
            of.param = param.data();
            of.first = codes.data(), of.first_absmax = absmax.data();
            of.second = codes_sq.data(), of.second_absmax = absmax_sq.data();
            of.keep = 1 - rate * decay;
            of.step_size = rate / correction1;
            float norm_and_scale[] = {1.f, scale};
            emulated::launch({(unsigned)blocks}, {256}, 0, [&] {
                adamw_eight_bit(&of, 1, norm_and_scale, 0, 1 - beta1, beta2, 1 - beta2, eps, correction2, with_sign.data(), without.data());
            });
            std::string what = " of " + std::to_string(count) + " in eight bits, step " + std::to_string(step);
            near("parameters" + what, param, wanted, 1e-5);
            nearest_check("first moments" + what, codes, absmax, with_sign, m);
            nearest_check("second moments" + what, codes_sq, absmax_sq, without, v);
        }
    }
}

int main() {
    attention_checks();
    cache_checks();
    norm_checks();
    layer_norm_checks();
    rescaling_checks();
    activation_checks();
    loss_checks();
    sum_checks();
    expansion_checks();
    ggml_checks();
    eight_bit_checks();
    printf("kernels.cu: %s\n", failures ? "WRONG" : "as it should be");
    return failures != 0;
}
