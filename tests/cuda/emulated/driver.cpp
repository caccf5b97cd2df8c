// NVIDIA's driver and cuBLAS on the processor, as far as this program uses them, so that all of its GPU's side runs
// where there is no GPU: memory is the host's, a launch runs the kernel at once (machine.h). Memory that is handed out
// holds NaN, and so does memory that was given back; what was written behind the end of it shows then. What is asked of a second stream, which may only copy, is put off
// until something waits for it, and so late that whatever did not wait shows.
//
// With SPARSAM_EMULATED_IDLE set nothing is computed, all that is read back is 0, and what was asked for is counted and
// printed at the end: so a program's own share of a step can be timed, with models of any size.

#include "cuda_bf16.h"
#include "driver.h"

#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <unordered_map>

namespace {

std::map<std::string, emulated::Kernel>& kernels() {
    static std::map<std::string, emulated::Kernel> all;
    return all;
}

// How much this thread has asked of the first stream: tests of several threads share it.
thread_local uint64_t asked;
std::recursive_mutex turn;
typedef std::lock_guard<std::recursive_mutex> Turn;

const bool idle = getenv("SPARSAM_EMULATED_IDLE");

// What was asked for, by name, and with how many bytes.
struct Counts {
    struct Count {
        uint64_t times, bytes;
    };
    std::map<std::string, Count> all;
    std::unordered_map<const void*, uint64_t> launches;

    Counts() { kernels(); }  // so that they outlive this
    void add(const char* name, uint64_t bytes = 0) {
        if (!idle) return;
        Turn held(turn);
        Count& count = all[name];
        count.times++;
        count.bytes += bytes;
    }
    ~Counts() {
        for (auto& [name, kernel] : kernels())
            if (launches.count(&kernel)) all[name].times = launches[&kernel];
        for (auto& [name, count] : all)
            fprintf(stderr, "asked\t%s\t%llu\t%llu\n", name.c_str(), (unsigned long long)count.times,
                    (unsigned long long)count.bytes);
    }
};
Counts counts;

struct Copy {
    uint64_t to, from;
    size_t size;
};

// A stream beside the first: its copies that are put off, how many have been asked for, and how much of what each thread has
// asked of the first it has waited for.
struct Stream {
    std::deque<Copy> copies;
    uint64_t count = 0;
    std::map<std::thread::id, uint64_t> waited;

