// What the decoder's kernels share beyond common.cuh: vectors of numbers of any width in f32,
// numbers that stay finite when they are narrowed, reductions over a block.

#pragma once

#include "common.cuh"

namespace ferry {

// V neighbouring numbers, in f32.
template <int V> struct Floats {
    float at[V];
};

// Reads V numbers from a multiple of V * sizeof(T) bytes, or of 16 if that is less.
template <int V, typename T> __device__ __forceinline__ Floats<V> load(const T *from) {
    Floats<V> to;
    if constexpr (V == 1) {
        to.at[0] = to_float(*from);
    } else if constexpr (V % VECTOR<T> == 0) {
#pragma unroll
        for (int i = 0; i < V; i += VECTOR<T>) {
            float part[VECTOR<T>];
            load_vector(part, from + i);
#pragma unroll
            for (int j = 0; j < VECTOR<T>; j++) to.at[i + j] = part[j];
        }
    } else if constexpr (sizeof(T) == 4) {
        static_assert(V == 2, "two floats are 8 bytes");
        const float2 pair = *reinterpret_cast<const float2 *>(from);
        to.at[0] = pair.x, to.at[1] = pair.y;
    } else {
        static_assert(V == 2, "two halves are 4 bytes");
        const float2 pair = unpack<T>(*reinterpret_cast<const unsigned *>(from));
        to.at[0] = pair.x, to.at[1] = pair.y;
    }
    return to;
}

// Writes V numbers, aligned as for `load`.
template <int V, typename T> __device__ __forceinline__ void store(T *to, const Floats<V> &from) {
    if constexpr (V == 1) {
        *to = from_float<T>(from.at[0]);
    } else if constexpr (V % VECTOR<T> == 0) {
#pragma unroll
        for (int i = 0; i < V; i += VECTOR<T>) {
            float part[VECTOR<T>];
#pragma unroll
            for (int j = 0; j < VECTOR<T>; j++) part[j] = from.at[i + j];
            store_vector(to + i, part);
        }
    } else if constexpr (sizeof(T) == 4) {
        static_assert(V == 2, "two floats are 8 bytes");
        *reinterpret_cast<float2 *>(to) = make_float2(from.at[0], from.at[1]);
    } else {
        static_assert(V == 2, "two halves are 4 bytes");
        *reinterpret_cast<unsigned *>(to) = pack<T>(from.at[0], from.at[1]);
    }
}

// x, or the nearest number that T has if x lies beyond them; f16 ends at 65504, the others do not
// end where it matters.
template <typename T> __device__ __forceinline__ float bounded(float x) { return x; }
template <> __device__ __forceinline__ float bounded<__half>(float x) {
    return fminf(fmaxf(x, -65504.0f), 65504.0f);
}

template <int V, typename T> __device__ __forceinline__ void store_bounded(T *to, Floats<V> from) {
#pragma unroll
    for (int i = 0; i < V; i++) from.at[i] = bounded<T>(from.at[i]);
    store<V>(to, from);
}

// The sum over a block of THREADS, for each of its threads, in one order. A barrier.
template <int THREADS> __device__ __forceinline__ float block_sum(float x) {
    SHARED_ARRAY(float, of_warp, [THREADS / WARP]);
    x = warp_sum(x);
    // Those of a sum before this one were read.
    __syncthreads();
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < THREADS / WARP; warp++) sum += of_warp[warp];
    return sum;
}

// The maximum over a block of THREADS, for each of its threads. A barrier.
template <int THREADS> __device__ __forceinline__ float block_max(float x) {
    SHARED_ARRAY(float, of_warp, [THREADS / WARP]);
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = x;
    __syncthreads();
    float highest = of_warp[0];
#pragma unroll
    for (int warp = 1; warp < THREADS / WARP; warp++) highest = fmaxf(highest, of_warp[warp]);
    return highest;
}

} // namespace ferry
