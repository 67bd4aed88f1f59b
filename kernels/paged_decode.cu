// Attention of single new tokens over a paged cache: each row's one query of a sequence against all
// of that sequence so far, through a table of the blocks where it lies.
//
//   s_j = scale * q.k[j]                      optionally s_j <- c * tanh(s_j / c)
//   y   = sum_j softmax_j(s) * v[j]           j <= p and j > p - window
//
//   q             [tokens, heads * d]         query head h uses K and V of h / (heads / kv_heads)
//   keys, values  the cache of rope.cu
//   y             [tokens, heads * d]
//   sums          [rows, heads, spans, d]  f32   } what spans of a context came to, between the
//   softmax       [rows, heads, spans, 2]  f32   } two kernels: sums of e^(s-m)*v; m and l = sum e^(s-m)
//
// The CPU twin is src/ops/paged_attention/; Vaswani et al. 2017 (arXiv:1706.03762), grouped queries
// (arXiv:2305.13245), split contexts (Flash-Decoding, Dao et al. 2023), running softmax (Milakov &
// Gimelshein 2018, arXiv:1805.02867). All sums are f32, exponentials are of base 2.
//
// Order. A context is cut in spans of `span` keys that begin at multiples of `span` of the
// *position*, a span in tiles of KEYS; warp w takes tiles w, w + WARPS, ... of its span. So a row's
// result depends on nothing but its own sequence and `span`, which must stay the same for as long
// as a sequence lives, and does not depend on what it is batched with.
//
// Tiling. A block does one span of one row for up to G query heads that share a key head, so that K
// and V are read once for all of them. It is bound by memory (G / 2 multiply-adds a byte of an f16
// cache), so that tensor cores would stand idle. Each warp goes its own way through its tiles, with
// no barrier until the end: for scores a lane is a key; for sums a lane is 8 dimensions of one of
// several keys that a warp's load of 512 bytes holds. Loads of both are whole and vectorized.
//
// ABI. `paged_decode`: grid (kv_heads * ceil(group / G), spans, rows), block (THREADS); group =
// heads / kv_heads; G the least of 1, 2, 4, 8 that is not below the group, or 8. `spans` >= that of
// any row (see `spans_of`; ceil(longest context / span) always suffices). d a multiple of 8, at most 256;
// blocks * kv_heads * block_size below 2^31.
// Where `spans` is 1 the second kernel need not follow, and sums and softmax may be null.
// `paged_decode_reduce`: grid (heads, rows), block (REDUCE_THREADS).
// `contexts[row]`: keys of the row's sequence, its own among them; 0 for a row that is not there
// (a captured graph has a fixed number), whose y becomes 0. `tokens[row]`: its place in q and y.
// `tables`: [rows, table_stride], position p of a row is in tables[row][p / block_size]; what lies
// before the window or past the context is not looked at. window 0: all; softcap 0: none.
// `span`: a multiple of KEYS; 256 is good from 1 to 64 rows.
//   ferry_paged_decode_gG_T_C(T* y, float* sums, float* softmax, const T* q, const C* keys,
//                             const C* values, const int* tokens, const int* contexts,
//                             const int* tables, int table_stride, int heads, int kv_heads,
//                             int head_dim, int block_size, int span, int window, float scale,
//                             float softcap)
//   ferry_paged_decode_reduce_T(T* y, const float* sums, const float* softmax, const int* tokens,
//                               const int* contexts, int heads, int head_dim, int span, int window,
//                               int spans)
//   T_C: f32_f32, f32_f16, f32_bf16, f16_f16, bf16_bf16; T: f32, f16, bf16

#include "vectors.cuh"

