// Rotary position embedding of queries and keys, and the writing of keys and values into the paged
// cache.
//
//   theta_i = position * f_i                                       i < pairs
//   (a, b) <- m * (a*cos theta_i - b*sin theta_i,  b*cos theta_i + a*sin theta_i)
//   (a, b) = (x[i], x[i + pairs])   half split;     (x[2i], x[2i + 1])   interleaved
//
//   rope_angles   angles <- m*cos theta, m*sin theta of each token
//   rope_write    q <- rope(rms(q)),  cache <- rope(rms(k)), v      rms optional, head by head
//
//   qkv        [tokens, (heads + 2*kv_heads) * d]
//   angles     [tokens, 2, pairs]  f32   cosines, then sines
//   q          [tokens, heads * d]
//   keys       [blocks, kv_heads, d/8, block_size, 8]
//   values     [blocks, kv_heads, block_size, d]
//   slots      [tokens]  int32     block * block_size + place in the block; < 0: written nowhere
//
// Su et al. 2021 (arXiv:2104.09864); the CPU twins are src/ops/rope.rs and
// src/ops/paged_attention/write.rs, which has the queries' part in span.rs.
//
// The device's cache is not laid out as the CPU's. Scores are computed with a key per lane: in
// `keys`, 8 dimensions of neighbouring tokens are neighbours, so that a warp's load of 16 bytes a
// lane is of 512 that lie together, and nothing has to be added up across lanes. Sums over values
// have dimensions in the lanes: in `values`, a token's dimensions are neighbours.
//
// The angle is the f32 product and its sine is taken in f64, as on the CPU, once per step for all
// layers. A query that is stored in f16 and a key or value that is are bounded to what f16 holds:
// an infinity would make NaN of the weight 0 that a later query may give it.
//
// Tiling. A warp does a head, two values to a lane; the norm's second look at a head is at L1.
//
// ABI. `rope_angles`: grid (ceil(tokens * pairs / THREADS)), block (THREADS). `rope_write`: grid
// (tokens, ceil((heads + 2*kv_heads) / WARPS)), block (THREADS); d a multiple of 8; fewer than 2^31
// slots; norms may be null; without rotation `angles` is null and pairs is 0. Matrices start at a
// multiple of 16 bytes. T: the activations' type, C: the cache's.
//   ferry_rope_angles(float* angles, const int* positions, const float* inverse_frequencies,
//                     float magnitude, int tokens, int pairs)
//   ferry_rope_write_T_C(T* q, C* keys, C* values, const T* qkv, const float* angles,
//                        const float* q_norm, const float* k_norm, const int* slots, int heads,
//                        int kv_heads, int head_dim, int pairs, int interleaved, int block_size,
//                        float q_epsilon, float k_epsilon)
//   T_C: f32_f32, f32_f16, f32_bf16, f16_f16, bf16_bf16

#include "vectors.cuh"

