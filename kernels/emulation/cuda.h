// The words of CUDA, so that a kernel's own source compiles as C++ for the host: qualifiers, thread
// indices, barriers, shuffles and votes, atomics, intrinsics. README.md says what there is and how
// it is run; what is not here does not compile, which is better than to compile to something else.

#pragma once

#include "machine.h"
#include "numbers.h"

#include <algorithm>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>

#define __global__ __attribute__((visibility("hidden")))
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __constant__ static
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// An array of shared memory: SHARED_ARRAY(float, tile, [16][33]).
#define SHARED_ARRAY(type, name, dimensions)                                                        \
    static const char name##_key = 0;                                                               \
    typedef type name##_array dimensions;                                                           \
    name##_array &name = *static_cast<name##_array *>(::emulation::shared_array(                    \
        &name##_key, sizeof(name##_array), ::emulation::element_of<type>(), #name, __LINE__))
// The bytes that the launch asks for, aligned to 16: SHARED_DYNAMIC(bytes).
#define SHARED_DYNAMIC(name) unsigned char *name = ::emulation::dynamic_shared(__LINE__)
// At the end of a file, for each entry point: its name, and the threads its blocks must have.
#define FERRY_KERNEL(kernel, threads)                                                               \
    static ::emulation::Kernel kernel##_registered(#kernel, threads,                                \
                                                   &::emulation::invoke<decltype(&kernel), &kernel>, \
                                                   ::emulation::parameters(&kernel))

// Not instrumented. That does not extend to lambdas inside.
#define EMULATION_UNWATCHED __attribute__((no_sanitize("thread"), noinline))

namespace emulation {

// Bytes of what two threads may write side by side: a number, or a member of a structure.
template <typename T> constexpr size_t element_of() {
    return std::is_class<T>::value ? std::min(alignof(T), size_t(4)) : sizeof(T);
}

template <typename... A, size_t... I>
EMULATION_UNWATCHED void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<A> *>(arguments[I])...);
}
template <typename... A> EMULATION_UNWATCHED void call(void (*kernel)(A...), void **arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>());
}
template <typename Pointer, Pointer kernel> void invoke(void **arguments) { call(kernel, arguments); }

// What the parameters of a kernel are, a letter each.
template <typename A> constexpr char letter() {
    return std::is_pointer_v<A> ? 'p' : sizeof(A) == 8 ? 'l' : sizeof(A) == 4 ? 'i' : 'h';
}
template <typename... A> const char *parameters(void (*)(A...)) {
    static const char letters[] = {letter<A>()..., 0};
    return letters;
}

// What a lane brings to a meeting of its warp, and takes from it.
template <typename T> struct Exchange {
    T value;
    int source; // lane whose value is wanted
    T result;
};
struct Vote {
    unsigned value;
    unsigned result;
};

template <typename T>
EMULATION_UNWATCHED void exchange(unsigned mask, void *const *data, int line) {
    for (unsigned i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        auto lane = static_cast<Exchange<T> *>(data[i]);
        if (!(mask >> lane->source & 1))
            fail(line, "a shuffle from lane %d, which is not in mask %08x", lane->source, mask);
        lane->result = static_cast<Exchange<T> *>(data[lane->source])->value;
    }
}
template <typename T> EMULATION_UNWATCHED T shuffle(unsigned mask, T value, int source, int line) {
    Exchange<T> lane{value, source, value};
    collective(mask, &exchange<T>, &lane, line);
    return lane.result;
}

template <typename Combine>
EMULATION_UNWATCHED void vote(unsigned mask, void *const *data, int) {
    unsigned result = Combine::START;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1) result = Combine::add(result, static_cast<Vote *>(data[i])->value, i);
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1) static_cast<Vote *>(data[i])->result = result;
}
template <typename Combine>
EMULATION_UNWATCHED unsigned vote_on(unsigned mask, unsigned value, int line) {
    Vote lane{value, 0};
    collective(mask, &vote<Combine>, &lane, line);
    return lane.result;
}
#define EMULATION_VOTE(Name, start, expression)                                                     \
    struct Name {                                                                                   \
        static constexpr unsigned START = start;                                                    \
        static unsigned add(unsigned sum, unsigned value, unsigned lane) {                          \
            (void)lane;                                                                             \
            return expression;                                                                      \
        }                                                                                           \
    }
EMULATION_VOTE(Ballot, 0, sum | (value ? 1u : 0u) << lane);
EMULATION_VOTE(Sum, 0, sum + value);
EMULATION_VOTE(Min, UINT_MAX, std::min(sum, value));
EMULATION_VOTE(Max, 0, std::max(sum, value));
EMULATION_VOTE(SignedMin, unsigned(INT_MAX), unsigned(std::min(int(sum), int(value))));
EMULATION_VOTE(SignedMax, unsigned(INT_MIN), unsigned(std::max(int(sum), int(value))));
EMULATION_VOTE(And, UINT_MAX, sum &value);
EMULATION_VOTE(Or, 0, sum | value);
#undef EMULATION_VOTE

template <typename T>
EMULATION_UNWATCHED void match(unsigned mask, void *const *data, int) {
    for (unsigned i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        auto lane = static_cast<std::pair<T, unsigned> *>(data[i]);
        lane->second = 0;
        for (unsigned j = 0; j < 32; j++)
            if (mask >> j & 1 && static_cast<std::pair<T, unsigned> *>(data[j])->first == lane->first)
                lane->second |= 1u << j;
    }
}

EMULATION_UNWATCHED inline void meet(unsigned mask, void *const *, int) { order_warp(mask); }

template <typename T, typename Change>
EMULATION_UNWATCHED T atomically(T *address, Change change) {
    touch(address, sizeof(T), Access::Atomic, __builtin_return_address(0));
    T before = *address;
    *address = change(before);
    return before;
}

} // namespace emulation

