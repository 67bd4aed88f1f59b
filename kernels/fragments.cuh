// Tensor cores, and the copies that feed them: the only inline PTX of the kernels, each instruction
// behind one function that the emulation has as well (emulation/fragments.h).
//
//   multiply_add   D += A·B of a warp: A [16, 16], B [16, 8] in T, D [16, 8] in f32
//   load_matrices  four 8×8 matrices of 16-bit numbers from shared memory, to fragments
//   copy_async     16 bytes from global to shared memory, past the registers
//
// Fragments, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//
//   a[0..4]  rows g, g + 8, g, g + 8; columns 2t, 2t, 2t + 8, 2t + 8 and the next of each
//   b[0..2]  column g; rows 2t, 2t + 8 and the next of each
//   d[0..4]  rows g, g, g + 8, g + 8; columns 2t, 2t + 1, 2t, 2t + 1
//
// sm_75 (Turing) has f16 products of half the depth, two of which make one here, but none of bf16,
// which it computes lane by lane: right, but slow (f16 is the type for Turing). Nor can it copy
// asynchronously: there a copy is a load and a store.

#pragma once

#include "common.cuh"

#ifdef FERRY_EMULATION
#include "emulation/fragments.h"
#else

namespace ferry {

// D += A·B with products and sums of the warp's own lanes, for what has no tensor core.
template <typename T>
__device__ __forceinline__ void multiply_add_by_lanes(float (&d)[4], const unsigned (&a)[4],
                                                      const unsigned (&b)[2]) {
    const int lane = threadIdx.x % WARP;
    const int row = lane / 4 * 4, column = lane % 4 * 8; // lanes that hold A's row g and B's column 2t
#pragma unroll 1 // the registers are the caller's
    for (int from = 0; from < 4; from++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float2 upper = unpack<T>(__shfl_sync(ALL_LANES, a[2 * half], row + from));
            const float2 lower = unpack<T>(__shfl_sync(ALL_LANES, a[2 * half + 1], row + from));
            const float2 left = unpack<T>(__shfl_sync(ALL_LANES, b[half], column + from));
            const float2 right = unpack<T>(__shfl_sync(ALL_LANES, b[half], column + 4 + from));
            d[0] += upper.x * left.x + upper.y * left.y;
            d[1] += upper.x * right.x + upper.y * right.y;
            d[2] += lower.x * left.x + lower.y * left.y;
            d[3] += lower.x * right.x + lower.y * right.y;
        }
    }
}

template <typename T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4],
                                             const unsigned (&b)[2]);

template <>
__device__ __forceinline__ void multiply_add<__half>(float (&d)[4], const unsigned (&a)[4],
                                                     const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
    for (int half = 0; half < 2; half++)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
            "{%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
}

template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(float (&d)[4], const unsigned (&a)[4],
                                                            const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    multiply_add_by_lanes<__nv_bfloat16>(d, a, b);
#endif
}

// Lane l gives the address of row l % 8 of matrix l / 8, 16 bytes in shared memory, and gets of each
// matrix the numbers (g, 2t) and (g, 2t + 1), or transposed (2t, g) and (2t + 1, g).
template <bool transposed>
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], const void *row) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
}

// Begins to copy 16 bytes, or sets them to zero if they are not `there`. Both addresses are
// multiples of 16.
__device__ __forceinline__ void copy_async(void *shared, const void *global, bool there) {
#if __CUDA_ARCH__ >= 800
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes)
                 : "memory");
#else
    uint4 value = make_uint4(0, 0, 0, 0);
    if (there) value = *static_cast<const uint4 *>(global);
    *static_cast<uint4 *>(shared) = value;
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the newest `left` groups of this thread are under way. Other threads see the
// copies after the next barrier.
template <int left> __device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#endif
}

} // namespace ferry

#endif
