// The kernels that the emulated driver knows by name.

#pragma once

#include <string>
#include <utility>

#include "machine.h"

namespace emulated {

struct Grid {
    Dim3 blocks, threads;
    size_t shared;
};

typedef std::function<void(const Grid&, void**)> Kernel;

// Finds a kernel, or nothing.
const Kernel* find(const std::string& name);
void add(const std::string& name, Kernel kernel);

// Every thread in turn: for kernels whose threads never wait for each other.
inline void launch_plain(Dim3 grid, Dim3 block, const std::function<void()>& kernel) {
    gridDim = grid;
    blockDim = block;
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)
            for (threadIdx.y = 0; threadIdx.y < block.y; threadIdx.y++)
                for (threadIdx.x = 0; threadIdx.x < block.x; threadIdx.x++) kernel();
}

template <class... Arguments, size_t... I>
Kernel unpacked(void (*kernel)(Arguments...), bool waits, std::index_sequence<I...>) {
    return [=](const Grid& grid, void** arguments) {
        auto body = [=] { kernel(*static_cast<Arguments*>(arguments[I])...); };
        if (waits) launch(grid.blocks, grid.threads, grid.shared, body);
        else launch_plain(grid.blocks, grid.threads, body);
    };
}

// A kernel under its name; `waits`: whether its threads exchange anything.
template <class... Arguments>
void add_kernel(const char* name, void (*kernel)(Arguments...), bool waits) {
    add(name, unpacked(kernel, waits, std::index_sequence_for<Arguments...>()));
}

}  // namespace emulated