    void run(uint64_t until) {
        for (; !copies.empty() && count - copies.size() < until; copies.pop_front())
            memmove((void*)copies.front().to, (void*)copies.front().from, copies.front().size);
    }
};
Stream first_stream;
std::deque<Stream> streams;

// A moment of a stream.
struct Event {
    Stream* stream = nullptr;
    uint64_t moment = 0;
};

Stream* beside(void* stream) { return stream == &first_stream ? nullptr : static_cast<Stream*>(stream); }

int copy(uint64_t to, uint64_t from, size_t size) {
    if (!idle) memmove((void*)to, (void*)from, size);
    return 0;
}

int fill(uint64_t to, unsigned char value, size_t size) {
    counts.add("memset", size);
    if (!idle) memset((void*)to, value, size);
    return 0;
}

// To the host's memory.
int read_back(void* to, uint64_t from, size_t size) {
    counts.add("copy to the host", size);
    if (idle) memset(to, 0, size);
    return copy((uint64_t)to, from, size);
}

// A copy on a stream: at once on the first.
int copy_on(void* stream, uint64_t to, uint64_t from, size_t size) {
    Turn held(turn);
    Stream* other = beside(stream);
    if (!other) {
        asked++;
        return copy(to, from, size);
    }
    if (other->waited[std::this_thread::get_id()] != asked) emulated::fail("a copy beside does not wait for what it follows");
    other->copies.push_back({to, from, size});
    other->count++;
    return 0;
}

std::unordered_map<uint64_t, size_t> sizes;
size_t used, most;

// Bytes behind memory of a size that nobody may write. Words of them are NaN, which arithmetic makes another NaN.
size_t behind(size_t size) { return (size + 255) / 256 * 256 + 256 - size; }
unsigned char mark(uint64_t place) { return place % 4 == 3 ? 0xff : 0xa5; }

int give(uint64_t* address, size_t size) {
    Turn held(turn);
    void* memory = aligned_alloc(256, size + behind(size));
    if (!memory) return 2;
    asked++;
    counts.add("memory", size);
    *address = (uint64_t)memory;
    if (!idle) {
        memset(memory, 0xff, size);
        for (uint64_t at = *address + size; at < *address + size + behind(size); at++) *(unsigned char*)at = mark(at);
    }
    sizes[*address] = size;
    used += size;
    most = std::max(most, used);
    return 0;
}

int take(uint64_t address) {
    Turn held(turn);
    auto found = sizes.find(address);
    if (found == sizes.end()) return 1;
    uint64_t end = address + found->second;
    for (uint64_t at = end; at < end + behind(found->second) && !idle; at++)
        if (*(unsigned char*)at != mark(at)) emulated::fail("something was written behind the end of memory");
    for (auto& stream : streams)
        for (auto& copy : stream.copies)
            for (uint64_t place : {copy.to, copy.from})
                if (place < end && place + copy.size > address)
                    emulated::fail("memory is given back that a copy beside needs");
    if (!idle) memset((void*)address, 0xff, found->second);
    used -= found->second;
    free((void*)address);
    sizes.erase(found);
    return 0;
}

// A matrix of cuBLAS, column-major, as rows of f32 of what is meant.
std::vector<float> rows_of(const void* from, int kind, int operation, int rows, int columns, int leading) {
    std::vector<float> out((size_t)rows * columns);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {
            size_t at = operation == 0 ? (size_t)c * leading + r : (size_t)r * leading + c;
            float value;
            if (kind == 0) value = ((const float*)from)[at];
            else if (kind == 14) value = __bfloat162float(((const __nv_bfloat16*)from)[at]);
            else if (kind == 2) value = (float)((const _Float16*)from)[at];
            else emulated::fail("a product of numbers of this type is not emulated");
            out[(size_t)r * columns + c] = value;
        }
    return out;
}

int product(int op_a, int op_b, int m, int n, int k, const float* alpha, const void* a, int kind_a, int lda,
            const void* b, int kind_b, int ldb, const float* beta, void* c, int kind_c, int ldc) {
    asked++;
    counts.add("product");
    if (idle) return 0;
    if (kind_c != 0 && kind_c != 14) emulated::fail("a product into numbers of this type is not emulated");
    // cᵀ, which is row-major: n rows of m.
    std::vector<float> left = rows_of(b, kind_b, !op_b, n, k, ldb), right = rows_of(a, kind_a, !op_a, k, m, lda), sums(m);
    for (int row = 0; row < n; row++) {
        std::fill(sums.begin(), sums.end(), 0.f);
        for (int d = 0; d < k; d++) {
            float factor = left[(size_t)row * k + d];
            const float* values = &right[(size_t)d * m];
            for (int i = 0; i < m; i++) sums[i] += factor * values[i];
        }
        // What is there is not read where it counts for nothing: it may be no number.
        auto add = [&](float there, float sum) { return *alpha * sum + (*beta == 0.f ? 0.f : *beta * there); };
        if (kind_c == 0) {
            float* to = (float*)c + (size_t)row * ldc;
            for (int i = 0; i < m; i++) to[i] = add(to[i], sums[i]);
        } else {
            auto* to = (__nv_bfloat16*)c + (size_t)row * ldc;
            for (int i = 0; i < m; i++) to[i] = __float2bfloat16(add(__bfloat162float(to[i]), sums[i]));
        }
    }
    return 0;
}

}  // namespace

namespace emulated {

const Kernel* find(const std::string& name) {
    auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : &found->second;
}

void add(const std::string& name, Kernel kernel) { kernels()[name] = std::move(kernel); }

}  // namespace emulated

