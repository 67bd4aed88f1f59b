// The emulated device, as the words of CUDA in cuda.h use it: threads that are fibres, blocks that
// run one after the other, barriers, warps, shared memory, and what is watched while they run.
//
// Everything here is out of line, in machine.cpp and watch.cpp, which the compiler does not
// instrument: what a kernel does is watched, what the machine does is not.

#pragma once

#include <cstddef>
#include <cstdint>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the thread that runs; changed at every switch of fibres.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulation {

// Ends the launch with an error: of the running thread, at `line` of the kernel's file.
[[noreturn]] void fail(int line, const char *format, ...) __attribute__((format(printf, 2, 3)));

// All threads of the block.
void barrier(int line);

// The lanes of `mask` come together; the last one has `operation` done over what each brought.
// `data` has an entry a lane, null where the lane is not in the mask.
using Operation = void (*)(unsigned mask, void *const *data, int line);
void collective(unsigned mask, Operation operation, void *data, int line);

// Lane of the running thread.
unsigned lane();

// Memory order between the lanes of a mask: what `__syncwarp` adds to a meeting.
void order_warp(unsigned mask);

// The block has seen what other blocks wrote before (`__threadfence`, atomics).
void acquire();

// The shared array of this block that is declared at `key`, full of NaNs at first.
void *shared_array(const void *key, size_t bytes, size_t element, const char *name, int line);
// The dynamic shared memory of the launch.
unsigned char *dynamic_shared(int line);

// An access to memory that the compiler's instrumentation doesn't see, or must not see as plain.
enum class Access { Read, Write, Atomic };
void touch(const void *address, size_t bytes, Access access, const void *code);

// `bytes` from `source` (zeros where null) are copied when their group is waited for, not before.
void copy_later(void *shared, const void *source, size_t bytes, const void *code);
void commit_copies();
// Returns when all but the newest `left` groups have arrived.
void wait_for_copies(unsigned left);

// One kernel of the library; made by FERRY_KERNEL.
struct Kernel {
    const char *name;
    unsigned threads; // that a block must have; 0: any
    void (*invoke)(void **arguments);
    const char *parameters; // a letter each: p a pointer, else by their bytes h (2), i (4), l (8)
    Kernel *next;

    Kernel(const char *name, unsigned threads, void (*invoke)(void **), const char *parameters);
};

} // namespace emulation
