// From the logits of a row to its next token, which is all that leaves the device.
//
// The raw logits l become z: for each token that occurs in the prompt or was generated, l / r if
// positive, else l * r (repetition penalty); less f*n + p for one generated n times (frequency and
// presence penalty); plus its bias. Tokens that the mask forbids are out. Temperature 0 takes the
// largest z. Else tokens are filtered one after the other, each filter by the probabilities
// softmax(z / T) of those that the one before left: top_k, top_p, min_p; and one is drawn. Ties go
// to the lower id. What is reported is of the model: logprob = l - log_sum_exp(l).
//
//   logits    [rows, vocabulary]  f32      z in the end, where changed
//   rows      [rows]              SampleRow, 64 bytes      } of sampling.cuh
//   changes   [all changes]       SampleChange, 16 bytes   }
//   raw       [all changes]       f32      the model's logits of these
//   masks     [masks, mask_words] uint32   bit token % 32 of word token / 32
//   chunks    [rows, chunks]      of logit_statistics.cu; chunks = ceil(vocabulary / CHUNK)
//   states    [rows]              RowState, 16 bytes   } between the kernels
//   masses    [rows, chunks]      ChunkMasses          }
//   tokens    [rows]  int32       -1: the logits are not finite, -2: no token is allowed
//   logprobs  [rows]  f32
//
// The CPU twin is src/generation/sampling: the same draw of the same seed gives the same token.
// Weights are computed as there to the last bit, and added up as integers (2^-45 of the largest),
// exactly and so in any order; the CPU adds up in f64. So both agree unless the draw lies within
// some 2^-26 of the whole (for the largest vocabulary) of where two tokens meet. The order that tokens are drawn in is the
// CPU's: by likelihood, ties by id, after top_k or top_p; else by group of 32 tokens, in which
// changed ones come first.
//
// Nothing is sorted. "The first k", "the first that together weigh p" and "the one that a draw
// meets" all are the question at which logit a sum by descending logit reaches a target; `select` of
// sampling.cuh answers it in three passes over bins. The candidates of these passes are some of
// high logit, collected in shared memory, of which sums over the chunks tell that they suffice; if
// they are too many for it (flat distributions), the passes are over the row itself.
//
// ABI, in this order, after logit_statistics. `sample_prepare`: grid (rows), block (THREADS): all
// that greedy rows need. `sample_weigh`: grid (chunks, rows), block (WEIGH_THREADS), and
// `sample_draw`: grid (rows), block (THREADS): not needed if all rows are greedy. A vocabulary of at
// most 2^18; rows of one that is a multiple of 4 start at 16 bytes.
//   ferry_sample_prepare(int* tokens, float* logprobs, RowState* states, float* logits, float* raw,
//                        const ChunkStatistics* chunks, const SampleRow* rows,
//                        const SampleChange* changes, const unsigned* masks, int mask_words,
//                        int vocabulary, int chunk_count)
//   ferry_sample_weigh(ChunkMasses* masses, const RowState* states, const float* logits,
//                      const SampleRow* rows, const SampleChange* changes, const unsigned* masks,
//                      int mask_words, int vocabulary)
//   ferry_sample_draw(int* tokens, float* logprobs, const RowState* states,
//                     const ChunkMasses* masses, const float* logits, const float* raw,
//                     const SampleRow* rows, const SampleChange* changes, const unsigned* masks,
//                     int mask_words, int vocabulary, int chunk_count)

#include "sampling.cuh"