namespace ferry {
namespace paged_decode {

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * 32;
constexpr int REDUCE_THREADS = 128;
// Blocks that shall fit on a multiprocessor, which bounds registers: 8 sums for each head and the
// loads that are under way want up to 255 for 8 heads, 168 for 4, and fewer than 128 below.
template <int G> constexpr int BLOCKS = G == 8 ? 2 : G == 4 ? 3 : 4;
// Keys of a tile: one per lane.
constexpr int KEYS = 32;
// Dimensions of a key that lie together, and that a lane sums.
constexpr int PART = 8;
constexpr int MAX_DIM = 256;
// Below every score: the difference of two is never NaN.
constexpr float LOWEST = -3.0e38f;
constexpr float LOG2_E = 1.44269504f;

// First position that the last token of a context sees.
__device__ __forceinline__ int first_seen(int context, int window) {
    return window > 0 ? max(context - window, 0) : 0;
}

// Spans, of those that hold anything that is seen.
__device__ __forceinline__ int spans_of(int context, int window, int span) {
    return (context + span - 1) / span - first_seen(context, window) / span;
}

// What one warp knows of the keys so far, of G heads.
template <int G> struct Running {
    // The same in all lanes.
    float max[G];
    // Of this lane's keys.
    float sum[G];
    // Of this lane's dimensions and keys.
    float weighted[G][PART];
};

template <int G, typename C> struct Decode {
    const C *keys;
    const C *values;
    const int *table;
    int kv_heads;
    int kv_head;
    int dim;
    int block_size;
    // Scores are of base 2.
    float scale;
    float softcap;
    // Of the span.
    int begin;
    int end;
    // [G][MAX_DIM]
    const float *queries;
    // This warp's, [KEYS][G].
    float *weights;

    // Loads of 8 dimensions that are under way at once.
    static constexpr int UNROLL = 4;

    // Adds a tile of keys that begins at position `tile` to what is known.
    __device__ __forceinline__ void add_tile(int tile, Running<G> &running) const {
        const int lane = threadIdx.x % 32;
        // Lanes whose key is not seen take another one's, and weigh it 0.
        const int position = min(max(tile + lane, begin), end - 1);
        const bool seen = position == tile + lane;
        const int block = table[position / block_size], place = position % block_size;
        const size_t block_head = static_cast<size_t>(block) * kv_heads + kv_head;
        const C *key = keys + (block_head * dim * block_size + place * PART);

        float score[G] = {};
#pragma unroll UNROLL
        for (int part = 0; part < dim / PART; ++part) {
            const Floats<PART> k = load<PART>(key + static_cast<size_t>(part) * block_size * PART);
#pragma unroll
            for (int g = 0; g < G; ++g) {
                const Floats<PART> q = load<PART>(queries + g * MAX_DIM + part * PART);
#pragma unroll
                for (int i = 0; i < PART; ++i) score[g] = fmaf(q.at[i], k.at[i], score[g]);
            }
        }

        Floats<G> tile_weights;
#pragma unroll
        for (int g = 0; g < G; ++g) {
            float s = score[g] * scale;
            if (softcap > 0.0f) s = softcap * tanhf(s / softcap);
            s *= LOG2_E;
            const float highest = fmaxf(running.max[g], warp_max(seen ? s : LOWEST));
            const float shrink = exp2f(running.max[g] - highest);
            const float weight = seen ? exp2f(s - highest) : 0.0f;
            running.max[g] = highest;
            running.sum[g] = fmaf(running.sum[g], shrink, weight);
            tile_weights.at[g] = weight;
#pragma unroll
            for (int i = 0; i < PART; ++i) running.weighted[g][i] *= shrink;
        }
        store<G>(weights + lane * G, tile_weights);
        __syncwarp();

        // Rows of `values`; a lane holds its key's.
        const int row = static_cast<int>(block_head) * block_size + place;
        const int parts = dim / PART;
        const int at_once = 32 / parts;
        const int part = lane % parts;
        const int last = min(end - tile, KEYS);
#pragma unroll UNROLL
        for (int first = max(begin - tile, 0); first < last; first += at_once) {
            const int k = first + lane / parts;
            const int from = __shfl_sync(0xffffffffu, row, k % KEYS);
            const Floats<PART> v =
                load<PART>(values + static_cast<size_t>(from) * dim + part * PART);
            // Lanes past the last whole key are not looked at in the end.
            const Floats<G> w = load<G>(weights + (k % KEYS) * G);
#pragma unroll
            for (int g = 0; g < G; ++g) {
                const float weight = k < last ? w.at[g] : 0.0f;
#pragma unroll
                for (int i = 0; i < PART; ++i) {
                    running.weighted[g][i] = fmaf(weight, v.at[i], running.weighted[g][i]);
                }
            }
        }
        // The weights are this warp's own; the next tile's overwrite them.
        __syncwarp();
    }
};

template <int G, typename T, typename C> __device__ __forceinline__ void
decode(T *y, float *sums, float *softmax, const T *q, const C *keys, const C *values,
       const int *tokens, const int *contexts, const int *tables, int table_stride, int heads,
       int kv_heads, int dim, int block_size, int span, int window, float scale, float softcap) {
    // Queries at first; in the end sums over warps.
    SHARED_ARRAY(float, shared, [G * MAX_DIM]);
    SHARED_ARRAY(float, weights, [WARPS][KEYS * G]);
    SHARED_ARRAY(float, warp_maxima, [WARPS][G]);
    SHARED_ARRAY(float, warp_sums, [WARPS][G]);

    const int row = blockIdx.z;
    const int group = heads / kv_heads;
    const int parts_of_group = (group + G - 1) / G;
    const int kv_head = blockIdx.x / parts_of_group;
    const int first_in_group = blockIdx.x % parts_of_group * G;
    const int count = min(G, group - first_in_group);
    const int first_head = kv_head * group + first_in_group;
    const int context = contexts[row];
    const int first_span = first_seen(context, window) / span;
    const int spans = spans_of(context, window, span);
    const size_t out = (static_cast<size_t>(tokens[row]) * heads + first_head) * dim;
    if (context == 0 && blockIdx.y == 0) {
        for (int i = threadIdx.x; i < count * dim; i += THREADS) y[out + i] = from_float<T>(0.0f);
    }
    if (static_cast<int>(blockIdx.y) >= spans) return;

    for (int i = threadIdx.x; i < G * dim; i += THREADS) {
        const int g = i / dim;
        shared[g * MAX_DIM + i % dim] = g < count ? to_float(q[out + i]) : 0.0f;
    }
    __syncthreads();

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int span_begin = (first_span + static_cast<int>(blockIdx.y)) * span;
    Decode<G, C> op;
    op.keys = keys;
    op.values = values;
    op.table = tables + static_cast<size_t>(row) * table_stride;
    op.kv_heads = kv_heads;
    op.kv_head = kv_head;
    op.dim = dim;
    op.block_size = block_size;
    op.scale = scale;
    op.softcap = softcap;
    op.begin = max(span_begin, first_seen(context, window));
    op.end = min(span_begin + span, context);
    op.queries = shared;
    op.weights = weights[warp];
    Running<G> running = {};
#pragma unroll
    for (int g = 0; g < G; ++g) running.max[g] = LOWEST;
    for (int tile = span_begin + warp * KEYS; tile < op.end; tile += WARPS * KEYS) {
        if (tile + KEYS > op.begin) op.add_tile(tile, running);
    }

    // Put the warps together. One that saw nothing has the lowest maximum, and gets factor 0.
#pragma unroll
    for (int g = 0; g < G; ++g) {
        const float sum = warp_sum(running.sum[g]);
        if (lane == 0) {
            warp_maxima[warp][g] = running.max[g];
            warp_sums[warp][g] = sum;
        }
    }
    __syncthreads();
    float max_of[G], sum_of[G];
#pragma unroll
    for (int g = 0; g < G; ++g) {
        max_of[g] = LOWEST;
        for (int w = 0; w < WARPS; ++w) max_of[g] = fmaxf(max_of[g], warp_maxima[w][g]);
        sum_of[g] = 0.0f;
        for (int w = 0; w < WARPS; ++w) {
            sum_of[g] = fmaf(warp_sums[w][g], exp2f(warp_maxima[w][g] - max_of[g]), sum_of[g]);
        }
    }
    const int parts = dim / PART;
    const int at_once = 32 / parts;
    for (int w = 0; w < WARPS; ++w) {
        if (warp == w) {
            for (int k = 0; k < at_once; ++k) {
                if (lane / parts == k) {
#pragma unroll
                    for (int g = 0; g < G; ++g) {
                        const float factor = exp2f(running.max[g] - max_of[g]);
                        float *sum = shared + g * MAX_DIM + lane % parts * PART;
                        const bool first = w == 0 && k == 0;
#pragma unroll
                        for (int i = 0; i < PART; ++i) {
                            sum[i] = fmaf(running.weighted[g][i], factor, first ? 0.0f : sum[i]);
                        }
                    }
                }
                __syncwarp();
            }
        }
        __syncthreads();
    }

    if (spans == 1) {
#pragma unroll
        for (int g = 0; g < G; ++g) {
            if (g >= count) break;
            const float inverse = 1.0f / sum_of[g];
            for (int i = threadIdx.x; i < dim; i += THREADS) {
                y[out + g * dim + i] = from_float<T>(shared[g * MAX_DIM + i] * inverse);
            }
        }
        return;
    }
#pragma unroll
    for (int g = 0; g < G; ++g) {
        if (g >= count) break;
        const size_t part =
            (static_cast<size_t>(row) * heads + first_head + g) * gridDim.y + blockIdx.y;
        for (int i = threadIdx.x; i < dim; i += THREADS)
            sums[part * dim + i] = shared[g * MAX_DIM + i];
        if (threadIdx.x == 0) {
            softmax[2 * part] = max_of[g];
            softmax[2 * part + 1] = sum_of[g];
        }
    }
}

// Puts the spans of a row's head together, in their order.
template <typename T>
__device__ __forceinline__ void reduce(T *y, const float *sums, const float *softmax,
                                       const int *tokens, const int *contexts, int heads, int dim,
                                       int span, int window, int max_spans) {
    constexpr int PER_THREAD = MAX_DIM / REDUCE_THREADS;
    SHARED_ARRAY(float, factors, [REDUCE_THREADS]);
    const int head = blockIdx.x, row = blockIdx.y;
    const int context = contexts[row];
    const int spans = spans_of(context, window, span);
    // The first kernel did these.
    if (spans <= 1) return;
    const size_t first = (static_cast<size_t>(row) * heads + head) * max_spans;
    softmax += 2 * first;
    sums += first * dim;

    float highest = LOWEST;
    for (int s = threadIdx.x; s < spans; s += REDUCE_THREADS)
        highest = fmaxf(highest, softmax[2 * s]);
    highest = block_max<REDUCE_THREADS>(highest);

    float total = 0.0f;
    float weighted[PER_THREAD] = {};
    for (int base = 0; base < spans; base += REDUCE_THREADS) {
        const int count = min(spans - base, REDUCE_THREADS);
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < count) {
            factors[threadIdx.x] = exp2f(softmax[2 * (base + threadIdx.x)] - highest);
        }
        __syncthreads();
#pragma unroll 4
        for (int s = 0; s < count; ++s) {
            const float factor = factors[s];
            total = fmaf(softmax[2 * (base + s) + 1], factor, total);
#pragma unroll
            for (int p = 0; p < PER_THREAD; ++p) {
                const int i = p * REDUCE_THREADS + threadIdx.x;
                if (i < dim) {
                    weighted[p] =
                        fmaf(sums[static_cast<size_t>(base + s) * dim + i], factor, weighted[p]);
                }
            }
        }
    }
    const float inverse = 1.0f / total;
    y += (static_cast<size_t>(tokens[row]) * heads + head) * dim;
#pragma unroll
    for (int p = 0; p < PER_THREAD; ++p) {
        const int i = p * REDUCE_THREADS + threadIdx.x;
        if (i < dim) y[i] = from_float<T>(weighted[p] * inverse);
    }
}

} // namespace paged_decode
} // namespace ferry

