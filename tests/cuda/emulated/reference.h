// What the kernels are compared with, in f64, and fresh random inputs.

#pragma once

#include <algorithm>
#include <string>

#include "cuda_bf16.h"

typedef std::vector<float> Floats;
typedef std::vector<double> Doubles;

inline std::mt19937& generator() {
    static const char* seed = getenv("SPARSAM_SEED");
    static std::mt19937 generator(seed ? (unsigned)atoi(seed) : std::random_device()());
    return generator;
}

inline int between(int low, int high) { return low + (int)(generator()() % (unsigned)(high - low)); }

inline Floats normal(size_t count, float size = 1.f) {
    std::normal_distribution<float> draw(0.f, size);
    Floats numbers(count);
    for (auto& number : numbers) number = draw(generator());
    return numbers;
}

// Memory for an output: NaN, so that a number that is not written shows.
inline Floats unwritten(size_t count) { return Floats(count, NAN); }

inline std::vector<__nv_bfloat16> narrowed(Floats& numbers) {
    std::vector<__nv_bfloat16> narrow;
    for (auto& number : numbers) {
        narrow.push_back(__float2bfloat16(number));
        number = __bfloat162float(narrow.back());
    }
    return narrow;
}

typedef std::vector<__nv_bfloat16> Narrow;

// The same, of bf16.
inline Narrow unwritten_narrow(size_t count) { return Narrow(count, __nv_bfloat16{0x7fff}); }

inline Floats widened(const Narrow& numbers) {
    Floats wide;
    for (auto& number : numbers) wide.push_back(__bfloat162float(number));
    return wide;
}

// Of numbers that were rounded to bf16.
constexpr double ROUNDING = 4e-3;

inline int failures = 0;

// |found - expected| / |expected| over all numbers.
template <class Expected>
void near(const std::string& what, const Floats& found, const Expected& expected, double tolerance) {
    double apart = 0, length = 0;
    for (size_t i = 0; i < found.size(); i++) {
        apart += std::pow(found[i] - (double)expected[i], 2);
        length += std::pow((double)expected[i], 2);
    }
    double error = std::sqrt(apart / std::max(length, 1e-12));
    bool good = found.size() == expected.size() && error <= tolerance;
    if (!good || getenv("SPARSAM_VERBOSE")) printf("%s %s: relative error %.2g, at most %.2g\n", good ? "ok" : "WRONG", what.c_str(), error, tolerance);
    failures += !good;
}

// What a query sees beside itself: so many keys before it and behind it.
struct Reach {
    int before, after;
};

constexpr int ALL = 1 << 29;

struct AttentionCase {
    int heads, kv_heads, head;
    Reach reach;
    float cap;
    std::vector<int> lengths;
    int tokens() const {
        int sum = 0;
        for (int length : lengths) sum += length;
        return sum;
    }
    float scale() const { return 1.f / std::sqrt((float)head); }
    std::vector<int> tiles(int size) const {
        std::vector<int> tiles;
        int begin = 0;
        for (int length : lengths) {
            for (int first = begin; first < begin + length; first += size) tiles.insert(tiles.end(), {first, begin, begin + length});
            begin += length;
        }
        return tiles;
    }
    std::string name() const {
        std::string text = "heads " + std::to_string(heads) + "/" + std::to_string(kv_heads) + " of " + std::to_string(head) + ", " + std::to_string(reach.before) + " before, " + std::to_string(reach.after) + " after, cap " + std::to_string(cap) + ", documents";
        for (int length : lengths) text += " " + std::to_string(length);
        return text;
    }
};

struct AttentionResult {
    Doubles out, log_sums, delta, dq, dk, dv;
};

// Attention and its adjoint as they are written down, document by document.
inline AttentionResult attention_reference(const AttentionCase& c, const Floats& q, const Floats& k, const Floats& v, const Floats& dout) {
    int tokens = c.tokens(), width = c.heads * c.head, kv_width = c.kv_heads * c.head;
    AttentionResult r{Doubles(tokens * width), Doubles(c.heads * tokens), Doubles(c.heads * tokens), Doubles(tokens * width), Doubles(tokens * kv_width), Doubles(tokens * kv_width)};
    int begin = 0;
    for (int length : c.lengths) {
        for (int h = 0; h < c.heads; h++) {
            int kv = h / (c.heads / c.kv_heads);
            for (int i = begin; i < begin + length; i++) {
                int low = std::max(begin, i - c.reach.before), high = std::min(begin + length, i + c.reach.after + 1);
                Doubles p(high - low), slope(high - low, 1.);
                double greatest = -1e300, sum = 0;
                for (int j = low; j < high; j++) {
                    double s = 0;
                    for (int d = 0; d < c.head; d++) s += (double)q[i * width + h * c.head + d] * k[j * kv_width + kv * c.head + d];
                    p[j - low] = s * c.scale();
                    if (c.cap != 0) {
                        double bend = std::tanh(p[j - low] / c.cap);
                        p[j - low] = c.cap * bend;
                        slope[j - low] = 1 - bend * bend;
                    }
                    greatest = std::max(greatest, p[j - low]);
                }
                for (auto& value : p) sum += value = std::exp(value - greatest);
                r.log_sums[h * tokens + i] = greatest + std::log(sum);
                double delta = 0;
                for (int d = 0; d < c.head; d++) {
                    double o = 0;
                    for (int j = low; j < high; j++) o += p[j - low] / sum * v[j * kv_width + kv * c.head + d];
                    r.out[i * width + h * c.head + d] = o;
                    delta += o * dout[i * width + h * c.head + d];
                }
                r.delta[h * tokens + i] = delta;
                for (int j = low; j < high; j++) {
                    double dp = 0;
                    for (int d = 0; d < c.head; d++) dp += (double)dout[i * width + h * c.head + d] * v[j * kv_width + kv * c.head + d];
                    double share = p[j - low] / sum, ds = share * (dp - delta) * c.scale() * slope[j - low];
                    for (int d = 0; d < c.head; d++) {
                        r.dq[i * width + h * c.head + d] += ds * k[j * kv_width + kv * c.head + d];
                        r.dk[j * kv_width + kv * c.head + d] += ds * q[i * width + h * c.head + d];
                        r.dv[j * kv_width + kv * c.head + d] += share * dout[i * width + h * c.head + d];
                    }
                }
            }
        }
        begin += length;
    }
    return r;
}

inline Floats narrow(const Doubles& numbers) { return Floats(numbers.begin(), numbers.end()); }
