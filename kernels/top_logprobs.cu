// The model's likeliest tokens of a row with their log probabilities, where a caller asks for them.
//
//   ids       [rows, MOST]  int32   likeliest first, of equal ones the lower; -1 where there is none
//   logprobs  [rows, MOST]  f32     l - log_sum_exp(l)
//   logits    [rows, vocabulary]  f32
//   counts    [rows]  int32         how many of them: 0 to MOST
//   chunks    [rows, chunk_count]   of logit_statistics.cu
//
// The CPU twin is `Sampler::top_logprobs` of src/generation/sampling/sampler.rs. As in sampling.cu
// nothing is sorted but what is asked for: `select` finds the logit of the last, one pass collects.
//
// ABI. After logit_statistics and before sample_prepare, which changes the logits. Grid (rows),
// block (THREADS).
//   ferry_top_logprobs(int* ids, float* logprobs, const float* logits, const ChunkStatistics* chunks,
//                      const int* counts, int vocabulary, int chunk_count)

#include "sampling.cuh"

namespace ferry {
namespace top_logprobs {

using namespace sampling;

constexpr int MOST = 20;

__device__ __forceinline__ void collect(int *ids, float *logprobs, const float *logits,
                                        const ChunkStatistics *chunks, const int *counts,
                                        int vocabulary, int chunk_count) {
    SHARED_ARRAY(Mass, bins, [THREADS]);
    SHARED_ARRAY(Cut, found, [1]);
    const Scratch scratch = {bins, found};
    SHARED_ARRAY(unsigned, keys, [MOST]);
    SHARED_ARRAY(int, tokens, [MOST]);
    SHARED_ARRAY(int, collected, [1]);
    ids += blockIdx.x * MOST;
    logprobs += blockIdx.x * MOST;
    if (threadIdx.x < MOST) {
        ids[threadIdx.x] = -1;
        logprobs[threadIdx.x] = -INFINITY;
    }
    const int wanted = min(counts[blockIdx.x], MOST);
    if (wanted <= 0) return;
    const Logits view = {logits + static_cast<size_t>(blockIdx.x) * vocabulary, vocabulary, nullptr,
                         0};
    const Statistics statistics =
        combine(chunks + static_cast<size_t>(blockIdx.x) * chunk_count, chunk_count);
    const unsigned low = key_of(-FLT_MAX), high = key_of(statistics.max);
    const auto within = [&](unsigned key) { return key >= low && key <= high; };
    const auto one = [](int, float) { return static_cast<Mass>(1); };

    Mass number = 0;
    view.each([&](int, float x) { number += within(key_of(x)); });
    number = min(block_total(number), static_cast<Mass>(wanted));
    if (number == 0) return;
    const Cut last =
        select(scratch, view, low, high, number, [](int, float x) { return key_of(x); }, one);
    // Of those that have the last logit, the lowest ids.
    const Cut tie = select(
        scratch, view, 0, 0x7fffffffu, last.rest,
        [](int token, float) { return 0x7fffffffu - static_cast<unsigned>(token); },
        [&](int, float x) { return static_cast<Mass>(key_of(x) == last.key); });
    const int last_tie = static_cast<int>(0x7fffffffu - tie.key);

    __syncthreads();
    if (threadIdx.x == 0) collected[0] = 0;
    __syncthreads();
    view.each([&](int token, float x) {
        const unsigned key = key_of(x);
        if (!within(key) || key < last.key || (key == last.key && token > last_tie)) return;
        const int at = atomicAdd(&collected[0], 1);
        if (at >= MOST) return;
        keys[at] = key;
        tokens[at] = token;
    });
    __syncthreads();
    const int count = min(collected[0], MOST);
    if (static_cast<int>(threadIdx.x) >= count) return;
    const unsigned key = keys[threadIdx.x];
    const int token = tokens[threadIdx.x];
    int before = 0;
    for (int i = 0; i < count; i++) {
        before += keys[i] > key || (keys[i] == key && tokens[i] < token);
    }
    ids[before] = token;
    logprobs[before] = float_of(key) - statistics.log_sum_exp;
}

} // namespace top_logprobs
} // namespace ferry

extern "C" __global__ void __launch_bounds__(ferry::sampling::THREADS, 1)
    ferry_top_logprobs(int *ids, float *logprobs, const float *logits,
                       const ferry::ChunkStatistics *chunks, const int *counts, int vocabulary,
                       int chunk_count) {
    ferry::top_logprobs::collect(ids, logprobs, logits, chunks, counts, vocabulary, chunk_count);
}
FERRY_KERNEL(ferry_top_logprobs, ferry::sampling::THREADS);
