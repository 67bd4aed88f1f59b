// What the sampling kernels share: a row's parameters as the host gives them, weights of logits to
// the last bit as src/generation/sampling/scan.rs has them, and the selection of the logit at which
// a count or a weight is reached, without sorting.

#pragma once

#include "vectors.cuh"

namespace ferry {

// Of CHUNK logits; the argmax is within the chunk, `sum` of e^(x - max), or of e^x if all are -inf.
struct ChunkStatistics {
    float max;
    int argmax;
    float sum;
    int unused;
};

// How a row's token is drawn: 64 bytes, as `SamplingParameters` has it, validated. What is not here,
// `typical_p`, is the CPU's to do.
struct SampleRow {
    // The draw is the one of number `draws` (from 0) of this seed.
    unsigned long long seed;
    unsigned long long draws;
    float temperature;
    // 0 for all.
    unsigned top_k;
    float top_p;
    float min_p;
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    // Row of `masks`; < 0: all tokens are allowed.
    int mask;
    // Its part of `changes`.
    unsigned first_change;
    unsigned changes;
    unsigned unused[2];
};

// A token whose logit is changed: 16 bytes. In a row they ascend, each below the vocabulary.
struct SampleChange {
    unsigned token;
    // Not 0: it occurs in the prompt or was generated.
    unsigned occurs;
    // How often it was generated.
    unsigned generated;
    float bias;
};

namespace sampling {

using Mass = unsigned long long;

// Logits of a chunk: those of src/ops/logit_statistics.rs, and a whole number of groups.
constexpr int CHUNK = 8192;
// Tokens of a group: a word of a mask.
constexpr int GROUP = 32;
// Threads of a block that does a row.
constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / WARP;
// What a row's token is if none can be.
constexpr int NOT_FINITE = -1;
constexpr int NONE_ALLOWED = -2;

// e^((logit - max) * scale), 0 from e^-87 down: the same operations in the same order as on the
// CPU, none fused.
__device__ __forceinline__ float weight(float logit, float max, float scale) {
    // Adding it rounds to an integer, which then stands in the low bits.
    constexpr float ROUND = 12582912.0f;
    const float x = __fmul_rn(__fadd_rn(logit, -max), scale);
    const float clamped = x > -87.0f ? x : -87.0f;
    const float shifted = __fadd_rn(__fmul_rn(clamped, 1.44269504f), ROUND);
    const float n = __fadd_rn(shifted, -ROUND);
    const float r =
        __fadd_rn(__fadd_rn(clamped, -__fmul_rn(n, 0.693359375f)), -__fmul_rn(n, -2.12194440e-4f));
    float series = 1.0f / 720.0f;
    series = __fadd_rn(__fmul_rn(series, r), 1.0f / 120.0f);
    series = __fadd_rn(__fmul_rn(series, r), 1.0f / 24.0f);
    series = __fadd_rn(__fmul_rn(series, r), 1.0f / 6.0f);
    series = __fadd_rn(__fmul_rn(series, r), 0.5f);
    series = __fadd_rn(__fmul_rn(series, r), 1.0f);
    series = __fadd_rn(__fmul_rn(series, r), 1.0f);
    const float power = __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
    return x > -87.0f ? __fmul_rn(series, power) : 0.0f;
}

// A weight in units of 2^-45, rounded down: sums of these are exact, and so the same in any order.
// 2^18 weights of 1 fit.
__device__ __forceinline__ Mass mass_of(float weight) {
    const unsigned bits = __float_as_uint(weight);
    const int exponent = static_cast<int>(bits >> 23) - 105;
    const Mass mantissa = (bits & 0x7fffff) | 0x800000;
    if (exponent < -23) return 0;
    return exponent < 0 ? mantissa >> -exponent : mantissa << exponent;
}

// Below that, (max - logit) / temperature gives no mass.
constexpr float NO_MASS = 32.0f;

// Ascends as the number does; -0 is below 0, as for Rust's `total_cmp`.
__device__ __forceinline__ unsigned key_of(float x) {
    const unsigned bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float float_of(unsigned key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// SplitMix64, as src/generation/sampling/random.rs: a number of [0, 1) in steps of 2^-53.
__device__ __forceinline__ double unit(unsigned long long seed, unsigned long long draws) {
    unsigned long long mixed = seed + (draws + 1) * 0x9e3779b97f4a7c15ull;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9ull;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebull;
    mixed ^= mixed >> 31;
    return static_cast<double>(mixed >> 11) * 0x1p-53;
}

template <typename T> __device__ __forceinline__ T warp_total(T x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

// Over a block of THREADS, for each of its threads. A barrier.
template <typename T> __device__ __forceinline__ T block_total(T x) {
    SHARED_ARRAY(T, of_warp, [WARPS]);
    x = warp_total(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_total(of_warp[threadIdx.x % WARP]);
}

// The sum of those of the threads before this one in a block of THREADS. A barrier.
__device__ __forceinline__ Mass block_before(Mass x) {
    SHARED_ARRAY(Mass, of_warp, [WARPS]);
    const int lane = threadIdx.x % WARP;
    Mass sum = x;
#pragma unroll
    for (int lanes = 1; lanes < WARP; lanes *= 2) {
        const Mass other = __shfl_up_sync(ALL_LANES, sum, lanes);
        if (lane >= lanes) sum += other;
    }
    __syncthreads();
    if (lane == WARP - 1) of_warp[threadIdx.x / WARP] = sum;
    __syncthreads();
    Mass warps = static_cast<int>(threadIdx.x / WARP) > lane ? of_warp[lane] : 0;
    return warp_total(warps) + sum - x;
}

// Order of (logit, id) in one number: the larger logit, of equal ones (0 and -0 among them) the
// lower id.
__device__ __forceinline__ unsigned long long rank_of(float logit, int token) {
    return static_cast<unsigned long long>(key_of(logit + 0.0f)) << 32 |
           (0xffffffffu - static_cast<unsigned>(token));
}

__device__ __forceinline__ unsigned long long warp_highest(unsigned long long x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        const unsigned long long other = __shfl_xor_sync(ALL_LANES, x, lanes);
        if (other > x) x = other;
    }
    return x;
}

// The highest in a block of THREADS, for each of its threads. A barrier.
__device__ __forceinline__ unsigned long long block_highest(unsigned long long x) {
    SHARED_ARRAY(unsigned long long, of_warp, [WARPS]);
    x = warp_highest(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_highest(of_warp[threadIdx.x % WARP]);
}

// A row's chunks put together, the same in each thread of a block of THREADS. A barrier.
struct Statistics {
    // `rank_of` the largest logit.
    unsigned long long best;
    float max;
    // Not finite when a logit is NaN or +inf, or all are -inf.
    float log_sum_exp;
};

__device__ __forceinline__ Statistics combine(const ChunkStatistics *chunks, int chunk_count) {
    unsigned long long best = 0;
    for (int i = threadIdx.x; i < chunk_count; i += THREADS) {
        const unsigned long long rank = rank_of(chunks[i].max, i * CHUNK + chunks[i].argmax);
        if (rank > best) best = rank;
    }
    best = block_highest(best);
    const float max = float_of(static_cast<unsigned>(best >> 32));
    // Each warp does it, in the same order.
    double sum = 0.0;
    for (int i = threadIdx.x % WARP; i < chunk_count; i += WARP) {
        const ChunkStatistics chunk = chunks[i];
        // A chunk of -inf has nothing, unless it is NaN.
        sum += chunk.max == -INFINITY
                   ? 0.0 * chunk.sum
                   : chunk.sum * exp(static_cast<double>(chunk.max) - static_cast<double>(max));
    }
    sum = warp_total(sum);
    return {best, max, static_cast<float>(max + log(sum))};
}

// A row's logits, changed where they are.
struct Logits {
    const float *at;
    int vocabulary;
    // A bit for each token that is allowed; null: all are.
    const unsigned *mask;
    int mask_words;

    __device__ __forceinline__ unsigned allowed(int group) const {
        if (mask == nullptr) return 0xffffffffu;
        return group < mask_words ? mask[group] : 0;
    }

    // Calls `visit(token, logit)` for what is allowed, by all threads of a block together.
    template <typename Visit> __device__ __forceinline__ void each(Visit visit) const {
        if (vocabulary % 4 == 0) {
            for (int token = threadIdx.x * 4; token < vocabulary; token += THREADS * 4) {
                const Floats<4> logits = load<4>(at + token);
                const unsigned bits = allowed(token / GROUP) >> token % GROUP;
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (bits >> i & 1) visit(token + i, logits.at[i]);
            }
        } else {
            for (int token = threadIdx.x; token < vocabulary; token += THREADS)
                if (allowed(token / GROUP) >> token % GROUP & 1) visit(token, at[token]);
        }
    }
};

// The same, of the few that were collected.
struct Candidates {
    const unsigned *keys;
    const int *tokens;
    int count;

    template <typename Visit> __device__ __forceinline__ void each(Visit visit) const {
        for (int i = threadIdx.x; i < count; i += THREADS) visit(tokens[i], float_of(keys[i]));
    }
};

// Where a target was reached: by how much of those that have this key.
struct Cut {
    unsigned key;
    Mass rest;
};

// Shared memory of `select`.
struct Scratch {
    // [THREADS]
    Mass *bins;
    Cut *found;
};

// Adds up `measure(token, logit)` by descending `key(token, logit)`, of the keys in low..=high, and
// says at which one the sum reaches `target`, which is above 0 and at most the whole sum.
//
// Each pass cuts the range in 1024 bins, whose sums are integers, and goes on with the one where it
// happens: three passes for the range of logits that matters, four at most.
template <typename Source, typename Key, typename Measure>
__device__ __forceinline__ Cut select(const Scratch &scratch, const Source &source, unsigned low,
                                      unsigned high, Mass target, Key key, Measure measure) {
    Mass *bins = scratch.bins;
    while (true) {
        const int shift = max(0, 22 - __clz(high - low));
        __syncthreads();
        bins[threadIdx.x] = 0;
        if (threadIdx.x == 0) *scratch.found = {low, 1};
        __syncthreads();
        source.each([&](int token, float logit) {
            const unsigned k = key(token, logit);
            if (k < low || k > high) return;
            const Mass mass = measure(token, logit);
            if (mass != 0) atomicAdd(&bins[(high - k) >> shift], mass);
        });
        __syncthreads();
        const Mass own = bins[threadIdx.x];
        const Mass before = block_before(own);
        if (before < target && target - before <= own) {
            *scratch.found = {high - (threadIdx.x << shift), target - before};
        }
        __syncthreads();
        const Cut cut = *scratch.found;
        if (shift == 0) return cut;
        const unsigned width = (1u << shift) - 1;
        low = cut.key - low > width ? cut.key - width : low;
        high = cut.key;
        target = cut.rest;
    }
}

} // namespace sampling
} // namespace ferry
