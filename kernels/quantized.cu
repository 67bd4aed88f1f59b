// y = x * W^T (+ bias) of a few rows over a weight in a quantized format of GGML files.
//
//   x        [rows, in]             f32, f16 or bf16
//   codes    [rows, in]             int8   } x ~ e*q in units of 32 inputs
//   scales   [rows, in / 32]        Scale  }
//   weight   [out, in / BLOCK]      blocks as a file has them
//   bias     [out]                  f32, optional
//   y        [rows, stride]         f32, f16 or bf16; `out` columns of it
//
//   w = d*s*(c - o) - d_min*m              s, m per 16 or 32 inputs
//   y = sum_units d*e*(s*(sum c*q - o * sum q)) - d_min*e*(m * sum q)
//
// The CPU twin is src/ops/quantized/, and before it llama.cpp, whose rounding of x both follow: with
// Q4_0 ... Q8_0 blocks of 32 share e = max|x| / 127, rounded to f16, as is the product with the sum
// that meets the minima; with the K formats blocks of 256 share an f32 e. All within 16 inputs is
// exact, in integers (dp4a); the rest is f32.
//
// Where it is for. Up to 8 rows or so: decoding, where the time is that of reading the weight once.
// More rows are better served by tensor cores.
//
// Tiling. A warp does OUTPUTS outputs of R rows: a lane takes 32 neighbouring inputs of each output
// and multiplies them with each row's, which a warp finds in L1; sums over lanes come last. Lanes
// read neighbouring blocks, so that each line of the weight is used whole though blocks don't
// begin at vectors' borders. A row's result depends on `in` alone, not on the rows beside it or on R.
//
// ABI. `quantize_activations_32`: for formats of blocks of 32, grid (ceil(rows * in / THREADS));
// in a multiple of 32. `quantize_activations_256`: for the K formats; grid (rows * in / 256); in a
// multiple of 256. `quantized_linear`: grid (ceil(out / (WARPS * OUTPUTS)), ceil(rows / R)), R of
// 1, 4, 8. Block (THREADS) or (256). codes and scales start at 16 bytes, weight at 16. `dtype` of y:
// 0 f32, 1 f16, 2 bf16. Parts that lie side by side are launches with another y and one stride.
//   ferry_quantize_activations_B_T(signed char* codes, Scale* scales, const T* x, long long count)
//   ferry_quantized_linear_F_rR(void* y, const signed char* codes, const Scale* scales,
//                               const unsigned char* weight, const float* bias, int rows, int inputs,
//                               int outputs, long long stride, int dtype)
//   B: 32, 256; T: f32, f16, bf16; F: q4_0, q4_1, q5_0, q5_1, q8_0, q2k, q3k, q4k, q5k, q6k

#include "quantized.cuh"
#include "vectors.cuh"

