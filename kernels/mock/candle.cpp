// Those of candle's own kernels that Ferry's models need on a device, as plain loops with the
// parameters of candle-kernels 0.11.1 (indexing.cu, unary.cu, cast.cu, affine.cu).

#include "device.h"
#include "half.h"

#include <map>

namespace mock {

namespace {

template <typename T>
T argument(void** arguments, int index) {
    T value;
    memcpy(&value, arguments[index], sizeof value);
    return value;
}

// `info` is the dimensions, then the strides; null is contiguous.
size_t strided(size_t i, size_t dims, const size_t* info) {
    if (!info) return i;
    size_t at = 0;
    for (size_t d = dims; d-- > 0;) {
        at += i % info[d] * info[dims + d];
        i /= info[d];
    }
    return at;
}

template <typename T>
void index_select(void** a) {
    auto count = argument<size_t>(a, 0);
    auto ids = argument<const uint32_t*>(a, 3);
    auto in = argument<const T*>(a, 4);
    auto out = argument<T*>(a, 5);
    auto source_size = argument<size_t>(a, 7), ids_size = argument<size_t>(a, 8), right = argument<size_t>(a, 9);
    for (size_t i = 0; i < count; i++) {
        size_t left = i / (ids_size * right), id = ids[i / right % ids_size];
        out[i] = in[(left * source_size + id) * right + i % right];
    }
}

template <typename T, typename U>
void convert(void** a) {
    auto count = argument<size_t>(a, 0), dims = argument<size_t>(a, 1);
    auto info = argument<const size_t*>(a, 2);
    auto in = argument<const T*>(a, 3);
    auto out = argument<U*>(a, 4);
    for (size_t i = 0; i < count; i++) narrow(widen(in[strided(i, dims, info)]), &out[i]);
}

template <typename T>
void copy(void** a) {
    auto count = argument<size_t>(a, 0), dims = argument<size_t>(a, 1);
    auto info = argument<const size_t*>(a, 2);
    auto in = argument<const T*>(a, 3);
    auto out = argument<T*>(a, 4);
    for (size_t i = 0; i < count; i++) out[i] = in ? in[strided(i, dims, info)] : out[i];
}

template <typename T>
void affine(void** a) {
    auto count = argument<size_t>(a, 0), dims = argument<size_t>(a, 1);
    auto info = argument<const size_t*>(a, 2);
    auto in = argument<const T*>(a, 3);
    auto out = argument<T*>(a, 4);
    double mul = widen(argument<T>(a, 5)), add = widen(argument<T>(a, 6));
    for (size_t i = 0; i < count; i++) narrow(widen(in[strided(i, dims, info)]) * mul + add, &out[i]);
}

const std::map<std::string, void (*)(void**)> LOOPS = {
    {"is_u32_f32", index_select<float>}, {"is_u32_f16", index_select<f16>}, {"is_u32_bf16", index_select<bf16>},
    {"is_u32_u32", index_select<uint32_t>},
    {"cast_f32_f16", convert<float, f16>}, {"cast_f32_bf16", convert<float, bf16>}, {"cast_f16_f32", convert<f16, float>},
    {"cast_bf16_f32", convert<bf16, float>}, {"cast_f16_bf16", convert<f16, bf16>}, {"cast_bf16_f16", convert<bf16, f16>},
    {"ucopy_f32", copy<float>}, {"ucopy_f16", copy<f16>}, {"ucopy_bf16", copy<bf16>}, {"ucopy_u32", copy<uint32_t>},
    {"affine_f32", affine<float>}, {"affine_f16", affine<f16>}, {"affine_bf16", affine<bf16>},
};

}  // namespace

bool run_candle_kernel(const std::string& name, void** arguments) {
    auto found = LOOPS.find(name);
    if (found == LOOPS.end()) return false;
    // Without arguments it is only a question.
    if (arguments) found->second(arguments);
    return true;
}

}  // namespace mock