namespace ferry {

// What is left to do for a row.
enum Pending { NOTHING, DRAW_BY_LIKELIHOOD, DRAW_BY_GROUP };

struct RowState {
    // The largest z.
    float max;
    // Of the model's.
    float log_sum_exp;
    int pending;
    int unused;
};

// (max - z) / T up to which candidates may be collected.
constexpr int CUTOFFS = 6;

struct ChunkMasses {
    // Of all; of those that min_p leaves, if they are drawn by group.
    unsigned long long all;
    // Of those above each cutoff, and their number.
    unsigned long long above[CUTOFFS];
    unsigned counts[CUTOFFS];
};

namespace sampling {

constexpr int WEIGH_THREADS = 256;
constexpr int CHUNK_GROUPS = CHUNK / GROUP;
// Candidates in shared memory.
constexpr int ROOM = 2048;
// Temperatures below take the largest, as 0 does.
constexpr float GREEDY_BELOW = 1e-5f;

__device__ __forceinline__ float cutoff(int i) {
    constexpr float TABLE[CUTOFFS] = {2.0f, 4.0f, 7.0f, 11.0f, 16.0f, 23.0f};
    return TABLE[i];
}

// The least logit that is within a cutoff, rounded alike wherever it is asked.
__device__ __forceinline__ float reach_of(float max, float cutoff, float temperature) {
    return __fadd_rn(max, -__fmul_rn(cutoff, temperature));
}

// Is `top_k` fewer than all?
__device__ __forceinline__ bool is_some(unsigned top_k, int vocabulary) {
    return top_k > 0 && top_k < static_cast<unsigned>(vocabulary);
}

__device__ __forceinline__ Logits logits_of(const float *logits, const SampleRow &row,
                                            const unsigned *masks, int mask_words, int vocabulary) {
    Logits of_row;
    of_row.at = logits + static_cast<size_t>(blockIdx.x) * vocabulary;
    of_row.vocabulary = vocabulary;
    of_row.mask = row.mask < 0 ? nullptr : masks + static_cast<size_t>(row.mask) * mask_words;
    of_row.mask_words = mask_words;
    return of_row;
}

// Place of the first of a row's changes whose token is not below `token`.
__device__ __forceinline__ int first_change(const SampleChange *changes, int count, int token) {
    int low = 0;
    while (low < count) {
        const int middle = (low + count) / 2;
        if (static_cast<int>(changes[middle].token) < token) {
            low = middle + 1;
        } else {
            count = middle;
        }
    }
    return low;
}

// What a token's logit becomes.
__device__ __forceinline__ float changed(float logit, const SampleChange &change,
                                         const SampleRow &row) {
    if (change.occurs) {
        logit = logit > 0.0f ? logit / row.repetition_penalty
                             : __fmul_rn(logit, row.repetition_penalty);
    }
    if (change.generated > 0) {
        const float times = static_cast<float>(change.generated);
        logit = __fadd_rn(
            logit, -__fadd_rn(__fmul_rn(row.frequency_penalty, times), row.presence_penalty));
    }
    return __fadd_rn(logit, change.bias);
}

// Writes the row's token, by one thread.
__device__ __forceinline__ void finish(int *tokens, float *logprobs, int token, float log_sum_exp,
                                       const float *logits, const float *raw,
                                       const SampleChange *changes, int change_count) {
    float logit = NAN;
    if (token >= 0) {
        logit = logits[token];
        const int at = first_change(changes, change_count, token);
        if (at < change_count && static_cast<int>(changes[at].token) == token) logit = raw[at];
    }
    tokens[blockIdx.x] = token;
    logprobs[blockIdx.x] = logit - log_sum_exp;
}

__device__ __forceinline__ void prepare(int *tokens, float *logprobs, RowState *states,
                                        float *logits, float *raw, const ChunkStatistics *chunks,
                                        const SampleRow *rows, const SampleChange *changes,
                                        const unsigned *masks, int mask_words, int vocabulary,
                                        int chunk_count) {
    const SampleRow row = rows[blockIdx.x];
    const Logits view = logits_of(logits, row, masks, mask_words, vocabulary);
    float *own = logits + static_cast<size_t>(blockIdx.x) * vocabulary;
    const int change_count = static_cast<int>(row.changes);
    changes += row.first_change;
    raw += row.first_change;

    const Statistics statistics =
        combine(chunks + static_cast<size_t>(blockIdx.x) * chunk_count, chunk_count);
    unsigned long long best = statistics.best;
    const float log_sum_exp = statistics.log_sum_exp;

    RowState state = {statistics.max, log_sum_exp, NOTHING, 0};
    const bool finite = fabsf(log_sum_exp) < INFINITY && fabsf(statistics.max) < INFINITY;
    if (finite) {
        for (int i = threadIdx.x; i < change_count; i += THREADS) {
            const SampleChange change = changes[i];
            const float logit = own[change.token];
            raw[i] = logit;
            own[change.token] = changed(logit, change, row);
        }
        __syncthreads();
        if (change_count > 0 || view.mask != nullptr) {
            best = 0;
            view.each([&](int token, float z) {
                const unsigned long long rank = rank_of(z, token);
                if (z > -INFINITY && rank > best) best = rank;
            });
            best = block_highest(best);
            state.max = float_of(static_cast<unsigned>(best >> 32));
        }
    }
    const bool greedy = row.temperature < GREEDY_BELOW;
    if (finite && best != 0 && !greedy) {
        const bool by_likelihood = row.top_p < 1.0f || is_some(row.top_k, vocabulary);
        state.pending = by_likelihood ? DRAW_BY_LIKELIHOOD : DRAW_BY_GROUP;
    }
    if (threadIdx.x == 0) {
        states[blockIdx.x] = state;
        if (state.pending == NOTHING) {
            const int token = !finite ? NOT_FINITE
                              : best == 0
                                  ? NONE_ALLOWED
                                  : static_cast<int>(0xffffffffu - static_cast<unsigned>(best));
            finish(tokens, logprobs, token, log_sum_exp, own, raw, changes, change_count);
        }
    }
}

// The mass of a group of 32 tokens that is drawn by group, as the CPU adds it up; the same for each
// of the 8 neighbouring lanes that compute it together. `part` is this lane's place among them.
__device__ __forceinline__ Mass group_mass(const Logits &view, int group, int part, float max,
                                           float scale, float min_p, const SampleChange *changes,
                                           int change_count) {
    const int first = group * GROUP;
    const unsigned allowed = view.allowed(group);
    if (min_p > 0.0f) {
        Mass sum = 0;
#pragma unroll
        for (int i = part; i < GROUP; i += 8) {
            if (first + i >= view.vocabulary || !(allowed >> i & 1)) continue;
            const float w = weight(view.at[first + i], max, scale);
            if (w >= min_p) sum += mass_of(w);
        }
#pragma unroll
        for (int lanes = 4; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
        return sum;
    }
    const int change = first_change(changes, change_count, first);
    const bool has_changes =
        change < change_count && static_cast<int>(changes[change].token) < first + GROUP;
    const bool whole = first + GROUP <= view.vocabulary && allowed == 0xffffffffu && !has_changes;
    float sum = 0.0f;
    if (whole) {
#pragma unroll
        for (int i = part; i < GROUP; i += 8) {
            sum = __fadd_rn(sum, weight(view.at[first + i], max, scale));
        }
    } else if (part == 0) {
        // Changed tokens are added up apart.
        float of_changed = 0.0f;
        int next = change;
        for (int i = 0; i < GROUP && first + i < view.vocabulary; i++) {
            const bool is_changed =
                next < change_count && static_cast<int>(changes[next].token) == first + i;
            next += is_changed;
            if (!(allowed >> i & 1)) continue;
            const float w = weight(view.at[first + i], max, scale);
            float &to = is_changed ? of_changed : sum;
            to = __fadd_rn(to, w);
        }
        sum = __fadd_rn(sum, of_changed);
    }
    float total = 0.0f;
#pragma unroll
    for (int lane = 0; lane < 8; lane++) {
        total = __fadd_rn(total, __shfl_sync(ALL_LANES, sum, lane, 8));
    }
    return mass_of(total);
}

__device__ __forceinline__ void weigh(ChunkMasses *masses, const RowState *states,
                                      const float *logits, const SampleRow *rows,
                                      const SampleChange *changes, const unsigned *masks,
                                      int mask_words, int vocabulary) {
    SHARED_ARRAY(ChunkMasses, of_warp, [WEIGH_THREADS / WARP]);
    const RowState state = states[blockIdx.y];
    if (state.pending == NOTHING) return;
    const SampleRow row = rows[blockIdx.y];
    Logits view = logits_of(logits, row, masks, mask_words, vocabulary);
    view.at = logits + static_cast<size_t>(blockIdx.y) * vocabulary;
    const float scale = 1.0f / row.temperature;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int part = lane % 8;
    const int groups = (vocabulary + GROUP - 1) / GROUP;

    ChunkMasses sums = {};
    for (int i = 0; i < CHUNK_GROUPS; i += WEIGH_THREADS / 8) {
        const int group = blockIdx.x * CHUNK_GROUPS + i + static_cast<int>(threadIdx.x) / 8;
        if (state.pending == DRAW_BY_GROUP) {
            // Each of the 8 lanes has it; the warp's lanes meet, also beyond the last group.
            const Mass mass =
                group_mass(view, min(group, groups - 1), part, state.max, scale, row.min_p,
                           changes + row.first_change, static_cast<int>(row.changes));
            if (part == 0 && group < groups) sums.all += mass;
            continue;
        }
        if (group >= groups) continue;
        const unsigned allowed = view.allowed(group);
#pragma unroll
        for (int j = part; j < GROUP; j += 8) {
            const int token = group * GROUP + j;
            if (token >= vocabulary || !(allowed >> j & 1)) continue;
            const float z = view.at[token];
            const Mass mass = mass_of(weight(z, state.max, scale));
            sums.all += mass;
#pragma unroll
            for (int c = 0; c < CUTOFFS; c++) {
                if (z >= reach_of(state.max, cutoff(c), row.temperature)) {
                    sums.above[c] += mass;
                    sums.counts[c]++;
                }
            }
        }
    }
    sums.all = warp_total(sums.all);
#pragma unroll
    for (int c = 0; c < CUTOFFS; c++) {
        sums.above[c] = warp_total(sums.above[c]);
        sums.counts[c] = warp_total(sums.counts[c]);
    }
    if (lane == 0) of_warp[warp] = sums;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < WEIGH_THREADS / WARP; w++) {
        sums.all += of_warp[w].all;
        for (int c = 0; c < CUTOFFS; c++) {
            sums.above[c] += of_warp[w].above[c];
            sums.counts[c] += of_warp[w].counts[c];
        }
    }
    masses[static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x] = sums;
}

// What `sum` is to reach for `point`, a share of it in [0, 1), to be passed.
__device__ __forceinline__ Mass target_of(double point, Mass sum) {
    const Mass left = static_cast<Mass>(point * static_cast<double>(sum));
    return left < sum ? left + 1 : sum;
}

// What is to be reached for the share `p` in (0, 1].
__device__ __forceinline__ Mass share_of(float p, Mass sum) {
    const Mass share = static_cast<Mass>(ceil(static_cast<double>(p) * static_cast<double>(sum)));
    return min(max(share, static_cast<Mass>(1)), sum);
}

// Which token a draw by group meets.
__device__ __forceinline__ int draw_by_group(const Scratch &scratch, const Logits &view,
                                             const ChunkMasses *masses, int chunk_count, float max,
                                             float scale, float min_p, double point,
                                             const SampleChange *changes, int change_count) {
    SHARED_ARRAY(Mass, found, [2]);
    Mass own = 0;
    // More chunks than threads would be more than 2^18 tokens.
    if (static_cast<int>(threadIdx.x) < chunk_count) own = masses[threadIdx.x].all;
    const Mass total = block_total(own);
    Mass target = target_of(point, total);
    Mass before = block_before(own);
    if (before < target && target - before <= own) {
        found[0] = threadIdx.x;
        found[1] = target - before;
    }
    __syncthreads();
    const int first_group = static_cast<int>(found[0]) * CHUNK_GROUPS;
    target = found[1];

    const int groups = (view.vocabulary + GROUP - 1) / GROUP;
    for (int i = static_cast<int>(threadIdx.x) / 8; i < CHUNK_GROUPS; i += THREADS / 8) {
        const int group = first_group + i;
        const Mass mass = group_mass(view, min(group, groups - 1), threadIdx.x % 8, max, scale,
                                     min_p, changes, change_count);
        if (threadIdx.x % 8 == 0) scratch.bins[i] = group < groups ? mass : 0;
    }
    __syncthreads();
    own = static_cast<int>(threadIdx.x) < CHUNK_GROUPS ? scratch.bins[threadIdx.x] : 0;
    before = block_before(own);
    if (before < target && target - before <= own) {
        found[0] = threadIdx.x;
        found[1] = target - before;
    }
    __syncthreads();
    const int group = first_group + static_cast<int>(found[0]);
    target = found[1];

    // One thread goes through the group: changed tokens, then the others.
    if (threadIdx.x != 0) return 0;
    const int first = group * GROUP;
    const unsigned allowed = view.allowed(group);
    unsigned changed_bits = 0;
    for (int i = first_change(changes, change_count, first);
         i < change_count && static_cast<int>(changes[i].token) < first + GROUP; i++) {
        changed_bits |= 1u << (changes[i].token - first);
    }
    int chosen = first;
    Mass sum = 0;
    for (int i = 0; i < 2 * GROUP && sum < target; i++) {
        const int place = i % GROUP, token = first + place;
        const bool is_turn = (changed_bits >> place & 1) == (i < GROUP ? 1u : 0u);
        if (!is_turn || token >= view.vocabulary || !(allowed >> place & 1)) continue;
        const float w = weight(view.at[token], max, scale);
        if (w > 0.0f && w >= min_p) {
            chosen = token;
            sum += mass_of(w);
        }
    }
    return chosen;
}

// Never a divisor of 0.
__device__ __forceinline__ Mass at_least_one(Mass mass) { return mass > 0 ? mass : 1; }

// Which token a draw by likelihood meets, of a source that has all that can be drawn, in low..=high.
template <typename Source>
__device__ __forceinline__ int draw_by_likelihood(const Scratch &scratch, const Source &source,
                                                  unsigned low, unsigned high, Mass total,
                                                  bool by_count, const SampleRow &row, float max,
                                                  float scale, double point) {
    SHARED_ARRAY(int, ties, [2]);
    const auto by_logit = [](int, float z) { return key_of(z); };
    const auto mass = [&](int, float z) { return mass_of(weight(z, max, scale)); };
    // Of those that have the last key, so many are in.
    Cut last = {low, ~static_cast<Mass>(0)};
    if (by_count) {
        last = select(scratch, source, low, high, row.top_k, by_logit,
                      [](int, float) { return static_cast<Mass>(1); });
        Mass sum = 0;
        source.each([&](int token, float z) {
            if (key_of(z) > last.key) sum += mass(token, z);
        });
        total = block_total(sum) + last.rest * mass(0, float_of(last.key));
    }
    if (row.top_p < 1.0f) {
        last = select(scratch, source, low, high, share_of(row.top_p, total), by_logit, mass);
        // The least number of equal ones that reaches the share.
        const Mass one = at_least_one(mass(0, float_of(last.key)));
        const Mass equal = (last.rest + one - 1) / one;
        Mass sum = 0;
        source.each([&](int token, float z) {
            if (key_of(z) > last.key) sum += mass(token, z);
        });
        last.rest = equal;
        total = block_total(sum) + equal * one;
    }
    const auto filtered = [&](int, float z) {
        const float w = weight(z, max, scale);
        return w >= row.min_p ? mass_of(w) : static_cast<Mass>(0);
    };
    if (row.min_p > 0.0f) {
        Mass sum = 0;
        source.each([&](int token, float z) {
            if (key_of(z) > last.key) sum += filtered(token, z);
        });
        total = block_total(sum);
        if (last.rest != ~static_cast<Mass>(0))
            total += last.rest * filtered(0, float_of(last.key));
    }
    const Cut drawn =
        select(scratch, source, low, high, target_of(point, total), by_logit, filtered);
    const Mass one = at_least_one(mass(0, float_of(drawn.key)));
    const int place = static_cast<int>((drawn.rest - 1) / one);

    // Its token: of those with this logit, the one at `place` by id.
    __syncthreads();
    if (threadIdx.x == 0) {
        ties[0] = 0x7fffffff;
        ties[1] = 0;
    }
    __syncthreads();
    source.each([&](int token, float z) {
        if (key_of(z) != drawn.key) return;
        atomicMin(&ties[0], token);
        atomicAdd(&ties[1], 1);
    });
    __syncthreads();
    if (place == 0 || ties[1] == 1) return ties[0];
    const Cut tie = select(
        scratch, source, 0, 0x7fffffffu, min(place + 1, ties[1]),
        [](int token, float) { return 0x7fffffffu - static_cast<unsigned>(token); },
        [&](int, float z) { return static_cast<Mass>(key_of(z) == drawn.key); });
    return static_cast<int>(0x7fffffffu - tie.key);
}

__device__ __forceinline__ void draw(int *tokens, float *logprobs, const RowState *states,
                                     const ChunkMasses *masses, const float *logits,
                                     const float *raw, const SampleRow *rows,
                                     const SampleChange *changes, const unsigned *masks,
                                     int mask_words, int vocabulary, int chunk_count) {
    SHARED_ARRAY(Mass, bins, [THREADS]);
    SHARED_ARRAY(Cut, found, [1]);
    const Scratch scratch = {bins, found};
    SHARED_ARRAY(unsigned, keys, [ROOM]);
    SHARED_ARRAY(int, ids, [ROOM]);
    SHARED_ARRAY(int, collected, [1]);
    const RowState state = states[blockIdx.x];
    if (state.pending == NOTHING) return;
    const SampleRow row = rows[blockIdx.x];
    const Logits view = logits_of(logits, row, masks, mask_words, vocabulary);
    const int change_count = static_cast<int>(row.changes);
    changes += row.first_change;
    masses += static_cast<size_t>(blockIdx.x) * chunk_count;
    const float scale = 1.0f / row.temperature;
    const double point = unit(row.seed, row.draws);

    int token;
    if (state.pending == DRAW_BY_GROUP) {
        token = draw_by_group(scratch, view, masses, chunk_count, state.max, scale, row.min_p,
                              point, changes, change_count);
    } else {
        // Each warp adds up the chunks.
        const auto over_chunks = [&](auto of) {
            Mass sum = 0;
            for (int i = threadIdx.x % WARP; i < chunk_count; i += WARP) sum += of(masses[i]);
            return warp_total(sum);
        };
        const Mass total = over_chunks([](const ChunkMasses &chunk) { return chunk.all; });
        const Mass target = share_of(row.top_p, total);
        // The least that suffices; if nothing does, all that has mass.
        float reach = NO_MASS;
        int count = 0x7fffffff;
        bool enough = false, by_count = is_some(row.top_k, vocabulary);
#pragma unroll 1
        for (int c = 0; c < CUTOFFS && !enough; c++) {
            const Mass number =
                over_chunks([&](const ChunkMasses &chunk) { return chunk.counts[c]; });
            enough = by_count ? number >= row.top_k : over_chunks([&](const ChunkMasses &chunk) {
                                                          return chunk.above[c];
                                                      }) >= target;
            if (enough) {
                reach = cutoff(c);
                count = static_cast<int>(number);
            }
        }
        const float lowest = reach_of(state.max, reach, row.temperature);
        // -0 is as much as 0, but its key is lower.
        const unsigned low = key_of(lowest == 0.0f ? -0.0f : fmaxf(lowest, -FLT_MAX));
        const unsigned high = key_of(state.max);
        if (!enough && by_count) {
            // Fewer than k may have any mass: then all of them are in.
            Mass number = 0;
            view.each([&](int, float z) { number += z >= float_of(low); });
            by_count = block_total(number) > row.top_k;
        }
        if (count <= ROOM) {
            if (threadIdx.x == 0) collected[0] = 0;
            __syncthreads();
            view.each([&](int id, float z) {
                if (!(z >= lowest)) return;
                const int at = atomicAdd(&collected[0], 1);
                if (at >= ROOM) return;
                keys[at] = key_of(z);
                ids[at] = id;
            });
            __syncthreads();
            const Candidates candidates = {keys, ids, collected[0]};
            token = draw_by_likelihood(scratch, candidates, low, high, total, by_count, row,
                                       state.max, scale, point);
        } else {
            token = draw_by_likelihood(scratch, view, low, high, total, by_count, row, state.max,
                                       scale, point);
        }
    }
    if (threadIdx.x == 0) {
        finish(tokens, logprobs, token, state.log_sum_exp, view.at, raw + row.first_change, changes,
               change_count);
    }
}

} // namespace sampling
} // namespace ferry