namespace ferry {
namespace quantized {

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
constexpr int OUTPUTS = 2;

// What goes with the codes of 32 inputs.
struct alignas(16) Scale {
    // e
    float scale;
    // e * sum q, rounded as the minima of Q4_1 and Q5_1 have it.
    float scaled_sum;
    // sum q of the first and the second 16.
    int sums[2];
};

// Sums over the two halves of a warp.
__device__ __forceinline__ int half_warp_sum(int x) {
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

// A lane an input, a warp a unit, whose largest magnitude all of its lanes bring.
__device__ __forceinline__ void quantize(signed char *codes, Scale *scales, long long at, float x,
                                         float largest, bool small_blocks) {
    const float inverse = largest == 0.0f ? 0.0f : 127.0f / largest;
    const int code = __float2int_rn(__fmul_rn(x, inverse));
    codes[at] = static_cast<signed char>(code);
    const int sum = half_warp_sum(code);
    const int second = __shfl_sync(ALL_LANES, sum, 16);
    if (threadIdx.x % WARP != 0) return;
    Scale scale;
    scale.sums[0] = sum;
    scale.sums[1] = second;
    if (small_blocks) {
        const float d = largest / 127.0f;
        scale.scale = __half2float(__float2half_rn(d));
        scale.scaled_sum =
            __half2float(__float2half_rn(__fmul_rn(d, static_cast<float>(sum + second))));
    } else {
        scale.scale = largest == 0.0f ? 0.0f : 1.0f / inverse;
        scale.scaled_sum = 0.0f;
    }
    scales[at / UNIT] = scale;
}

template <typename T> __device__ __forceinline__ void quantize_32(signed char *codes, Scale *scales,
                                                                  const T *x, long long count) {
    const long long at = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
    // Whole warps: the count is a multiple of 32.
    if (at >= count) return;
    const float value = to_float(x[at]);
    quantize(codes, scales, at, value, warp_max(fabsf(value)), true);
}

template <typename T> __device__ __forceinline__ void
quantize_256(signed char *codes, Scale *scales, const T *x, long long count) {
    const long long at = static_cast<long long>(blockIdx.x) * SUPER + threadIdx.x;
    if (at >= count) return;
    const float value = to_float(x[at]);
    quantize(codes, scales, at, value, block_max<SUPER>(fabsf(value)), false);
}

// Adds a unit's product with a row's codes to `sum`.
template <typename Format> __device__ __forceinline__ float
add_product(float sum, const Unit &w, const int (&x)[8], const Scale &scale) {
    int first = 0, second = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        first = __dp4a(w.codes[i], x[i], first);
        second = __dp4a(w.codes[4 + i], x[4 + i], second);
    }
    if (Format::OFFSET != 0) {
        first -= Format::OFFSET * scale.sums[0];
        second -= Format::OFFSET * scale.sums[1];
    }
    const int product = w.scales[0] * first + w.scales[1] * second;
    sum = fmaf(static_cast<float>(product), __fmul_rn(w.d, scale.scale), sum);
    if (!Format::MINIMA) return sum;
    if (Format::BLOCK == UNIT) return fmaf(w.d_min, scale.scaled_sum, sum);
    const int minimum = w.minima[0] * scale.sums[0] + w.minima[1] * scale.sums[1];
    return fmaf(static_cast<float>(-minimum), __fmul_rn(w.d_min, scale.scale), sum);
}

__device__ __forceinline__ void store_as(void *y, long long at, float value, int dtype) {
    if (dtype == 0) {
        static_cast<float *>(y)[at] = value;
    } else if (dtype == 1) {
        static_cast<__half *>(y)[at] = from_float<__half>(value);
    } else {
        static_cast<__nv_bfloat16 *>(y)[at] = from_float<__nv_bfloat16>(value);
    }
}

template <typename Format, int R>
__device__ __forceinline__ void multiply(void *y, const signed char *codes, const Scale *scales,
                                         const unsigned char *weight, const float *bias, int rows,
                                         int inputs, int outputs, long long stride, int dtype) {
    constexpr int UNITS = Format::BLOCK / UNIT;
    const int lane = threadIdx.x % WARP;
    const int first_output = (blockIdx.x * WARPS + threadIdx.x / WARP) * OUTPUTS;
    if (first_output >= outputs) return;
    const int first_row = blockIdx.y * R;
    const size_t row_bytes = static_cast<size_t>(inputs / Format::BLOCK) * Format::BYTES;
    const int units = inputs / UNIT;

    // Past the last output or row, that one is done again and not stored.
    const unsigned char *of_output[OUTPUTS];
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
        of_output[o] = weight + min(first_output + o, outputs - 1) * row_bytes;
    }
    float sums[OUTPUTS][R] = {};
    for (int unit = lane; unit < units; unit += WARP) {
        Unit w[OUTPUTS];
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) {
            w[o] = Format::take(of_output[o] + static_cast<size_t>(unit / UNITS) * Format::BYTES,
                                unit % UNITS);
        }
#pragma unroll
        for (int r = 0; r < R; r++) {
            const size_t at = static_cast<size_t>(min(first_row + r, rows - 1)) * units + unit;
            int x[8];
            words8(x, reinterpret_cast<const unsigned char *>(codes) + at * UNIT);
            const Scale scale = scales[at];
#pragma unroll
            for (int o = 0; o < OUTPUTS; o++) {
                sums[o][r] = add_product<Format>(sums[o][r], w[o], x, scale);
            }
        }
    }
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
#pragma unroll
        for (int r = 0; r < R; r++) {
            float sum = warp_sum(sums[o][r]);
            const int output = first_output + o, row = first_row + r;
            if (lane != 0 || output >= outputs || row >= rows) continue;
            if (bias != nullptr) sum += bias[output];
            store_as(y, row * stride + output, sum, dtype);
        }
    }
}

} // namespace quantized
} // namespace ferry

#define QUANTIZE(dtype, T)                                                                         \
    extern "C" __global__ void __launch_bounds__(ferry::quantized::THREADS)                        \
        ferry_quantize_activations_32_##dtype(signed char *codes, ferry::quantized::Scale *scales, \
                                              const T *x, long long count) {                       \
        ferry::quantized::quantize_32(codes, scales, x, count);                                    \
    }                                                                                              \
    FERRY_KERNEL(ferry_quantize_activations_32_##dtype, ferry::quantized::THREADS);                \
    extern "C" __global__ void __launch_bounds__(ferry::quantized::SUPER)                          \
        ferry_quantize_activations_256_##dtype(                                                    \
            signed char *codes, ferry::quantized::Scale *scales, const T *x, long long count) {    \
        ferry::quantized::quantize_256(codes, scales, x, count);                                   \
    }                                                                                              \
    FERRY_KERNEL(ferry_quantize_activations_256_##dtype, ferry::quantized::SUPER)

QUANTIZE(f32, float);
QUANTIZE(f16, __half);
QUANTIZE(bf16, __nv_bfloat16);

#define ENTRY(format, Format, R)                                                                   \
    extern "C" __global__ void __launch_bounds__(ferry::quantized::THREADS, R == 8 ? 2 : 4)        \
        ferry_quantized_linear_##format##_r##R(                                                    \
            void *y, const signed char *codes, const ferry::quantized::Scale *scales,              \
            const unsigned char *weight, const float *bias, int rows, int inputs, int outputs,     \
            long long stride, int dtype) {                                                         \
        ferry::quantized::multiply<ferry::quantized::Format, R>(                                   \
            y, codes, scales, weight, bias, rows, inputs, outputs, stride, dtype);                 \
    }                                                                                              \
    FERRY_KERNEL(ferry_quantized_linear_##format##_r##R, ferry::quantized::THREADS)

#define ENTRIES(format, Format)                                                                    \
    ENTRY(format, Format, 1);                                                                      \
    ENTRY(format, Format, 4);                                                                      \
    ENTRY(format, Format, 8)

ENTRIES(q4_0, Q4_0);
ENTRIES(q4_1, Q4_1);
ENTRIES(q5_0, Q5_0);
ENTRIES(q5_1, Q5_1);
ENTRIES(q8_0, Q8_0);
ENTRIES(q2k, Q2K);
ENTRIES(q3k, Q3K);
ENTRIES(q4k, Q4K);
ENTRIES(q5k, Q5K);
ENTRIES(q6k, Q6K);
