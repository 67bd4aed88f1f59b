// The emulated device: runs a grid block by block, each CUDA thread a fibre that runs until it
// must wait. Which of the threads that can run comes next is the order's choice: the lowest, the
// highest, or any. A kernel whose result depends on that lacks a barrier.
//
// What a device would leave undefined ends the launch with an error: a thread that ends while
// others wait for it, threads at different barriers, a lane that is missing from a mask.

#include "machine.h"
#include "state.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Saves the callee's registers and the stack pointer, takes those of another fibre.
extern "C" void ferry_emulation_switch(void **save, void *load);

#if defined(__x86_64__)
asm(R"(
.text
.globl ferry_emulation_switch
.hidden ferry_emulation_switch
.type ferry_emulation_switch, @function
ferry_emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size ferry_emulation_switch, . - ferry_emulation_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl ferry_emulation_switch
.hidden ferry_emulation_switch
.type ferry_emulation_switch, %function
ferry_emulation_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size ferry_emulation_switch, . - ferry_emulation_switch
)");
#else
#error "the emulation knows how to switch fibres on x86-64 and aarch64"
#endif

namespace emulation {

namespace {

constexpr size_t STACK = 64 * 1024;
constexpr unsigned MAX_THREADS = 1024;
// What every architecture in the list has for a block's static arrays, and for all of its memory
// (sm_75 has 64 KiB; a kernel that needs more says so in its header).
constexpr size_t MAX_STATIC_SHARED = 48 * 1024;
constexpr size_t MAX_SHARED = 99 * 1024;
// Between shared arrays, so that an index beyond one does not hit the next.
constexpr size_t GUARD = 256;
constexpr size_t ARENA = 256 * 1024;

Kernel *kernels = nullptr;
std::mutex one_launch_at_a_time;

char *stacks = nullptr;
unsigned char *arena = nullptr; // shared memory of the block

enum class Order { Forward, Reverse, Random };
Order order = Order::Forward;
uint64_t random_state = 1;

uint64_t next_random() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

// A set of threads.
struct Threads {
    uint64_t words[MAX_THREADS / 64];

    void clear() { memset(words, 0, sizeof words); }
    void add(unsigned i) { words[i / 64] |= uint64_t(1) << (i % 64); }
    void remove(unsigned i) { words[i / 64] &= ~(uint64_t(1) << (i % 64)); }