extern "C" __global__ void __launch_bounds__(ferry::sampling::THREADS, 1)
    ferry_sample_prepare(int *tokens, float *logprobs, ferry::RowState *states, float *logits,
                         float *raw, const ferry::ChunkStatistics *chunks,
                         const ferry::SampleRow *rows, const ferry::SampleChange *changes,
                         const unsigned *masks, int mask_words, int vocabulary, int chunk_count) {
    ferry::sampling::prepare(tokens, logprobs, states, logits, raw, chunks, rows, changes, masks,
                             mask_words, vocabulary, chunk_count);
}
FERRY_KERNEL(ferry_sample_prepare, ferry::sampling::THREADS);

extern "C" __global__ void __launch_bounds__(ferry::sampling::WEIGH_THREADS)
    ferry_sample_weigh(ferry::ChunkMasses *masses, const ferry::RowState *states,
                       const float *logits, const ferry::SampleRow *rows,
                       const ferry::SampleChange *changes, const unsigned *masks, int mask_words,
                       int vocabulary) {
    ferry::sampling::weigh(masses, states, logits, rows, changes, masks, mask_words, vocabulary);
}
FERRY_KERNEL(ferry_sample_weigh, ferry::sampling::WEIGH_THREADS);

extern "C" __global__ void __launch_bounds__(ferry::sampling::THREADS, 1)
    ferry_sample_draw(int *tokens, float *logprobs, const ferry::RowState *states,
                      const ferry::ChunkMasses *masses, const float *logits, const float *raw,
                      const ferry::SampleRow *rows, const ferry::SampleChange *changes,
                      const unsigned *masks, int mask_words, int vocabulary, int chunk_count) {
    ferry::sampling::draw(tokens, logprobs, states, masses, logits, raw, rows, changes, masks,
                          mask_words, vocabulary, chunk_count);
}
FERRY_KERNEL(ferry_sample_draw, ferry::sampling::THREADS);
