// What the kernels share: one source for the device and for the host's emulation, numbers of three
// types read and written 16 bytes at a time, and sums over a warp.

#pragma once

#ifdef FERRY_EMULATION
#include "emulation/cuda.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cfloat>
#include <cstdint>
// An array of shared memory: SHARED_ARRAY(float, tile, [16][33]).
#define SHARED_ARRAY(type, name, dimensions) __shared__ __align__(16) type name dimensions
// The bytes that the launch asks for, aligned to 16: SHARED_DYNAMIC(bytes).
#define SHARED_DYNAMIC(name) extern __shared__ __align__(16) unsigned char name[]
// For the emulation: an entry point, and the threads its blocks must have.
#define FERRY_KERNEL(kernel, threads) static_assert(true)
#endif

namespace ferry {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// Two numbers to the 32 bits that a register holds of them, the first in the low half.
template <typename T> __device__ __forceinline__ unsigned pack(float low, float high);
template <> __device__ __forceinline__ unsigned pack<__half>(float low, float high) {
    __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<unsigned *>(&pair);
}
template <> __device__ __forceinline__ unsigned pack<__nv_bfloat16>(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<unsigned *>(&pair);
}

template <typename T> __device__ __forceinline__ float2 unpack(unsigned bits);
template <> __device__ __forceinline__ float2 unpack<__half>(unsigned bits) {
    return __half22float2(*reinterpret_cast<__half2 *>(&bits));
}
template <> __device__ __forceinline__ float2 unpack<__nv_bfloat16>(unsigned bits) {
    return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162 *>(&bits));
}

// Numbers in the 16 bytes that a lane moves at a time.
template <typename T> constexpr int VECTOR = 16 / int(sizeof(T));

// Reads VECTOR<T> numbers; `from` is aligned to 16 bytes.
template <typename T> __device__ __forceinline__ void load_vector(float (&to)[VECTOR<T>], const T *from) {
    uint4 bits = *reinterpret_cast<const uint4 *>(from);
    unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = unpack<T>(words[i]);
        to[2 * i] = pair.x;
        to[2 * i + 1] = pair.y;
    }
}
template <> __device__ __forceinline__ void load_vector<float>(float (&to)[4], const float *from) {
    float4 values = *reinterpret_cast<const float4 *>(from);
    to[0] = values.x, to[1] = values.y, to[2] = values.z, to[3] = values.w;
}

// Writes VECTOR<T> numbers; `to` is aligned to 16 bytes.
template <typename T> __device__ __forceinline__ void store_vector(T *to, const float (&from)[VECTOR<T>]) {
    *reinterpret_cast<uint4 *>(to) = make_uint4(pack<T>(from[0], from[1]), pack<T>(from[2], from[3]),
                                                pack<T>(from[4], from[5]), pack<T>(from[6], from[7]));
}
template <> __device__ __forceinline__ void store_vector<float>(float *to, const float (&from)[4]) {
    *reinterpret_cast<float4 *>(to) = make_float4(from[0], from[1], from[2], from[3]);
}

// Reads N floats, such as the weights of as many columns; `from` is aligned to 16 bytes.
template <int N> __device__ __forceinline__ void load_floats(float (&to)[N], const float *from) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        float4 values = *reinterpret_cast<const float4 *>(from + i);
        to[i] = values.x, to[i + 1] = values.y, to[i + 2] = values.z, to[i + 3] = values.w;
    }
}

// May rows of `width` numbers from `start` be read in vectors?
template <typename T> __device__ __forceinline__ bool in_vectors(const T *start, int width) {
    return width % VECTOR<T> == 0 && reinterpret_cast<uintptr_t>(start) % 16 == 0;
}

// The sum over `width` neighbouring lanes, for each of them, in one order whoever asks.
template <int width = WARP> __device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lanes = width / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

template <int width = WARP> __device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lanes = width / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}

} // namespace ferry
