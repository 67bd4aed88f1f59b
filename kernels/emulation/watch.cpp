// Watches every access of a kernel to memory: is it inside a buffer or shared array, aligned, and
// ordered by a barrier against what other threads did there?
//
// The kernel is compiled with `-fsanitize=thread`, which has the compiler call a function at each
// load and store. These functions are here, instead of the sanitizer's: it knows threads and locks,
// not blocks, barriers and warps. A kernel compiled without the flag runs faster, unwatched.
//
// Two accesses by different threads to the same element race if one of them writes, not both are
// atomic, and no `__syncthreads` (or, within a warp, no `__syncwarp`) lies between. Shuffles are
// no barriers: they say nothing about memory. Blocks of a launch are ordered by nothing but
// fences and atomics; that the later block has one of them behind it is taken for good here.

#include "state.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <string>
#include <vector>

// First and last byte of this library, from the linker.
extern "C" __attribute__((visibility("hidden"))) char __ehdr_start, _end;

namespace emulation {

namespace {

constexpr unsigned SEVERAL_LANES = 0xfffe; // threads of one warp
constexpr unsigned SEVERAL_WARPS = 0xffff;

// Who was there last, and when.
struct Stamp {
    const void *code;
    uint32_t block, epoch, warp_epoch;
    uint16_t thread, warp;
    bool atomic;
};

struct Cell {
    Stamp write, read;
};

struct Region {
    const char *start, *end;
    size_t element;
    std::string name;
    bool shared;
    std::vector<Cell> cells;
};

std::vector<Region> regions;
size_t latest;

// File and line of an instruction of this library.
std::string place_of(const void *code) {
    Dl_info info;
    if (!code || !dladdr(code, &info) || !info.dli_fname) return "?";
    char command[4096];
    auto offset = static_cast<const char *>(code) - static_cast<const char *>(info.dli_fbase);
    snprintf(command, sizeof command, "addr2line -s -e '%s' %#zx 2>/dev/null", info.dli_fname,
             size_t(offset) - 1);
    std::string place;
    if (FILE *pipe = popen(command, "r")) {
        char line[512];
        if (fgets(line, sizeof line, pipe)) place = line;
        pclose(pipe);
    }
    place.erase(std::remove(place.begin(), place.end(), '\n'), place.end());
    place = place.substr(0, place.find(" (discriminator"));
    return place.empty() || place[0] == '?' ? info.dli_fname : place;
}

// Did another thread do this, with nothing that orders it before the running one?
bool unordered(const Stamp &stamp, const Region &region) {
    if (stamp.block < current.launch || stamp.block == 0) return false;
    if (stamp.block != current.block) return !region.shared && !current.acquired;
    if (stamp.epoch < current.epoch || stamp.thread == current.thread) return false;
    if (stamp.thread == SEVERAL_WARPS || stamp.warp != current.thread / 32) return true;
    return stamp.warp_epoch >= warp_epochs[current.thread];
}

void report_race(const Region &region, size_t index, const Stamp &before, const char *what,
                 const char *now, const void *code) {
    char who[64];
    if (before.thread >= SEVERAL_LANES)
        snprintf(who, sizeof who, "several threads");
    else
        snprintf(who, sizeof who, "thread %u", before.thread);
    const char *other = before.block == current.block ? "" : " of another block";
    fail(0, "race at %s[%zu]: %s here (%s), %s by %s%s (%s), and no barrier between",
         region.name.c_str(), index, now, place_of(code).c_str(), what, who, other,
         place_of(before.code).c_str());
}

void note_read(Cell &cell, const Stamp &now) {
    Stamp &read = cell.read;
    bool same_time = read.block == now.block && read.epoch == now.epoch;
    if (!same_time || read.thread == now.thread) {
        read = now;
    } else if (read.warp == now.warp && read.thread != SEVERAL_WARPS) {
        // A lane that was ordered by a `__syncwarp` since is forgotten.
        bool ordered = read.warp_epoch < now.warp_epoch;
        read = now;
        if (!ordered) read.thread = SEVERAL_LANES;
    } else {
        read = now;
        read.thread = SEVERAL_WARPS;
    }
}

void check(Region &region, size_t index, Access access, const void *code) {
    Cell &cell = region.cells[index];
    Stamp now{code, current.block, current.epoch, warp_epochs[current.thread],
              uint16_t(current.thread), uint16_t(current.thread / 32), access == Access::Atomic};
    bool both_atomic = now.atomic && cell.write.atomic;
    if (!both_atomic && unordered(cell.write, region))
        report_race(region, index, cell.write, "written",
                    access == Access::Read ? "read" : "written", code);
    if (access == Access::Read) return note_read(cell, now);
    if (unordered(cell.read, region))
        report_race(region, index, cell.read, "read", "written", code);
    cell.write = now;
    if (now.atomic) current.acquired = true;
}

Region *region_of(const char *address) {
    if (latest < regions.size() && address >= regions[latest].start && address < regions[latest].end)
        return &regions[latest];
    for (size_t i = 0; i < regions.size(); i++) {
        if (address >= regions[i].start && address < regions[i].end) {
            latest = i;
            return &regions[i];
        }
    }
    return nullptr;
}

// The region whose end or start is nearest, to say what was probably meant.
void report_outside(const char *address, size_t bytes, Access access, const void *code) {
    const Region *nearest = nullptr;
    size_t distance = ~size_t(0);
    for (const Region &region : regions) {
        size_t away = address >= region.end ? size_t(address - region.end) + 1
                                            : size_t(region.start - address);
        if (away < distance) distance = away, nearest = &region;
    }
    const char *what = access == Access::Read ? "read" : "write";
    std::string place = place_of(code);
    if (!nearest || distance > (size_t(1) << 24))
        fail(0, "out of bounds: a %s of %zu bytes outside of every buffer (%s)", what, bytes,
             place.c_str());
    auto index = (address - nearest->start) / ptrdiff_t(nearest->element);
    fail(0, "out of bounds: a %s of %zu bytes at %s[%td], which has %zu elements (%s)", what, bytes,
         nearest->name.c_str(), index, size_t(nearest->end - nearest->start) / nearest->element,
         place.c_str());
}

} // namespace

void watch_region(const void *start, size_t bytes, size_t element, const char *name, bool shared) {
    auto first = static_cast<const char *>(start);
    regions.push_back({first, first + bytes, element, name, shared, {}});
    regions.back().cells.resize((bytes + element - 1) / element);
}

void forget_shared() {
    regions.erase(std::remove_if(regions.begin(), regions.end(),
                                 [](const Region &region) { return region.shared; }),
                  regions.end());
}

void touch(const void *pointer, size_t bytes, Access access, const void *code) {
    auto address = static_cast<const char *>(pointer);
    if (on_a_stack(address)) return;
    Region *region = region_of(address);
    if (!region) {
        bool of_library = address >= &__ehdr_start && address < &_end;
        // Nobody told of any buffer: nothing is watched.
        if (of_library || std::none_of(regions.begin(), regions.end(),
                                       [](const Region &region) { return !region.shared; }))
            return;
        report_outside(address, bytes, access, code);
    }
    if (address + bytes > region->end) report_outside(address, bytes, access, code);
    if ((bytes == 2 || bytes == 4 || bytes == 8 || bytes == 16) &&
        reinterpret_cast<uintptr_t>(address) % bytes != 0)
        fail(0, "misaligned: an access of %zu bytes to %s at byte %td (%s)", bytes,
             region->name.c_str(), address - region->start, place_of(code).c_str());
    size_t first = size_t(address - region->start) / region->element;
    size_t last = size_t(address + bytes - 1 - region->start) / region->element;
    for (size_t i = first; i <= last; i++) check(*region, i, access, code);
}

} // namespace emulation