#define ENTRY(G, dtypes, T, C)                                                                     \
    extern "C" __global__ void __launch_bounds__(ferry::paged_decode::THREADS,                     \
                                                 ferry::paged_decode::BLOCKS<G>)                   \
        ferry_paged_decode_g##G##_##dtypes(                                                        \
            T *y, float *sums, float *softmax, const T *q, const C *keys, const C *values,         \
            const int *tokens, const int *contexts, const int *tables, int table_stride,           \
            int heads, int kv_heads, int head_dim, int block_size, int span, int window,           \
            float scale, float softcap) {                                                          \
        ferry::paged_decode::decode<G>(y, sums, softmax, q, keys, values, tokens, contexts,        \
                                       tables, table_stride, heads, kv_heads, head_dim,            \
                                       block_size, span, window, scale, softcap);                  \
    }                                                                                              \
    FERRY_KERNEL(ferry_paged_decode_g##G##_##dtypes, ferry::paged_decode::THREADS)

#define ENTRIES(dtypes, T, C)                                                                      \
    ENTRY(1, dtypes, T, C);                                                                        \
    ENTRY(2, dtypes, T, C);                                                                        \
    ENTRY(4, dtypes, T, C);                                                                        \
    ENTRY(8, dtypes, T, C)

ENTRIES(f32_f32, float, float);
ENTRIES(f32_f16, float, __half);
ENTRIES(f32_bf16, float, __nv_bfloat16);
ENTRIES(f16_f16, __half, __half);
ENTRIES(bf16_bf16, __nv_bfloat16, __nv_bfloat16);

#define REDUCE(dtype, T)                                                                           \
    extern "C" __global__ void __launch_bounds__(ferry::paged_decode::REDUCE_THREADS)              \
        ferry_paged_decode_reduce_##dtype(T *y, const float *sums, const float *softmax,           \
                                          const int *tokens, const int *contexts, int heads,       \
                                          int head_dim, int span, int window, int spans) {         \
        ferry::paged_decode::reduce(y, sums, softmax, tokens, contexts, heads, head_dim, span,     \
                                    window, spans);                                                \
    }                                                                                              \
    FERRY_KERNEL(ferry_paged_decode_reduce_##dtype, ferry::paged_decode::REDUCE_THREADS)

REDUCE(f32, float);
REDUCE(f16, __half);
REDUCE(bf16, __nv_bfloat16);