namespace ferry {
namespace rope {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * 32;
// Dimensions of a key that lie together.
constexpr int PART = 8;

// Calls `put(first dimension, V values)` for the parts of a head that this lane has, normalized and
// rotated.
template <int V, typename T, typename Put>
__device__ __forceinline__ void turn_head(const T *head, const float *gain, float inverse,
                                          const float *cosines, const float *sines, int pairs,
                                          int dim, int lane, Put put) {
    const auto take = [&](int i) {
        Floats<V> x = load<V>(head + i);
        if (gain != nullptr) {
#pragma unroll
            for (int v = 0; v < V; ++v) x.at[v] = x.at[v] * inverse * gain[i + v];
        }
        return x;
    };
    for (int i = lane * V; i < pairs; i += 32 * V) {
        const Floats<V> a = take(i), b = take(i + pairs);
        Floats<V> low, high;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float cosine = cosines[i + v], sine = sines[i + v];
            low.at[v] = a.at[v] * cosine - b.at[v] * sine;
            high.at[v] = b.at[v] * cosine + a.at[v] * sine;
        }
        put(i, low);
        put(i + pairs, high);
    }
    for (int i = 2 * pairs + lane * V; i < dim; i += 32 * V) put(i, take(i));
}

// The same, for pairs of neighbours.
template <typename T, typename Put> __device__ __forceinline__ void
turn_head_interleaved(const T *head, const float *gain, float inverse, const float *cosines,
                      const float *sines, int pairs, int dim, int lane, Put put) {
    for (int i = lane; i < dim / 2; i += 32) {
        Floats<2> x = load<2>(head + 2 * i);
        if (gain != nullptr) {
            x.at[0] = x.at[0] * inverse * gain[2 * i];
            x.at[1] = x.at[1] * inverse * gain[2 * i + 1];
        }
        if (i < pairs) {
            const float a = x.at[0], b = x.at[1];
            x.at[0] = a * cosines[i] - b * sines[i];
            x.at[1] = b * cosines[i] + a * sines[i];
        }
        put(2 * i, x);
    }
}

template <typename T, typename C>
__device__ __forceinline__ void write(T *q, C *keys, C *values, const T *qkv, const float *angles,
                                      const float *q_norm, const float *k_norm, const int *slots,
                                      int heads, int kv_heads, int dim, int pairs, bool interleaved,
                                      int block_size, float q_epsilon, float k_epsilon) {
    const int token = blockIdx.x;
    const int lane = threadIdx.x % 32;
    const int index = blockIdx.y * WARPS + threadIdx.x / 32;
    const int width = heads + 2 * kv_heads;
    const int slot = slots[token];
    const bool is_query = index < heads;
    if (index >= width || (slot < 0 && !is_query)) return;

    const T *head = qkv + (static_cast<size_t>(token) * width + index) * dim;
    const int kv_head = (index - heads) % kv_heads;
    const size_t block_head = static_cast<size_t>(slot / block_size) * kv_heads + kv_head;
    const int place = slot % block_size;

    if (index >= heads + kv_heads) {
        C *value = values + (block_head * block_size + place) * dim;
        for (int i = lane * 2; i < dim; i += 64) {
            store_bounded(value + i, load<2>(head + i));
        }
        return;
    }

    const float *gain = is_query ? q_norm : k_norm;
    float inverse = 1.0f;
    if (gain != nullptr) {
        float squares = 0.0f;
        for (int i = lane * 2; i < dim; i += 64) {
            const Floats<2> x = load<2>(head + i);
            squares = fmaf(x.at[0], x.at[0], squares);
            squares = fmaf(x.at[1], x.at[1], squares);
        }
        inverse = 1.0f / sqrtf(warp_sum(squares) / dim + (is_query ? q_epsilon : k_epsilon));
    }
    const float *cosines = angles + static_cast<size_t>(token) * 2 * pairs;
    const float *sines = cosines + pairs;

    T *query = q + (static_cast<size_t>(token) * heads + index) * dim;
    C *key = keys + (block_head * (dim / PART) * block_size + place) * PART;
    const auto put = [&](int i, const auto &x) {
        if (is_query) {
            store_bounded(query + i, x);
        } else {
            // V divides PART, so that V values never are in two parts.
            store_bounded(key + static_cast<size_t>(i / PART) * block_size * PART + i % PART, x);
        }
    };
    if (interleaved) {
        turn_head_interleaved(head, gain, inverse, cosines, sines, pairs, dim, lane, put);
    } else if (pairs % 2 == 0) {
        turn_head<2>(head, gain, inverse, cosines, sines, pairs, dim, lane, put);
    } else {
        turn_head<1>(head, gain, inverse, cosines, sines, pairs, dim, lane, put);
    }
}

} // namespace rope
} // namespace ferry

extern "C" __global__ void __launch_bounds__(ferry::rope::THREADS)
    ferry_rope_angles(float *angles, const int *positions, const float *inverse_frequencies,
                      float magnitude, int tokens, int pairs) {
    const long long at = static_cast<long long>(blockIdx.x) * ferry::rope::THREADS + threadIdx.x;
    if (at >= static_cast<long long>(tokens) * pairs) return;
    const int token = static_cast<int>(at / pairs), pair = static_cast<int>(at % pairs);
    const float angle = static_cast<float>(positions[token]) * inverse_frequencies[pair];
    double sine, cosine;
    sincos(static_cast<double>(angle), &sine, &cosine);
    float *row = angles + static_cast<size_t>(token) * 2 * pairs;
    row[pair] = static_cast<float>(cosine * magnitude);
    row[pairs + pair] = static_cast<float>(sine * magnitude);
}

FERRY_KERNEL(ferry_rope_angles, ferry::rope::THREADS);

#define ENTRY(dtypes, T, C)                                                                        \
    extern "C" __global__ void __launch_bounds__(ferry::rope::THREADS, 3)                          \
        ferry_rope_write_##dtypes(                                                                 \
            T *q, C *keys, C *values, const T *qkv, const float *angles, const float *q_norm,      \
            const float *k_norm, const int *slots, int heads, int kv_heads, int head_dim,          \
            int pairs, int interleaved, int block_size, float q_epsilon, float k_epsilon) {        \
        ferry::rope::write(q, keys, values, qkv, angles, q_norm, k_norm, slots, heads, kv_heads,   \
                           head_dim, pairs, interleaved != 0, block_size, q_epsilon, k_epsilon);   \
    }                                                                                              \
    FERRY_KERNEL(ferry_rope_write_##dtypes, ferry::rope::THREADS)

ENTRY(f32_f32, float, float);
ENTRY(f32_f16, float, __half);
ENTRY(f32_bf16, float, __nv_bfloat16);
ENTRY(f16_f16, __half, __half);
ENTRY(bf16_bf16, __nv_bfloat16, __nv_bfloat16);