extern "C" {

int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int ordinal) { return ordinal == 0 ? *device = 0, 0 : 101; }
int cuDeviceGetName(char* name, int length, int) { return snprintf(name, length, "emulated"), 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = (size_t)8 << 30, 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 75: *value = 8; break;    // compute capability
        case 76: *value = 0; break;
        case 10: *value = 32; break;   // threads of a warp
        case 1: *value = 1024; break;  // threads of a block
        case 115: *value = 1; break;   // memory pools
        default: *value = 0;
    }
    return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = (void*)1, 0; }
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuCtxSetCurrent(void*) { return 0; }
int cuCtxGetCurrent(void** context) { return *context = (void*)1, 0; }
int cuCtxSynchronize() { return 0; }
int cuStreamCreate(void** stream, unsigned) {
    static bool any = false;
    if (any) streams.emplace_back();
    *stream = any ? &streams.back() : &first_stream;
    any = true;
    return 0;
}
int cuStreamDestroy_v2(void*) { return 0; }
int cuStreamSynchronize(void* stream) {
    Turn held(turn);
    counts.add("wait");
    if (Stream* other = beside(stream)) other->run(other->count);
    return 0;
}
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    Turn held(turn);
    Stream *waiting = beside(stream), *other = static_cast<Event*>(event)->stream;
    uint64_t moment = static_cast<Event*>(event)->moment;
    if (other && !waiting) other->run(moment);
    if (!other && waiting) {
        uint64_t& waited = waiting->waited[std::this_thread::get_id()];
        waited = std::max(waited, moment);
    }
    return 0;
}
int cuStreamIsCapturing(void*, int* status) { return *status = 0, 0; }
int cuEventCreate(void** event, unsigned) { return *event = new Event, 0; }
int cuEventRecord(void* event, void* stream) {
    Turn held(turn);
    Stream* other = beside(stream);
    *static_cast<Event*>(event) = {other, other ? other->count : asked};
    return 0;
}
int cuEventSynchronize(void* event) {
    Turn held(turn);
    Event& at = *static_cast<Event*>(event);
    if (at.stream) at.stream->run(at.moment);
    return 0;
}
int cuEventQuery(void* event) { return cuEventSynchronize(event); }
int cuEventDestroy_v2(void* event) { return delete static_cast<Event*>(event), 0; }
int cuMemHostAlloc(void** address, size_t size, unsigned) {
    *address = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    if (!*address) return 2;
    memset(*address, 0xff, size);
    return 0;
}
int cuMemFreeHost(void* address) { return free(address), 0; }
int cuMemAlloc_v2(uint64_t* address, size_t size) { return give(address, size); }
int cuMemAllocAsync(uint64_t* address, size_t size, void*) { return give(address, size); }
int cuMemFree_v2(uint64_t address) { return take(address); }
int cuMemFreeAsync(uint64_t address, void*) { return take(address); }
int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t size) { return copy(to, (uint64_t)from, size); }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t size, void* stream) {
    counts.add("copy from the host", size);
    return copy_on(stream, to, (uint64_t)from, size);
}
int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t size) { return read_back(to, from, size); }
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t size, void* stream) {
    return beside(stream) ? copy_on(stream, (uint64_t)to, from, size) : (asked++, read_back(to, from, size));
}
int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t size) { return copy(to, from, size); }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, void* stream) {
    counts.add("copy within the GPU", size);
    return copy_on(stream, to, from, size);
}
int cuMemsetD8_v2(uint64_t to, unsigned char value, size_t size) { return fill(to, value, size); }
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t size, void*) { return fill(to, value, size); }
int cuMemGetInfo_v2(size_t* left, size_t* all) {
    *all = (size_t)8 << 30;
    *left = *all - used;
    return 0;
}
int cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = (void*)4, 0; }
int cuMemPoolSetAttribute(void*, int, void*) { return 0; }
int cuMemPoolGetAttribute(void*, int attribute, uint64_t* value) {
    if (attribute == 7) *value = used;       // CU_MEMPOOL_ATTR_USED_MEM_CURRENT
    else if (attribute == 8) *value = most;  // CU_MEMPOOL_ATTR_USED_MEM_HIGH
    else return 1;
    return 0;
}
int cuModuleLoadData(void** module, const void*) { return *module = (void*)5, 0; }
int cuModuleUnload(void*) { return 0; }
int cuModuleGetFunction(const void** function, void*, const char* name) {
    *function = emulated::find(name);
    if (*function) return 0;
    fprintf(stderr, "emulated: there is no kernel `%s`\n", name);
    return 500;
}
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuFuncGetAttribute(int* value, int, void*) { return *value = 0, 0; }
int cuLaunchKernel(const void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, void*, void** arguments, void**) {
    static std::mutex one;
    std::lock_guard<std::mutex> lock(one);
    asked++;
    if (grid_x * grid_y * grid_z == 0 || block_x * block_y * block_z == 0 || block_x * block_y * block_z > 1024) return 1;
    if (grid_y > 65535 || grid_z != 1 || block_z != 1) emulated::fail("a grid of this shape is not emulated");
    if (idle) return counts.launches[function]++, 0;
    emulated::Grid grid{{grid_x, grid_y, 1}, {block_x, block_y, 1}, shared};
    (*static_cast<const emulated::Kernel*>(function))(grid, arguments);
    return 0;
}
int cuGetErrorName(int code, const char** name) {
    *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 101 ? "CUDA_ERROR_INVALID_DEVICE" : code == 500 ? "CUDA_ERROR_NOT_FOUND" : "CUDA_ERROR";
    return 0;
}
int cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }

int cublasCreate_v2(void** handle) { return *handle = (void*)6, 0; }
int cublasDestroy_v2(void*) { return 0; }
int cublasSetStream_v2(void*, void*) { return 0; }
int cublasGemmEx(void*, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a, int kind_a, int lda,
                 const void* b, int kind_b, int ldb, const void* beta, void* c, int kind_c, int ldc, int, int) {
    return product(op_a, op_b, m, n, k, (const float*)alpha, a, kind_a, lda, b, kind_b, ldb, (const float*)beta, c, kind_c, ldc);
}
int cublasGemmStridedBatchedEx(void*, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a, int kind_a,
                               int lda, long long step_a, const void* b, int kind_b, int ldb, long long step_b,
                               const void* beta, void* c, int kind_c, int ldc, long long step_c, int count, int, int) {
    if (kind_a != 0 || kind_b != 0) emulated::fail("batched products of this type are not emulated");
    for (int i = 0; i < count; i++)
        product(op_a, op_b, m, n, k, (const float*)alpha, (const float*)a + i * step_a, kind_a, lda,
                (const float*)b + i * step_b, kind_b, ldb, (const float*)beta, (float*)c + i * step_c, kind_c, ldc);
    return 0;
}

int curandCreateGenerator(void** generator, int) { return *generator = (void*)7, 0; }
int curandDestroyGenerator(void*) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return 0; }
int curandSetStream(void*, void*) { return 0; }

}  // extern "C"
