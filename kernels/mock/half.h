// f16 and bf16 as bits, to and from f32; both round to nearest, ties to even.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace mock {

struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

inline float bits_to_float(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
inline uint32_t float_to_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

inline double widen(float x) { return x; }
inline double widen(double x) { return x; }
inline double widen(uint32_t x) { return x; }
inline double widen(int64_t x) { return static_cast<double>(x); }
inline double widen(uint8_t x) { return x; }
inline double widen(bf16 x) { return bits_to_float(uint32_t{x.bits} << 16); }
inline double widen(f16 x) {
    int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
    double value = exponent == 31 ? (mantissa ? NAN : INFINITY) : exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
    return x.bits & 0x8000 ? -value : value;
}

inline void narrow(double x, float* to) { *to = static_cast<float>(x); }
inline void narrow(double x, double* to) { *to = x; }
inline void narrow(double x, uint32_t* to) { *to = static_cast<uint32_t>(x); }
inline void narrow(double x, int64_t* to) { *to = static_cast<int64_t>(x); }
inline void narrow(double x, uint8_t* to) { *to = static_cast<uint8_t>(x); }
inline void narrow(double x, bf16* to) {
    uint32_t bits = float_to_bits(static_cast<float>(x));
    if (std::isnan(x)) { to->bits = 0x7fc0; return; }
    to->bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void narrow(double x, f16* to) {
    uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    double size = std::fabs(x);
    if (std::isnan(x)) { to->bits = 0x7e00; return; }
    if (size >= 65520.0) { to->bits = sign | 0x7c00; return; }
    int exponent;
    std::frexp(size, &exponent);
    // The spacing of halves around `size`.
    int step = exponent - 11 < -24 ? -24 : exponent - 11;
    auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, -step)));
    // With the implicit bit in, exponent and mantissa add up to the bits.
    to->bits = static_cast<uint16_t>(sign | (step == -24 ? steps : steps + (static_cast<uint32_t>(step + 24) << 10)));
}

}  // namespace mock
