// What sampling needs of a row of logits before it looks at single ones, and the soft cap that some
// models put on them.
//
//   argmax = first i with x[i] = max x       max = max x       log_sum_exp = ln sum e^x[i]
//   soft cap   x <- c * tanh(x / c)          Gemma 2 (arXiv:2408.00118)
//
//   logits  [rows, vocabulary]  f32
//   chunks  [rows, ceil(vocabulary / CHUNK)]  ChunkStatistics of vectors.cuh: 16 bytes
//
// The CPU twin is src/ops/logit_statistics.rs, whose chunks these are: a chunk's maximum, and the
// sum against that maximum. The kernels of sampling.cu put a row's chunks together, in f64 and in
// one order. A NaN is no maximum but makes the sum NaN, as does +inf.
//
// Tiling. A block does a chunk, and reads it once: a thread's PER_THREAD values stay in registers
// between the maximum and the sum.
//
// ABI. `logit_statistics`: grid (chunks, rows). `soft_cap`: grid (ceil(count / THREADS)), in place;
// cap > 0. Block (THREADS). Rows of a vocabulary that is a multiple of 4 start at 16 bytes.
//   ferry_logit_statistics_f32(ChunkStatistics* chunks, const float* logits, int vocabulary)
//   ferry_soft_cap_f32(float* x, long long count, float cap)

#include "sampling.cuh"

namespace ferry {
namespace logit_statistics {

constexpr int THREADS = 256;
constexpr int PER_THREAD = sampling::CHUNK / THREADS;
constexpr int NONE = 0x7fffffff;

template <int V>
__device__ __forceinline__ void summarize(ChunkStatistics *to, const float *logits, int count) {
    SHARED_ARRAY(int, first, [1]);
    Floats<V> kept[PER_THREAD / V];
    float highest = -INFINITY;
    if (threadIdx.x == 0) first[0] = NONE;
#pragma unroll
    for (int i = 0; i < PER_THREAD / V; i++) {
        const int at = (i * THREADS + threadIdx.x) * V;
        if (at < count) {
            kept[i] = load<V>(logits + at);
        } else {
#pragma unroll
            for (int v = 0; v < V; v++) kept[i].at[v] = -INFINITY;
        }
#pragma unroll
        for (int v = 0; v < V; v++) highest = fmaxf(highest, kept[i].at[v]);
    }
    highest = block_max<THREADS>(highest);

    const float base = highest == -INFINITY ? 0.0f : highest;
    float sum = 0.0f;
    int place = NONE;
#pragma unroll
    for (int i = PER_THREAD / V - 1; i >= 0; i--) {
#pragma unroll
        for (int v = V - 1; v >= 0; v--) {
            const float x = kept[i].at[v];
            sum += expf(x - base);
            if (x >= highest) place = (i * THREADS + threadIdx.x) * V + v;
        }
    }
    sum = block_sum<THREADS>(sum);
    atomicMin(&first[0], place);
    __syncthreads();
    if (threadIdx.x == 0) {
        ChunkStatistics statistics;
        statistics.max = highest;
        statistics.argmax = first[0] < count ? first[0] : 0;
        statistics.sum = sum;
        statistics.unused = 0;
        *to = statistics;
    }
}

__device__ __forceinline__ void statistics(ChunkStatistics *chunks, const float *logits,
                                           int vocabulary) {
    const int begin = blockIdx.x * sampling::CHUNK;
    const int count = min(sampling::CHUNK, vocabulary - begin);
    logits += static_cast<size_t>(blockIdx.y) * vocabulary + begin;
    chunks += static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    if (vocabulary % 4 == 0) {
        summarize<4>(chunks, logits, count);
    } else {
        summarize<1>(chunks, logits, count);
    }
}

} // namespace logit_statistics
} // namespace ferry

extern "C" __global__ void __launch_bounds__(ferry::logit_statistics::THREADS)
    ferry_logit_statistics_f32(ferry::ChunkStatistics *chunks, const float *logits,
                               int vocabulary) {
    ferry::logit_statistics::statistics(chunks, logits, vocabulary);
}
FERRY_KERNEL(ferry_logit_statistics_f32, ferry::logit_statistics::THREADS);

extern "C" __global__ void __launch_bounds__(ferry::logit_statistics::THREADS)
    ferry_soft_cap_f32(float *x, long long count, float cap) {
    const long long at =
        static_cast<long long>(blockIdx.x) * ferry::logit_statistics::THREADS + threadIdx.x;
    if (at < count) x[at] = cap * tanhf(x[at] / cap);
}
FERRY_KERNEL(ferry_soft_cap_f32, ferry::logit_statistics::THREADS);