    // The lowest member not below `from`, or -1.
    int lowest(unsigned from) const {
        for (unsigned w = from / 64; w < MAX_THREADS / 64; w++) {
            uint64_t word = words[w];
            if (w == from / 64) word &= ~uint64_t(0) << (from % 64);
            if (word) return int(w * 64 + __builtin_ctzll(word));
        }
        return -1;
    }
    int highest() const {
        for (int w = MAX_THREADS / 64 - 1; w >= 0; w--)
            if (words[w]) return w * 64 + 63 - __builtin_clzll(words[w]);
        return -1;
    }
};

struct SharedArray {
    const void *key;
    const char *name;
    unsigned char *start;
    size_t bytes;
};

struct Copy {
    void *to;
    const void *from;
    size_t bytes;
    const void *code;
};

enum class Waits { No, Barrier, Warp, Ended };

struct Fibre {
    void *stack_pointer;
    uint3 index;
    Waits waits;
    int line;
    unsigned mask;
    Operation operation;
    void *data;
    std::vector<std::vector<Copy>> copies; // groups under way; the last one is not committed
};

Fibre fibres[MAX_THREADS];
Threads ready;
unsigned threads, at_barrier;
int barrier_line;
void *scheduler;
const Kernel *kernel;
void **kernel_arguments;
std::vector<SharedArray> shared_arrays;
size_t static_shared, dynamic_bytes, arena_used;
bool failed;
std::string error;

void describe(const char *format, va_list arguments) {
    char text[1024];
    vsnprintf(text, sizeof text, format, arguments);
    char place[256];
    snprintf(place, sizeof place, "%s, block (%u, %u, %u)", kernel ? kernel->name : "?", blockIdx.x,
             blockIdx.y, blockIdx.z);
    error = std::string(place) + ", " + text;
    failed = true;
}

void describe_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void describe_error(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    describe(format, arguments);
    va_end(arguments);
}

void leave() { ferry_emulation_switch(&fibres[current.thread].stack_pointer, scheduler); }

void run_thread() {
    kernel->invoke(kernel_arguments);
    fibres[current.thread].waits = Waits::Ended;
    leave();
    abort(); // nobody resumes an ended fibre
}

void prepare(unsigned thread) {
    Fibre &fibre = fibres[thread];
    fibre.index = {thread % blockDim.x, thread / blockDim.x % blockDim.y,
                   thread / blockDim.x / blockDim.y};
    fibre.waits = Waits::No;
    fibre.copies.assign(1, {});
    warp_epochs[thread] = 0;
    // As `ferry_emulation_switch` would have left it, with `run_thread` to return to.
    auto top = reinterpret_cast<uintptr_t>(stacks) + (thread + 1) * STACK;
    auto words = reinterpret_cast<uintptr_t *>(top);
#if defined(__x86_64__)
    words -= 10; // aligned as after a call
    memset(words, 0, 10 * sizeof *words);
    words[6] = reinterpret_cast<uintptr_t>(&run_thread);
#else
    words -= 20;
    memset(words, 0, 20 * sizeof *words);
    words[11] = reinterpret_cast<uintptr_t>(&run_thread);
#endif
    fibre.stack_pointer = words;
    ready.add(thread);
}

int choose() {
    switch (order) {
    case Order::Forward: return ready.lowest(0);
    case Order::Reverse: return ready.highest();
    case Order::Random: {
        int thread = ready.lowest(next_random() % threads);
        return thread >= 0 ? thread : ready.lowest(0);
    }
    }
    return -1;
}

// Nothing can run, but not all have ended: says who waits for whom.
void describe_stall() {
    unsigned ended = 0, warp = 0;
    int thread_ended = -1, thread_in_warp = -1, thread_at_barrier = -1;
    for (unsigned i = 0; i < threads; i++) {
        switch (fibres[i].waits) {
        case Waits::Ended: ended++, thread_ended = int(i); break;
        case Waits::Warp: warp++, thread_in_warp = int(i); break;
        case Waits::Barrier: thread_at_barrier = int(i); break;
        case Waits::No: break;
        }
    }
    if (thread_in_warp >= 0) {
        const Fibre &fibre = fibres[thread_in_warp];
        describe_error("thread %d waits at line %d for lanes of its warp (mask %08x) that don't come: "
                       "%u threads have ended, %u wait at a barrier",
                       thread_in_warp, fibre.line, fibre.mask, ended, at_barrier);
    } else {
        describe_error("divergent barrier: %u threads wait at __syncthreads of line %d (thread %d), "
                       "%u have ended (thread %d)",
                       at_barrier, barrier_line, thread_at_barrier, ended, thread_ended);
    }
}

// What lies between the shared arrays must be as `poison` left it.
void check_guards() {
    size_t at = 0;
    const char *before = "";
    auto check = [&](size_t end) {
        for (; at < end && !failed; at++)
            if (arena[at] != (at % 2 == 0 ? 0xff : 0x7f))
                describe_error("out of bounds: a write beyond shared array %s", before);
    };
    for (const SharedArray &array : shared_arrays) {
        check(size_t(array.start - arena));
        at = size_t(array.start - arena) + array.bytes;
        before = array.name;
    }
    check(std::min(at + GUARD, ARENA));
}

// NaN as f32, f16 and bf16, and no valid index as an integer.
void poison(size_t from, size_t to) {
    for (size_t i = from / 2; i < (to + 1) / 2; i++)
        reinterpret_cast<uint16_t *>(arena)[i] = 0x7fff;
}

void run_block() {
    current.block++;
    current.epoch = 0;
    current.acquired = false;
    at_barrier = 0;
    poison(0, std::min(arena_used + GUARD, ARENA));
    ready.clear();
    for (unsigned i = 0; i < threads; i++) prepare(i);
    for (unsigned ended = 0; ended < threads;) {
        int thread = choose();
        if (thread < 0) return describe_stall();
        ready.remove(unsigned(thread));
        current.thread = unsigned(thread);
        threadIdx = fibres[thread].index;
        ferry_emulation_switch(&scheduler, fibres[thread].stack_pointer);
        if (failed) return;
        ended += fibres[thread].waits == Waits::Ended;
    }
    check_guards();
}

bool check_launch(dim3 grid, dim3 block, size_t shared) {
    uint64_t count = uint64_t(block.x) * block.y * block.z;
    if (count == 0 || count > MAX_THREADS || block.z > 64)
        describe_error("a block can't have %ux%ux%u threads", block.x, block.y, block.z);
    else if (kernel->threads && (count != kernel->threads || block.x != kernel->threads))
        describe_error("a block must have %ux1x1 threads, is launched with %ux%ux%u", kernel->threads,
                       block.x, block.y, block.z);
    else if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 ||
             grid.z > 65535)
        describe_error("a grid can't have %ux%ux%u blocks", grid.x, grid.y, grid.z);
    else if (shared > MAX_SHARED)
        describe_error("%zu bytes of dynamic shared memory are more than %zu", shared, MAX_SHARED);
    return !failed;
}

int launch(dim3 grid, dim3 block, size_t shared) {
    blockIdx = {0, 0, 0};
    if (!check_launch(grid, block, shared)) return 2;
    if (!stacks) {
        void *slab = mmap(nullptr, MAX_THREADS * STACK + ARENA, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (slab == MAP_FAILED) {
            describe_error("no memory for stacks");
            return 2;
        }
        stacks = static_cast<char *>(slab);
        arena = reinterpret_cast<unsigned char *>(stacks + MAX_THREADS * STACK);
    }
    gridDim = grid;
    blockDim = block;
    threads = block.x * block.y * block.z;
    shared_arrays.clear();
    static_shared = arena_used = 0;
    dynamic_bytes = shared;
    forget_shared();
    current.launch = current.block + 1;
    uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    // Blocks come in no order that a kernel may rely on.
    uint64_t first = order == Order::Random ? next_random() % blocks : 0;
    for (uint64_t i = 0; i < blocks && !failed; i++) {
        uint64_t b = order == Order::Reverse ? blocks - 1 - i : (first + i) % blocks;
        blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
        run_block();
    }
    return failed ? 3 : 0;
}

void *allocate_shared(const void *key, size_t bytes, size_t element, const char *name) {
    size_t start = (arena_used + GUARD + 15) / 16 * 16;
    if (start + bytes + GUARD > ARENA) fail(0, "shared array %s of %zu bytes is too large", name, bytes);
    // What was in use when the block began was poisoned then.
    poison(arena_used == 0 ? 0 : arena_used + GUARD, start + bytes + GUARD);
    arena_used = start + bytes;
    shared_arrays.push_back({key, name, arena + start, bytes});
    watch_region(arena + start, bytes, element, name, true);
    return arena + start;
}

} // namespace

Current current;
uint32_t warp_epochs[MAX_THREADS];

Kernel::Kernel(const char *name, unsigned threads, void (*invoke)(void **), const char *parameters)
    : name(name), threads(threads), invoke(invoke), parameters(parameters), next(kernels) {
    kernels = this;
}

bool on_a_stack(const void *address) {
    auto byte = static_cast<const char *>(address);
    return byte >= stacks && byte < stacks + MAX_THREADS * STACK;
}

void fail(int line, const char *format, ...) {
    char text[900];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (line)
        describe_error("thread %u, line %d: %s", current.thread, line, text);
    else
        describe_error("thread %u: %s", current.thread, text);
    leave();
    abort(); // the launch has ended
}

void barrier(int line) {
    if (at_barrier > 0 && line != barrier_line)
        fail(line, "divergent barrier: other threads wait at that of line %d", barrier_line);
    barrier_line = line;
    at_barrier++;
    if (at_barrier == threads) {
        at_barrier = 0;
        current.epoch++;
        for (unsigned i = 0; i < threads; i++) {
            fibres[i].waits = Waits::No;
            ready.add(i);
        }
    } else {
        fibres[current.thread].waits = Waits::Barrier;
        fibres[current.thread].line = line;
    }
    leave();
}

unsigned lane() { return current.thread % 32; }

void collective(unsigned mask, Operation operation, void *data, int line) {
    Fibre *warp = &fibres[current.thread / 32 * 32];
    unsigned lanes = std::min(32u, threads - current.thread / 32 * 32);
    Fibre &self = fibres[current.thread];
    if (!(mask >> lane() & 1)) fail(line, "the lane is not in its own mask %08x", mask);
    if (lanes < 32 && mask >> lanes) fail(line, "mask %08x names lanes beyond the block's %u", mask, lanes);
    self.waits = Waits::Warp;
    self.line = line;
    self.mask = mask;
    self.operation = operation;
    self.data = data;
    bool complete = true;
    void *all[32] = {};
    for (unsigned i = 0; i < lanes; i++) {
        if (!(mask >> i & 1)) continue;
        const Fibre &other = warp[i];
        if (other.waits == Waits::Ended) fail(line, "lane %u of mask %08x has ended", i, mask);
        if (other.waits != Waits::Warp) {
            complete = false;
        } else if (other.mask != mask || other.operation != operation || other.line != line) {
            fail(line, "divergent warp: lane %u waits at line %d with mask %08x, this one with %08x", i,
                 other.line, other.mask, mask);
        }
        all[i] = other.data;
    }
    if (complete) {
        operation(mask, all, line);
        for (unsigned i = 0; i < lanes; i++) {
            if (!(mask >> i & 1)) continue;
            warp[i].waits = Waits::No;
            ready.add(current.thread / 32 * 32 + i);
        }
    }
    leave();
}

void order_warp(unsigned mask) {
    unsigned first = current.thread / 32 * 32;
    uint32_t latest = 0;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1) latest = std::max(latest, warp_epochs[first + i]);
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1) warp_epochs[first + i] = latest + 1;
}

