// The driver's calls about devices, contexts, memory, modules and launches: all that cudarc makes
// for candle and for Ferry. Signatures as in cuda.h of CUDA 13.0, with handles as `void*`.

#include "device.h"

#include <cstring>
#include <vector>

using namespace mock;

#define HELD std::lock_guard<std::recursive_mutex> held(mock::lock)

namespace {

bool initialized = false;
int primary_context;
thread_local void* current = nullptr;

int in_context(const char* call) {
    if (!initialized) return fault(NOT_INITIALIZED, "%s before cuInit", call);
    if (!current) return fault(INVALID_CONTEXT, "%s without a context on this thread", call);
    return sticky;
}

// Both ends of a copy or a fill are looked at twice: when it is asked for, and when it is done.
int check_range(const char* call, uint64_t address, size_t bytes) {
    if (const char* wrong = wrong_with(address, bytes))
        return fault(INVALID_VALUE, "%s: %zu bytes at 0x%llx: the range %s", call, bytes, (unsigned long long)address, wrong);
    return SUCCESS;
}

}  // namespace

extern "C" {

int cuInit(unsigned) {
    HELD;
    initialized = true;
    return SUCCESS;
}

int cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}

int cuGetErrorName(int error, const char** name) {
    switch (error) {
        case SUCCESS: *name = "CUDA_SUCCESS"; break;
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
        case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case INVALID_DEVICE: *name = "CUDA_ERROR_INVALID_DEVICE"; break;
        case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
        case INVALID_HANDLE: *name = "CUDA_ERROR_INVALID_HANDLE"; break;
        case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
        case ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
        case LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
        default: *name = "CUDA_ERROR_UNKNOWN"; break;
    }
    return SUCCESS;
}

int cuGetErrorString(int error, const char** text) {
    switch (error) {
        case SUCCESS: *text = "no error"; break;
        case OUT_OF_MEMORY: *text = "out of memory"; break;
        case ILLEGAL_ADDRESS: *text = "an illegal memory access was encountered"; break;
        default: *text = "an error of the mock driver; see its stderr"; break;
    }
    return SUCCESS;
}

int cuDeviceGet(int* device, int ordinal) {
    if (!initialized) return NOT_INITIALIZED;
    if (ordinal != 0) return INVALID_DEVICE;
    *device = 0;
    return SUCCESS;
}

int cuDeviceGetCount(int* count) {
    *count = 1;
    return initialized ? SUCCESS : NOT_INITIALIZED;
}

int cuDeviceGetName(char* name, int length, int) {
    strncpy(name, "Ferry mock device", static_cast<size_t>(length));
    return SUCCESS;
}

int cuDeviceGetUuid_v2(void* uuid, int) {
    memset(uuid, 0x42, 16);
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = memory_total();
    return SUCCESS;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 1: *value = 1024; break;                             // threads of a block
        case 2: case 3: *value = 1024; break;                     // block x, y
        case 4: *value = 64; break;                               // block z
        case 5: *value = 0x7fffffff; break;                       // grid x
        case 6: case 7: *value = 65535; break;                    // grid y, z
        case 8: *value = 48 * 1024; break;                        // shared memory of a block
        case 10: *value = 32; break;                              // warp size
        case 12: *value = 65536; break;                           // registers of a block
        case 16: *value = 4; break;                               // multiprocessors
        case 75: *value = 8; break;                               // compute capability
        case 76: *value = 0; break;
        case 81: *value = 164 * 1024; break;                      // shared memory of a multiprocessor
        case 97: *value = 163 * 1024; break;                      // shared memory of a block that asks for it
        case 115: *value = 1; break;                              // memory pools
        default: *value = 0; break;
    }
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void** context, int) {
    HELD;
    *context = &primary_context;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }

int cuCtxGetCurrent(void** context) {
    *context = current;
    return SUCCESS;
}

int cuCtxSetCurrent(void* context) {
    current = context;
    return SUCCESS;
}

int cuCtxSetFlags(unsigned) { return SUCCESS; }

int cuMemGetInfo_v2(size_t* free, size_t* total) {
    HELD;
    if (int result = in_context("cuMemGetInfo")) return result;
    *free = memory_free();
    *total = memory_total();
    return SUCCESS;
}

// Pools: the mock's one pool is the whole device and gives back what is freed at once.

int cuDeviceGetDefaultMemPool(void** pool, int) {
    *pool = &primary_context;
    return SUCCESS;
}

int cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }

int cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }

int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    HELD;
    if (int result = in_context("cuMemAlloc")) return result;
    return allocation_must_fail() ? OUT_OF_MEMORY : allocate(address, bytes);
}

int cuMemAllocAsync(uint64_t* address, size_t bytes, void* stream) {
    HELD;
    if (int result = in_context("cuMemAllocAsync")) return result;
    if (!stream_of(stream)) return fault(INVALID_HANDLE, "an allocation on a stream that does not exist");
    if (allocation_must_fail()) return OUT_OF_MEMORY;
    if (int result = allocate(address, bytes); result != OUT_OF_MEMORY) return result;
    // Frees that are queued may make room.
    if (int result = drain_all()) return result;
    return allocate(address, bytes);
}

int cuMemFree_v2(uint64_t address) {
    HELD;
    if (address == 0) return SUCCESS;
    if (int result = drain_all()) return result;
    return release(address);
}