// A buffer of the kernels to come: only such memory may they touch. `element`: bytes of one value.
extern "C" __attribute__((visibility("default"))) void
ferry_emulation_watch(const void *start, size_t bytes, size_t element, const char *name) {
    emulation::watch_region(start, bytes, element, name, false);
}

// No buffer is known any more, and nothing is watched.
extern "C" __attribute__((visibility("default"))) void ferry_emulation_forget() {
    emulation::regions.clear();
}

using emulation::Access;
using emulation::touch;

extern "C" {

#define ACCESSES(BYTES)                                                                             \
    void __tsan_read##BYTES(void *a) { touch(a, BYTES, Access::Read, __builtin_return_address(0)); } \
    void __tsan_write##BYTES(void *a) {                                                             \
        touch(a, BYTES, Access::Write, __builtin_return_address(0));                                \
    }                                                                                               \
    void __tsan_unaligned_read##BYTES(void *a) {                                                    \
        touch(a, BYTES, Access::Read, __builtin_return_address(0));                                 \
    }                                                                                               \
    void __tsan_unaligned_write##BYTES(void *a) {                                                   \
        touch(a, BYTES, Access::Write, __builtin_return_address(0));                                \
    }                                                                                               \
    void __tsan_read##BYTES##_pc(void *a, void *code) { touch(a, BYTES, Access::Read, code); }      \
    void __tsan_write##BYTES##_pc(void *a, void *code) { touch(a, BYTES, Access::Write, code); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void *a, size_t bytes) {
    if (bytes) touch(a, bytes, Access::Read, __builtin_return_address(0));
}
void __tsan_write_range(void *a, size_t bytes) {
    if (bytes) touch(a, bytes, Access::Write, __builtin_return_address(0));
}
void *__tsan_memcpy(void *to, const void *from, size_t bytes) {
    __tsan_read_range(const_cast<void *>(from), bytes);
    __tsan_write_range(to, bytes);
    return memcpy(to, from, bytes);
}
void *__tsan_memset(void *to, int value, size_t bytes) {
    __tsan_write_range(to, bytes);
    return memset(to, value, bytes);
}
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
}