void acquire() { current.acquired = true; }

void *shared_array(const void *key, size_t bytes, size_t element, const char *name, int line) {
    for (const SharedArray &array : shared_arrays)
        if (array.key == key) return array.start;
    static_shared += (bytes + 15) / 16 * 16;
    if (static_shared > MAX_STATIC_SHARED)
        fail(line, "%zu bytes of static shared memory are more than %zu", static_shared,
             MAX_STATIC_SHARED);
    return allocate_shared(key, bytes, element, name);
}

unsigned char *dynamic_shared(int line) {
    static char key;
    if (dynamic_bytes == 0) fail(line, "the launch has no dynamic shared memory");
    for (const SharedArray &array : shared_arrays)
        if (array.key == &key) return array.start;
    return static_cast<unsigned char *>(allocate_shared(&key, dynamic_bytes, 1, "dynamic shared memory"));
}

void copy_later(void *shared, const void *source, size_t bytes, const void *code) {
    if (reinterpret_cast<uintptr_t>(shared) % bytes || reinterpret_cast<uintptr_t>(source) % bytes)
        fail(0, "an asynchronous copy of %zu bytes is not aligned", bytes);
    fibres[current.thread].copies.back().push_back({shared, source, bytes, code});
}

void commit_copies() { fibres[current.thread].copies.emplace_back(); }

