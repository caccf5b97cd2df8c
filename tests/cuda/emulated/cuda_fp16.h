// What the kernels use of CUDA's header of this name.

#pragma once

#include "machine.h"

struct __half {
    _Float16 value;
};

inline __half __ushort_as_half(unsigned short bits) {
    __half half;
    memcpy(&half, &bits, 2);
    return half;
}

inline float __half2float(__half half) { return (float)half.value; }
