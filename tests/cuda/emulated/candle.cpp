// What candle computes on a GPU by kernels of its own, as far as this program asks for it. They are written down here and
// not emulated: candle's kernels are not what is tested.

#include "cuda_bf16.h"
#include "driver.h"

namespace {

using emulated::Grid;

template <class T>
T at(void** arguments, int index) {
    return *static_cast<T*>(arguments[index]);
}

// Numbers by their name in candle.
float get(const float* x) { return *x; }
double get(const double* x) { return *x; }
float get(const _Float16* x) { return (float)*x; }
typedef __nv_bfloat16 Brain;
float get(const Brain* x) { return __bfloat162float(*x); }
uint32_t get(const uint32_t* x) { return *x; }
uint8_t get(const uint8_t* x) { return *x; }
int64_t get(const int64_t* x) { return *x; }
template <class T>
void put(T* to, double value) {
    *to = (T)value;
}
void put(Brain* to, double value) { *to = __float2bfloat16((float)value); }

// Where number i of a tensor lies, by its dims and one of the strides that follow them.
size_t place(size_t i, size_t rank, const size_t* info, int which) {
    if (!info) return i;
    const size_t *dims = info, *strides = info + (which + 1) * rank;
    size_t sum = 0;
    for (size_t d = rank; d-- > 0; i /= dims[d]) sum += i % dims[d] * strides[d];
    return sum;
}

template <class T>
void of_type(const std::string& type) {
    emulated::add("ucopy_" + type, [](const Grid&, void** p) {
        size_t count = at<size_t>(p, 0), rank = at<size_t>(p, 1);
        const size_t* info = at<const size_t*>(p, 2);
        const T* from = at<const T*>(p, 3);
        T* to = at<T*>(p, 4);
        for (size_t i = 0; i < count; i++) to[i] = from[place(i, rank, info, 0)];
    });
    emulated::add("const_set_" + type, [](const Grid&, void** p) {
        size_t count = at<size_t>(p, 0), rank = at<size_t>(p, 1);
        const size_t* info = at<const size_t*>(p, 2);
        T value = at<T>(p, 3);
        T* to = at<T*>(p, 4);
        for (size_t i = 0; i < count; i++) to[place(i, rank, info, 0)] = value;
    });
    emulated::add("copy2d_" + type, [](const Grid&, void** p) {
        const T* from = at<const T*>(p, 0);
        T* to = at<T*>(p, 1);
        uint32_t rows = at<uint32_t>(p, 2), columns = at<uint32_t>(p, 3);
        size_t from_stride = at<uint32_t>(p, 4), to_stride = at<uint32_t>(p, 5);
        for (size_t r = 0; r < rows; r++)
            for (size_t c = 0; c < columns; c++) to[r * to_stride + c] = from[r * from_stride + c];
    });
    emulated::add("is_u32_" + type, [](const Grid&, void** p) {
        // What comes between are the dims of the ids, which are contiguous here, as the table is.
        size_t count = at<size_t>(p, 0);
        const uint32_t* ids = at<const uint32_t*>(p, 3);
        const T* from = at<const T*>(p, 4);
        T* to = at<T*>(p, 5);
        size_t rows = at<size_t>(p, 7), picked = at<size_t>(p, 8), right = at<size_t>(p, 9);
        for (size_t i = 0; i < count; i++) {
            size_t source = (i / (picked * right) * rows + ids[i / right % picked]) * right + i % right;
            to[i] = from[source];
        }
    });
}

template <class From, class To>
void cast(const std::string& name) {
    emulated::add(name, [](const Grid&, void** p) {
        size_t count = at<size_t>(p, 0), rank = at<size_t>(p, 1);
        const size_t* info = at<const size_t*>(p, 2);
        const From* from = at<const From*>(p, 3);
        To* to = at<To*>(p, 4);
        for (size_t i = 0; i < count; i++) put(to + i, (double)get(from + place(i, rank, info, 0)));
    });
}

template <class From>
void casts(const std::string& type) {
    cast<From, float>("cast_" + type + "_f32");
    cast<From, double>("cast_" + type + "_f64");
    cast<From, Brain>("cast_" + type + "_bf16");
    cast<From, _Float16>("cast_" + type + "_f16");
}

template <class T>
void unary(const char* name, T (*what)(T)) {
    emulated::add(name, [=](const Grid&, void** p) {
        size_t count = at<size_t>(p, 0), rank = at<size_t>(p, 1);
        const size_t* info = at<const size_t*>(p, 2);
        const T* from = at<const T*>(p, 3);
        T* to = at<T*>(p, 4);
        for (size_t i = 0; i < count; i++) to[i] = what(from ? from[place(i, rank, info, 0)] : to[i]);
    });
}

template <class Out>
void binary(const char* name, Out (*what)(float, float)) {
    emulated::add(name, [=](const Grid&, void** p) {
        size_t count = at<size_t>(p, 0), rank = at<size_t>(p, 1);
        const size_t* info = at<const size_t*>(p, 2);
        const float *x = at<const float*>(p, 3), *y = at<const float*>(p, 4);
        Out* to = at<Out*>(p, 5);
        for (size_t i = 0; i < count; i++) to[i] = what(x[place(i, rank, info, 0)], y[place(i, rank, info, 1)]);
    });
}

const bool added = [] {
    of_type<float>("f32");
    of_type<double>("f64");
    of_type<uint16_t>("bf16");
    of_type<uint16_t>("f16");
    of_type<uint32_t>("u32");
    of_type<uint8_t>("u8");
    of_type<int64_t>("i64");
    casts<float>("f32");
    casts<double>("f64");
    casts<Brain>("bf16");
    casts<_Float16>("f16");
    casts<uint8_t>("u8");
    unary<float>("utanh_f32", [](float x) { return tanhf(x); });
    unary<float>("urelu_f32", [](float x) { return x > 0.f ? x : 0.f; });
    unary<float>("usqr_f32", [](float x) { return x * x; });
    unary<float>("uneg_f32", [](float x) { return -x; });
    binary<float>("badd_f32", [](float x, float y) { return x + y; });
    binary<float>("bsub_f32", [](float x, float y) { return x - y; });
    binary<float>("bmul_f32", [](float x, float y) { return x * y; });
    binary<float>("bdiv_f32", [](float x, float y) { return x / y; });
    binary<uint8_t>("gt_f32", [](float x, float y) { return (uint8_t)(x > y); });
    emulated::add("affine_f32", [](const Grid&, void** p) {
        size_t count = at<size_t>(p, 0), rank = at<size_t>(p, 1);
        const size_t* info = at<const size_t*>(p, 2);
        const float* from = at<const float*>(p, 3);
        float *to = at<float*>(p, 4), factor = at<float>(p, 5), addend = at<float>(p, 6);
        for (size_t i = 0; i < count; i++) to[i] = (from ? from[place(i, rank, info, 0)] : to[i]) * factor + addend;
    });
    emulated::add("ia_u32_f32", [](const Grid&, void** p) {
        const uint32_t* ids = at<const uint32_t*>(p, 0);
        size_t count = at<size_t>(p, 1);
        const float* from = at<const float*>(p, 2);
        float* to = at<float*>(p, 3);
        size_t left = at<size_t>(p, 4), rows = at<size_t>(p, 6), right = at<size_t>(p, 7);
        for (size_t l = 0; l < left; l++)
            for (size_t j = 0; j < count; j++)
                for (size_t r = 0; r < right; r++) to[(l * rows + ids[j]) * right + r] += from[(l * count + j) * right + r];
    });
    return true;
}();

}  // namespace
