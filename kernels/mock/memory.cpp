// Device memory: each allocation ends where a page begins that nobody may touch, and begins after
// another such page. What is written in the bytes between its edges and those pages is seen when
// the edges are checked. New memory holds NaN in every float type, so that what is read before it
// is written shows. Freed memory is not reused for long.

#include "device.h"

#include <csetjmp>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <sys/mman.h>
#include <unistd.h>

namespace mock {

namespace {

constexpr size_t ALIGNMENT = 16;
constexpr unsigned char EDGE = 0xA5;
// A NaN as f16, bf16 and, twice, as f32.
constexpr uint16_t UNWRITTEN = 0x7FC1;
// Freed allocations whose addresses are kept from reuse.
constexpr size_t QUARANTINE = 4096;

struct Allocation {
    char* map;
    size_t map_bytes;
    size_t bytes;
    size_t number;
};

std::map<uint64_t, Allocation> live;
std::deque<std::pair<char*, size_t>> freed;
std::map<const char*, size_t> pinned;
size_t live_bytes = 0;
size_t allocations = 0;
size_t fail_in = 0;

const size_t PAGE = static_cast<size_t>(sysconf(_SC_PAGESIZE));

char* body(const Allocation& a) { return a.map + PAGE; }
char* body_end(const Allocation& a) { return a.map + a.map_bytes - PAGE; }

std::map<uint64_t, Allocation>::iterator containing(uint64_t address) {
    auto after = live.upper_bound(address);
    if (after == live.begin()) return live.end();
    auto found = std::prev(after);
    return address < found->first + found->second.bytes ? found : live.end();
}

}  // namespace

size_t memory_total() {
    static const size_t total = [] {
        const char* text = getenv("FERRY_MOCK_CUDA_MEMORY");
        return text ? strtoull(text, nullptr, 10) : size_t{2} << 30;
    }();
    return total;
}

size_t memory_free() { return memory_total() - live_bytes; }

bool allocation_must_fail() { return fail_in > 0 && --fail_in == 0; }

int allocate(uint64_t* address, size_t bytes) {
    if (bytes == 0) return fault(INVALID_VALUE, "an allocation of 0 bytes");
    if (bytes > memory_free()) return OUT_OF_MEMORY;
    Allocation made{nullptr, 0, bytes, ++allocations};
    made.map_bytes = 2 * PAGE + (bytes + PAGE - 1) / PAGE * PAGE;
    void* map = mmap(nullptr, made.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return OUT_OF_MEMORY;
    made.map = static_cast<char*>(map);
    size_t body_bytes = made.map_bytes - 2 * PAGE;
    if (mprotect(body(made), body_bytes, PROT_READ | PROT_WRITE) != 0) {
        munmap(map, made.map_bytes);
        return OUT_OF_MEMORY;
    }
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    char* start = body_end(made) - rounded;
    memset(body(made), EDGE, static_cast<size_t>(start - body(made)));
    for (size_t i = 0; i < bytes; i += 2) memcpy(start + i, &UNWRITTEN, bytes - i < 2 ? 1 : 2);
    memset(start + bytes, EDGE, rounded - bytes);
    *address = reinterpret_cast<uint64_t>(start);
    live[*address] = made;
    live_bytes += bytes;
    return SUCCESS;
}

// Bytes before an allocation that are looked at after each launch; at its end, all are.
constexpr ptrdiff_t NEAR = 64;

static bool edges_of(uint64_t address, const Allocation& a, bool all) {
    const char* start = reinterpret_cast<const char*>(address);
    for (const char* p = all || start - body(a) < NEAR ? body(a) : start - NEAR; p < start; p++)
        if (static_cast<unsigned char>(*p) != EDGE) return false;
    for (const char* p = start + a.bytes; p < body_end(a); p++)
        if (static_cast<unsigned char>(*p) != EDGE) return false;
    return true;
}

bool edges_intact(std::string* which) {
    for (auto& [address, a] : live) {
        if (edges_of(address, a, false)) continue;
        *which = "allocation " + std::to_string(a.number) + " of " + std::to_string(a.bytes) + " bytes";
        // Told once is enough.
        char* start = reinterpret_cast<char*>(address);
        memset(body(a), EDGE, static_cast<size_t>(start - body(a)));
        memset(start + a.bytes, EDGE, static_cast<size_t>(body_end(a) - start) - a.bytes);
        return false;
    }
    return true;
}

int release(uint64_t address) {
    auto found = live.find(address);
    if (found == live.end()) return fault(INVALID_VALUE, "a free of 0x%llx, which is no allocation", (unsigned long long)address);
    Allocation a = found->second;
    int result = SUCCESS;
    if (!edges_of(address, a, true))
        result = fault(ILLEGAL_ADDRESS, "something was written past the edges of allocation %zu of %zu bytes", a.number, a.bytes);
    live.erase(found);
    live_bytes -= a.bytes;
    mprotect(a.map, a.map_bytes, PROT_NONE);
    madvise(a.map, a.map_bytes, MADV_DONTNEED);
    freed.emplace_back(a.map, a.map_bytes);
    if (freed.size() > QUARANTINE) {
        munmap(freed.front().first, freed.front().second);
        freed.pop_front();
    }
    return result;
}

const char* wrong_with(uint64_t address, size_t bytes) {
    auto found = containing(address);
    if (found == live.end()) return "is in no live allocation";
    if (address + bytes > found->first + found->second.bytes) return "goes past the end of its allocation";
    return nullptr;
}

size_t bytes_from(uint64_t address) {
    auto found = containing(address);
    return found == live.end() ? 0 : found->first + found->second.bytes - address;
}

bool is_pinned(const void* host, size_t bytes) {
    auto p = static_cast<const char*>(host);
    auto after = pinned.upper_bound(p);
    if (after == pinned.begin()) return false;
    auto found = std::prev(after);
    return p + bytes <= found->first + found->second;
}

void* allocate_pinned(size_t bytes) {
    auto host = static_cast<char*>(aligned_alloc(4096, (bytes + 4095) / 4096 * 4096));
    if (host) pinned[host] = bytes;
    return host;
}

bool release_pinned(void* host) {
    if (pinned.erase(static_cast<const char*>(host)) == 0) return false;
    free(host);
    return true;
}

// ---- What touches a page that it may not: the work is left where it stands, as on a device.

namespace {

thread_local sigjmp_buf* back = nullptr;
thread_local uint64_t touched = 0;
struct sigaction before[2];

void on_signal(int number, siginfo_t* info, void* context) {
    if (back) {
        touched = reinterpret_cast<uint64_t>(info->si_addr);
        siglongjmp(*back, 1);
    }
    struct sigaction& previous = before[number == SIGBUS];
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(number, info, context);
    } else if (previous.sa_handler != SIG_IGN && previous.sa_handler != SIG_DFL) {
        previous.sa_handler(number);
    } else {
        sigaction(number, &previous, nullptr);
    }
}

void watch() {
    static const bool once = [] {
        struct sigaction action {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &before[0]);
        sigaction(SIGBUS, &action, &before[1]);
        return true;
    }();
    (void)once;
}

std::string place(uint64_t address) {
    char text[160];
    for (auto& [start, a] : live) {
        auto map = reinterpret_cast<uint64_t>(a.map);
        if (address < map || address >= map + a.map_bytes) continue;
        snprintf(text, sizeof text, "byte %lld of allocation %zu, which has %zu bytes", (long long)(address - start), a.number, a.bytes);
        return text;
    }
    for (auto& [map, bytes] : freed) {
        auto start = reinterpret_cast<uint64_t>(map);
        if (address >= start && address < start + bytes) return "an allocation that was freed";
    }
    snprintf(text, sizeof text, "0x%llx, which is no device memory", (unsigned long long)address);
    return text;
}

}  // namespace

bool guarded(const std::function<int()>& work, int* result, std::string* what) {
    watch();
    sigjmp_buf here;
    sigjmp_buf* outer = back;
    if (sigsetjmp(here, 1) == 0) {
        back = &here;
        *result = work();
        back = outer;
        return true;
    }
    back = outer;
    *what = place(touched);
    return false;
}

}  // namespace mock

extern "C" size_t ferry_mock_live_allocations() {
    std::lock_guard<std::recursive_mutex> held(mock::lock);
    return mock::live.size();
}

extern "C" size_t ferry_mock_live_bytes() {
    std::lock_guard<std::recursive_mutex> held(mock::lock);
    return mock::live_bytes;
}

extern "C" void ferry_mock_fail_allocation(size_t count) {
    std::lock_guard<std::recursive_mutex> held(mock::lock);
    mock::fail_in = count;
}
