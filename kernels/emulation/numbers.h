// The 16-bit floating-point numbers and the vector types of CUDA, on the host. Conversions round
// to nearest, ties to even, as the device does.

#pragma once

#include <cstdint>
#include <cstring>

struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct float3 {
    float x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(4) char4 {
    signed char x, y, z, w;
};
struct alignas(4) uchar4 {
    unsigned char x, y, z, w;
};

inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulation {

template <typename To, typename From> inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

inline uint16_t half_from_float(float value) {
    uint32_t bits = bits_as<uint32_t>(value);
    uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return 0x7fff;
    if (bits >= 0x477ff000) return uint16_t(sign | 0x7c00); // 65520 and beyond: infinity
    if (bits < 0x38800000) {
        // Subnormal: a unit is 2^-24, which is what a float in [½, 1) has.
        float shifted = bits_as<float>(bits) + 0.5f;
        return uint16_t(sign | (bits_as<uint32_t>(shifted) - 0x3f000000));
    }
    bits += 0xc8000fff + (bits >> 13 & 1);
    return uint16_t(sign | bits >> 13);
}

inline float half_to_float(uint16_t half) {
    uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ff;
    if (exponent == 0) {
        float magnitude = float(mantissa) * 0x1p-24f;
        return bits_as<float>(bits_as<uint32_t>(magnitude) | sign);
    }
    if (exponent == 31) return bits_as<float>(sign | 0x7f800000 | mantissa << 13);
    return bits_as<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

inline uint16_t bfloat_from_float(float value) {
    uint32_t bits = bits_as<uint32_t>(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float bfloat_to_float(uint16_t bits) { return bits_as<float>(uint32_t(bits) << 16); }

} // namespace emulation

struct __half {
    uint16_t bits;
    __half() = default;
    explicit __half(float value) : bits(emulation::half_from_float(value)) {}
    operator float() const { return emulation::half_to_float(bits); }
};
struct alignas(4) __half2 {
    __half x, y;
};
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float value) : bits(emulation::bfloat_from_float(value)) {}
    operator float() const { return emulation::bfloat_to_float(bits); }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
using half = __half;
using half2 = __half2;

inline float __half2float(__half value) { return float(value); }
inline __half __float2half(float value) { return __half(value); }
inline __half __float2half_rn(float value) { return __half(value); }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline float2 __half22float2(__half2 value) { return {float(value.x), float(value.y)}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(unsigned short bits) { return emulation::bits_as<__half>(bits); }
inline float __bfloat162float(__nv_bfloat16 value) { return float(value); }
inline __nv_bfloat16 __float2bfloat16(float value) { return __nv_bfloat16(value); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __nv_bfloat16(value); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 value) { return {float(value.x), float(value.y)}; }