// Each of these is where it is called: the line tells one barrier from another.
#define EMULATION_HERE int line = __builtin_LINE()

inline void __syncthreads(EMULATION_HERE) { emulation::barrier(line); }
inline void __syncwarp(unsigned mask = 0xffffffff, EMULATION_HERE) {
    char nothing;
    emulation::collective(mask, &emulation::meet, &nothing, line);
}
inline void __threadfence() { emulation::acquire(); }
inline void __threadfence_block() {}

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATION_HERE) {
    int first = int(emulation::lane()) & ~(width - 1);
    return emulation::shuffle(mask, value, first + (source & (width - 1)), line);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATION_HERE) {
    int lane = int(emulation::lane()), source = lane ^ lanes;
    int end = (lane & ~(width - 1)) + width;
    return emulation::shuffle(mask, value, source < end ? source : lane, line);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, EMULATION_HERE) {
    int lane = int(emulation::lane()), source = lane + int(lanes);
    int end = (lane & ~(width - 1)) + width;
    return emulation::shuffle(mask, value, source < end ? source : lane, line);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, EMULATION_HERE) {
    int lane = int(emulation::lane()), source = lane - int(lanes);
    return emulation::shuffle(mask, value, source >= (lane & ~(width - 1)) ? source : lane, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATION_HERE) {
    return emulation::vote_on<emulation::Ballot>(mask, predicate != 0, line);
}
inline int __any_sync(unsigned mask, int predicate, EMULATION_HERE) {
    return emulation::vote_on<emulation::Ballot>(mask, predicate != 0, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATION_HERE) {
    return emulation::vote_on<emulation::Ballot>(mask, predicate != 0, line) == mask;
}
template <typename T> inline unsigned __match_any_sync(unsigned mask, T value, EMULATION_HERE) {
    std::pair<T, unsigned> lane(value, 0);
    emulation::collective(mask, &emulation::match<T>, &lane, line);
    return lane.second;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, EMULATION_HERE) {
    return emulation::vote_on<emulation::Sum>(mask, value, line);
}
inline int __reduce_add_sync(unsigned mask, int value, EMULATION_HERE) {
    return int(emulation::vote_on<emulation::Sum>(mask, unsigned(value), line));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, EMULATION_HERE) {
    return emulation::vote_on<emulation::Min>(mask, value, line);
}
inline int __reduce_min_sync(unsigned mask, int value, EMULATION_HERE) {
    return int(emulation::vote_on<emulation::SignedMin>(mask, unsigned(value), line));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, EMULATION_HERE) {
    return emulation::vote_on<emulation::Max>(mask, value, line);
}
inline int __reduce_max_sync(unsigned mask, int value, EMULATION_HERE) {
    return int(emulation::vote_on<emulation::SignedMax>(mask, unsigned(value), line));
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, EMULATION_HERE) {
    return emulation::vote_on<emulation::And>(mask, value, line);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, EMULATION_HERE) {
    return emulation::vote_on<emulation::Or>(mask, value, line);
}
#undef EMULATION_HERE

template <typename T> inline T atomicAdd(T *address, T value) {
    return emulation::atomically(address, [=](T before) { return T(before + value); });
}
template <typename T> inline T atomicSub(T *address, T value) {
    return emulation::atomically(address, [=](T before) { return T(before - value); });
}
template <typename T> inline T atomicMax(T *address, T value) {
    return emulation::atomically(address, [=](T before) { return std::max(before, value); });
}
template <typename T> inline T atomicMin(T *address, T value) {
    return emulation::atomically(address, [=](T before) { return std::min(before, value); });
}
template <typename T> inline T atomicOr(T *address, T value) {
    return emulation::atomically(address, [=](T before) { return T(before | value); });
}
template <typename T> inline T atomicExch(T *address, T value) {
    return emulation::atomically(address, [=](T) { return value; });
}
template <typename T> inline T atomicCAS(T *address, T compare, T value) {
    return emulation::atomically(address, [=](T before) { return before == compare ? value : before; });
}
inline unsigned atomicInc(unsigned *address, unsigned limit) {
    return emulation::atomically(
        address, [=](unsigned before) { return before >= limit ? 0 : before + 1; });
}

using std::max;
using std::min;

template <typename T> inline T __ldg(const T *address) { return *address; }
inline float __uint_as_float(unsigned bits) { return emulation::bits_as<float>(bits); }
inline float __int_as_float(int bits) { return emulation::bits_as<float>(bits); }
inline unsigned __float_as_uint(float value) { return emulation::bits_as<unsigned>(value); }
inline int __float_as_int(float value) { return emulation::bits_as<int>(value); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(unsigned(bits)) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __float2int_rn(float value) { return int(nearbyintf(value)); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    uint64_t bytes = uint64_t(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = selector >> 4 * i & 0xf;
        unsigned byte = unsigned(bytes >> 8 * (pick & 7)) & 0xff;
        if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= byte << 8 * i;
    }
    return result;
}
// Four products of signed bytes, summed up.
inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++) sum += int(int8_t(a >> 8 * i)) * int(int8_t(b >> 8 * i));
    return sum;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    for (int i = 0; i < 4; i++) sum += unsigned(uint8_t(a >> 8 * i)) * uint8_t(b >> 8 * i);
    return sum;
}

// The device's approximations are as good as the host's own functions, to some 2 ulp.
inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }
inline float __expf(float value) { return expf(value); }
inline float __logf(float value) { return logf(value); }
inline float __sinf(float value) { return sinf(value); }
inline float __cosf(float value) { return cosf(value); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float value) { return 1.0f / value; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __saturatef(float value) { return value > 0 ? (value < 1 ? value : 1) : 0; }