void wait_for_copies(unsigned left) {
    auto &groups = fibres[current.thread].copies;
    while (groups.size() > left + 1) {
        for (const Copy &copy : groups.front()) {
            if (copy.from) touch(copy.from, copy.bytes, Access::Read, copy.code);
            touch(copy.to, copy.bytes, Access::Write, copy.code);
            if (copy.from)
                memcpy(copy.to, copy.from, copy.bytes);
            else
                memset(copy.to, 0, copy.bytes);
        }
        groups.erase(groups.begin());
    }
}

} // namespace emulation

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Runs a kernel as `cuLaunchKernel` would. 0: done; 1: no such kernel; 2: no such launch; 3: the
// kernel did what it must not do.
EXPORTED int ferry_emulate(const char *name, dim3 grid, dim3 block, size_t shared, void **arguments) {
    using namespace emulation;
    std::lock_guard<std::mutex> lock(one_launch_at_a_time);
    failed = false;
    error.clear();
    blockIdx = {0, 0, 0};
    kernel = kernels;
    while (kernel && strcmp(kernel->name, name) != 0) kernel = kernel->next;
    if (!kernel) {
        error = std::string("there is no kernel ") + name;
        return 1;
    }
    kernel_arguments = arguments;
    return launch(grid, block, shared);
}

// What was wrong with the latest launch; valid until the next.
EXPORTED const char *ferry_emulation_error() { return emulation::error.c_str(); }

// The order of threads from now on. 0: the lowest first; 1: the highest first; 2: any, by the seed.
EXPORTED void ferry_emulation_order(int order, uint64_t seed) {
    emulation::order = emulation::Order(order);
    emulation::random_state = seed * 0x9E3779B97F4A7C15u | 1;
}

// The names of the kernels, one after the other; null after the last.
EXPORTED const char *ferry_emulation_kernel(size_t number) {
    const emulation::Kernel *kernel = emulation::kernels;
    while (kernel && number-- > 0) kernel = kernel->next;
    return kernel ? kernel->name : nullptr;
}

// The parameters of a kernel, as in `Kernel`; null if there is none of that name. The mock driver
// copies a launch's arguments by them.
EXPORTED const char *ferry_emulation_parameters(const char *name) {
    const emulation::Kernel *kernel = emulation::kernels;
    while (kernel && strcmp(kernel->name, name) != 0) kernel = kernel->next;
    return kernel ? kernel->parameters : nullptr;
}