int cuMemFreeAsync(uint64_t address, void* stream) {
    HELD;
    // A context with a sticky error keeps nothing: its process will end.
    if (sticky) {
        release(address);
        return sticky;
    }
    if (const char* wrong = wrong_with(address, 1))
        return fault(INVALID_VALUE, "a free of 0x%llx, which %s", (unsigned long long)address, wrong);
    return enqueue(stream, "free", [address] { return release(address); });
}

int cuMemHostAlloc(void** host, size_t bytes, unsigned) {
    HELD;
    if (int result = in_context("cuMemHostAlloc")) return result;
    *host = allocate_pinned(bytes);
    return *host ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemFreeHost(void* host) {
    HELD;
    drain_all();
    return release_pinned(host) ? SUCCESS : fault(INVALID_VALUE, "a free of host memory that is not pinned");
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    HELD;
    if (int result = in_context("cuMemcpyHtoDAsync")) return result;
    if (bytes == 0) return SUCCESS;
    if (int result = check_range("a copy to the device", to, bytes)) return result;
    if (is_pinned(from, bytes)) {
        return enqueue(stream, "copy to the device", [to, from, bytes] {
            if (int result = check_range("a copy to the device", to, bytes)) return result;
            memcpy(reinterpret_cast<void*>(to), from, bytes);
            return static_cast<int>(SUCCESS);
        });
    }
    // Pageable memory is staged before the call returns.
    auto staged = std::vector<char>(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
    return enqueue(stream, "copy to the device", [to, staged = std::move(staged)] {
        if (int result = check_range("a copy to the device", to, staged.size())) return result;
        memcpy(reinterpret_cast<void*>(to), staged.data(), staged.size());
        return static_cast<int>(SUCCESS);
    });
}

int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    HELD;
    if (int result = in_context("cuMemcpyDtoHAsync")) return result;
    if (bytes == 0) return SUCCESS;
    if (int result = check_range("a copy from the device", from, bytes)) return result;
    auto copy = [to, from, bytes] {
        if (int result = check_range("a copy from the device", from, bytes)) return result;
        memcpy(to, reinterpret_cast<const void*>(from), bytes);
        return static_cast<int>(SUCCESS);
    };
    if (is_pinned(to, bytes)) return enqueue(stream, "copy from the device", copy);
    // To pageable memory the call returns when it is done.
    if (int result = may_synchronize(stream, "a copy to pageable memory")) return result;
    if (int result = drain(stream)) return result;
    return copy();
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    HELD;
    if (int result = in_context("cuMemcpyDtoDAsync")) return result;
    if (bytes == 0) return SUCCESS;
    auto check = [to, from, bytes] {
        int result = check_range("a copy on the device, from", from, bytes);
        return result ? result : check_range("a copy on the device, to", to, bytes);
    };
    if (int result = check()) return result;
    return enqueue(stream, "copy on the device", [=] {
        if (int result = check()) return result;
        memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
        return static_cast<int>(SUCCESS);
    });
}

int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
    HELD;
    if (int result = may_synchronize(nullptr, "a copy")) return result;
    if (int result = drain(static_cast<void*>(nullptr))) return result;
    if (int result = check_range("a copy to the device", to, bytes)) return result;
    memcpy(reinterpret_cast<void*>(to), from, bytes);
    return SUCCESS;
}

int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
    HELD;
    if (int result = may_synchronize(nullptr, "a copy")) return result;
    if (int result = drain(static_cast<void*>(nullptr))) return result;
    if (int result = check_range("a copy from the device", from, bytes)) return result;
    memcpy(to, reinterpret_cast<const void*>(from), bytes);
    return SUCCESS;
}

int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) { return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr); }

int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
    HELD;
    if (int result = in_context("cuMemsetD8Async")) return result;
    if (bytes == 0) return SUCCESS;
    if (int result = check_range("a fill", to, bytes)) return result;
    return enqueue(stream, "fill", [to, value, bytes] {
        if (int result = check_range("a fill", to, bytes)) return result;
        memset(reinterpret_cast<void*>(to), value, bytes);
        return static_cast<int>(SUCCESS);
    });
}

int cuMemsetD8_v2(uint64_t to, unsigned char value, size_t bytes) { return cuMemsetD8Async(to, value, bytes, nullptr); }

int cuModuleLoadData(void** module, const void* image) {
    HELD;
    if (int result = in_context("cuModuleLoadData")) return result;
    *module = load_module(image);
    return *module ? SUCCESS : INVALID_IMAGE;
}

int cuModuleUnload(void* module) {
    HELD;
    // Kernels that are queued may still be of it; modules are few, so they stay.
    (void)module;
    return SUCCESS;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
    HELD;
    *function = find_kernel(static_cast<Module*>(module), name);
    return *function ? SUCCESS : fault(NOT_FOUND, "the module has no kernel %s", name);
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
    HELD;
    // 8 is the most dynamic shared memory of a block.
    if (attribute != 8) return SUCCESS;
    if (value < 0 || value > 163 * 1024) return fault(INVALID_VALUE, "%d bytes of shared memory asked for", value);
    static_cast<Kernel*>(function)->max_dynamic_shared = value;
    return SUCCESS;
}

int cuFuncGetAttribute(int* value, int attribute, void* function) {
    HELD;
    *value = attribute == 0 ? 1024 : attribute == 8 ? static_cast<Kernel*>(function)->max_dynamic_shared : 0;
    return SUCCESS;
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void* stream, void** arguments, void** extra) {
    HELD;
    if (int result = in_context("cuLaunchKernel")) return result;
    if (extra) return fault(NOT_SUPPORTED, "a launch with packed arguments");
    return launch(static_cast<Kernel*>(function), {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, stream, arguments);
}

}  // extern "C"
