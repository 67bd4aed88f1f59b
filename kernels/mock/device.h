// A CUDA device for tests on machines that have none: what the files of the mock driver share.
//
// Device memory is host memory, each allocation at the end of its own pages, between pages that
// nobody may touch. Streams are queues of work that is done as late as the API allows: when
// somebody synchronizes. So an access out of bounds, a use after a free, a read before its copy
// and a copy from a buffer that is gone are all seen. See docs/cuda-mock.md.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

namespace mock {

// Of `CUresult`, what the mock gives.
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
};

struct Grid {
    unsigned x, y, z;
};

// Held by every entry point: the mock has one device and does one thing at a time.
extern std::recursive_mutex lock;

// Tells stderr and the test what was done wrong, and returns `code`.
int fault(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));

// An error that the context keeps, as after an illegal access: every later call returns it.
extern int sticky;

// ---- memory.cpp

// Bytes that the device has, `FERRY_MOCK_CUDA_MEMORY` or 2 GiB.
size_t memory_total();
size_t memory_free();
// Whether the test wants this allocation to fail.
bool allocation_must_fail();
int allocate(uint64_t* address, size_t bytes);
int release(uint64_t address);
// Null if all of the range lies in one live allocation, else what is wrong with it.
const char* wrong_with(uint64_t address, size_t bytes);
// Bytes from `address` to the end of its allocation; 0 if it is in none.
size_t bytes_from(uint64_t address);
// Whether the edges of all allocations are as they were made; names the first that is not.
bool edges_intact(std::string* which);
bool is_pinned(const void* host, size_t bytes);
void* allocate_pinned(size_t bytes);
bool release_pinned(void* host);
// Runs `work`; false if it touched memory that it may not, and `what` says where.
bool guarded(const std::function<int()>& work, int* result, std::string* what);

// ---- streams.cpp

struct Stream;
using Work = std::function<int()>;

Stream* stream_of(void* handle);
// Queues work, or records it if the stream is being captured.
int enqueue(void* stream, const char* name, Work work);
// Does all that is queued before what `count` counts, in the stream's order.
int drain(Stream* stream, uint64_t count);
int drain(void* stream);
int drain_all();
// Whether host memory may be read or written right now; a capture forbids to wait.
int may_synchronize(void* stream, const char* what);

// ---- kernels.cpp

// A kernel's parameters as its image declares them; without an image, as the emulation says.
struct Parameter {
    size_t bytes;
    bool pointer;
};

struct Kernel {
    std::string name;
    bool known_parameters;
    std::vector<Parameter> parameters;
    int max_dynamic_shared = 48 * 1024;
};

struct Module {
    std::vector<Kernel> kernels;
    bool ferry;
};

// Null and a fault if the image is none.
Module* load_module(const void* image);
Kernel* find_kernel(Module* module, const char* name);
int launch(Kernel* kernel, Grid grid, Grid block, unsigned shared, void* stream, void** arguments);

// ---- candle.cpp

// Runs one of candle's own kernels as a plain loop; false if the mock has none of that name.
bool run_candle_kernel(const std::string& name, void** arguments);

}  // namespace mock

// What tests ask and tell the mock.
extern "C" {
// Live allocations, and bytes in them.
size_t ferry_mock_live_allocations();
size_t ferry_mock_live_bytes();
// Launches of the kernel so far; of all kernels if null.
size_t ferry_mock_launches(const char* kernel);
// Calls so far in which the host waited for work that was not done yet.
size_t ferry_mock_waits();
// All faults since the last call, one a line; the text stays valid until the next call.
const char* ferry_mock_take_faults();
// Forgets a sticky error, as a new process would.
void ferry_mock_reset();
// The next `count`-th allocation from now on fails for want of memory; 0 fails none.
void ferry_mock_fail_allocation(size_t count);
}
