// Pooling: from the tokens of each row of the batch to one vector.
//
//   mean  y[r] = Σₜ x[t] / len(r)      t over the tokens of row r
//   cls   y[r] = x[first token of r]
//   last  y[r] = x[last token of r]
//   then  y[r] ← y[r][..dimension]
//   then  y[r] ← y[r] / max(‖y[r]‖₂, 1e-12)   if normalised
//
//   x           [tokens, hidden]   T      y  [rows, dimension]  f32
//   cu_seqlens  [rows + 1]         u32
//
// Contract: src/ops/pool.rs; `pooling` is numbered as in its enum. T is f32, f16 or bf16; y is f32, as
// answers are. A row without tokens, which the CPU op refuses, becomes NaN.
//
// Tiling: a block of 8 warps a row. For a strip of 32 · VECTOR<T> columns a warp sums every eighth token,
// each lane 16 bytes; the 8 sums meet in shared memory, transposed, where neither writing (by lanes)
// nor reading (by columns) finds a bank twice. The order of the sums depends on the row's length alone.
// Few rows leave a large device idle: a batch of one row is one block, which at 512 tokens of 384
// reads 390 KB, some 10 µs.
//
// Launch: grid (rows, 1, 1), block (256, 1, 1), no dynamic shared memory.

#include "common.cuh"

namespace ferry {
namespace pool {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;

// As `Pooling` of src/ops/pool.rs.
enum Pooling { MEAN, CLS, LAST };

template <typename T>
__device__ __forceinline__ void run(float *y, const T *x, const unsigned *cu_seqlens, int hidden,
                                    int dimension, int pooling, int normalize) {
    constexpr int V = VECTOR<T>;
    constexpr int STRIP = WARP * V;
    // Numbers of a lane's place in its vector, padded so that V of them are in different banks.
    constexpr int PITCH = WARP + WARP / V;
    SHARED_ARRAY(float, sums, [WARPS][V * PITCH]);
    SHARED_ARRAY(float, norms, [WARPS]);

    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int first = cu_seqlens[blockIdx.x], end = cu_seqlens[blockIdx.x + 1];
    y += size_t(blockIdx.x) * dimension;
    const float scale = first == end ? NAN : pooling == MEAN ? 1.0f / float(end - first) : 1.0f;
    if (pooling == CLS) end = min(end, first + 1);
    if (pooling == LAST) first = max(first, end - 1);
    const bool vectors = in_vectors(x, hidden);

    float squares = 0.0f;
    for (int strip = 0; strip < dimension; strip += STRIP) {
        const int column = strip + lane * V;
        float sum[V] = {};
        if (column < dimension) {
            for (int token = first + warp; token < end; token += WARPS) {
                const T *from = x + size_t(token) * hidden + column;
                float values[V];
                if (vectors) {
                    load_vector(values, from);
                } else {
#pragma unroll
                    for (int i = 0; i < V; i++)
                        values[i] = column + i < hidden ? to_float(from[i]) : 0.0f;
                }
#pragma unroll
                for (int i = 0; i < V; i++) sum[i] += values[i];
            }
        }
#pragma unroll
        for (int i = 0; i < V; i++) sums[warp][i * PITCH + lane] = sum[i];
        __syncthreads();
        const int own = strip + int(threadIdx.x);
        if (threadIdx.x < STRIP && own < dimension) {
            const int at = threadIdx.x % V * PITCH + threadIdx.x / V;
            float total = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) total += sums[w][at];
            total *= scale;
            squares += total * total;
            y[own] = total;
        }
        __syncthreads(); // the sums are read, the next strip's may come
    }
    if (!normalize) return;

    squares = warp_sum(squares);
    if (lane == 0) norms[warp] = squares;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += norms[w];
    // NaN stays NaN: fmaxf would hide it.
    const float norm = sqrtf(total);
    const float inverse = 1.0f / (norm < 1e-12f ? 1e-12f : norm);
    // Each thread scales the columns that it wrote.
    if (threadIdx.x < STRIP)
        for (int own = threadIdx.x; own < dimension; own += STRIP) y[own] *= inverse;
}

} // namespace pool
} // namespace ferry

#define ENTRY(dtype, T)                                                                             \
    extern "C" __global__ void __launch_bounds__(ferry::pool::THREADS) ferry_pool_##dtype(          \
        float *y, const T *x, const unsigned *cu_seqlens, int hidden, int dimension, int pooling,   \
        int normalize) {                                                                            \
        ferry::pool::run(y, x, cu_seqlens, hidden, dimension, pooling, normalize);                  \
    }                                                                                               \
    FERRY_KERNEL(ferry_pool_##dtype, ferry::pool::THREADS)

ENTRY(f32, float);
ENTRY(f16, __half);
ENTRY(bf16, __nv_bfloat16);
