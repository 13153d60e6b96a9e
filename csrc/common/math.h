// Formulas shared by the CPU bodies and the CUDA kernels: each is written once, here.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// FR_HD: small formulas, always inlined. FR_HD_BODY: whole bodies, templates over a team; the compiler decides.
// FR_LAMBDA: a loop's body.
#if defined(__CUDACC__)
#define FR_HD __host__ __device__ __forceinline__
#define FR_HD_BODY __host__ __device__ inline
#define FR_LAMBDA
#else
#define FR_HD inline __attribute__((always_inline))
#define FR_HD_BODY inline
#define FR_LAMBDA __attribute__((always_inline))
#endif

namespace fastrobust {

template <class To, class From>
FR_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast: sizes differ");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <class T>
struct Bits;
template <>
struct Bits<float> {
  using type = int32_t;
  static constexpr int32_t exponent = 0x7f800000, magnitude = 0x7fffffff;
};
template <>
struct Bits<double> {
  using type = int64_t;
  static constexpr int64_t exponent = 0x7ff0000000000000, magnitude = 0x7fffffffffffffff;
};

template <class T>
FR_HD bool is_finite(T v) {
  using I = typename Bits<T>::type;
  return (bit_cast<I>(v) & Bits<T>::magnitude) < Bits<T>::exponent;
}

// The neighbour of v towards -inf, for finite v.
template <class T>
FR_HD T next_down(T v) {
  using I = typename Bits<T>::type;
  const I bits = bit_cast<I>(v);
  const I down = v > T(0) ? bits - 1 : bits + 1;
  return v == T(0) ? bit_cast<T>(static_cast<I>(~Bits<T>::magnitude | I(1))) : bit_cast<T>(down);
}

// a + b rounded towards -inf. The error of the rounded sum is exact (Knuth's TwoSum), and its sign says whether to
// step down; a device has the instruction.
template <class T>
FR_HD T add_down(T a, T b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 4)
    return __fadd_rd(a, b);
  else
    return __dadd_rd(a, b);
#else
  const T sum = a + b;
  const T part = sum - a;
  const T error = (a - (sum - part)) + (b - part);
  return error < T(0) ? next_down(sum) : sum;
#endif
}

template <class T>
FR_HD T add_up(T a, T b) {
  return -add_down(-a, -b);
}

// v, negated where `sign` has a minus sign.
template <class T>
FR_HD T flip(T v, T sign) {
  using I = typename Bits<T>::type;
  return bit_cast<T>(bit_cast<I>(v) ^ (bit_cast<I>(sign) & ~Bits<T>::magnitude));
}

// A double rounded to T, downwards or upwards.
template <class T>
FR_HD T cast_down(double v) {
  const T t = static_cast<T>(v);
  return static_cast<double>(t) > v ? next_down(t) : t;
}
template <class T>
FR_HD T cast_up(double v) {
  return -cast_down<T>(-v);
}

// The neighbour of v upwards or downwards, for finite v.
template <class T>
FR_HD T neighbour(T v, bool up) {
  using I = typename Bits<T>::type;
  const I bits = bit_cast<I>(v);
  const I moved = bits + ((v > T(0)) == up ? I(1) : I(-1));
  const I tiny = up ? I(1) : static_cast<I>(~Bits<T>::magnitude | I(1));
  return bit_cast<T>(v == T(0) ? tiny : moved);
}

// x + delta rounded towards x: not farther from x than |delta| (1 + 2^-52).
FR_HD float add_towards(float x, double delta) {
  const double base = static_cast<double>(x);
  const float near = static_cast<float>(base + delta);
  const double moved = static_cast<double>(near) - base;
  return fabs(moved) > fabs(delta) ? neighbour(near, moved < 0) : near;
}
FR_HD double add_towards(double x, double delta) {
  const double sum = x + delta;
  const double part = sum - x;
  const double error = (x - (sum - part)) + (delta - part);
  const bool far = delta > 0 ? error < 0 : error > 0;
  return far ? neighbour(sum, delta < 0) : sum;
}

// v clipped to [lo, hi]; NaN stays NaN.
template <class T>
FR_HD T clip(T v, T lo, T hi) {
  v = v < lo ? lo : v;
  return v > hi ? hi : v;
}

// 16-bit floats are carried as bits.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class To>
FR_HD To load(float v) {
  return static_cast<To>(v);
}
template <class To>
FR_HD To load(double v) {
  return static_cast<To>(v);
}
template <class To>
FR_HD To load(BFloat16 v) {
  return static_cast<To>(bit_cast<float>(static_cast<uint32_t>(v.bits) << 16));
}
template <class To>
FR_HD To load(Half v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  const uint32_t body = v.bits & 0x7fffu;
  // Shift exponent and mantissa into place and scale by 2^112: exact, subnormals included.
  const float scaled = bit_cast<float>(body << 13) * bit_cast<float>(uint32_t(0x77800000));
  const uint32_t magnitude = body >= 0x7c00u ? (0x7f800000u | (body << 13)) : bit_cast<uint32_t>(scaled);
  return static_cast<To>(bit_cast<float>(sign | magnitude));
}

template <class To>
FR_HD To store(float v);
template <>
FR_HD float store<float>(float v) {
  return v;
}
// Round to nearest even, NaN kept.
template <>
FR_HD BFloat16 store<BFloat16>(float v) {
  const uint32_t bits = bit_cast<uint32_t>(v);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(v != v ? 0x7fc0u : rounded)};
}
template <>
FR_HD Half store<Half>(float v) {
  const uint32_t bits = bit_cast<uint32_t>(v);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude >= 0x47800000u) {  // 65536 and above, Inf, NaN
    half = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: let the float unit round
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}

// a * b + c, in one rounding where the processor has the instruction.
FR_HD float mul_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// e^v for v <= 0, within 2 ulp; 0 below -87.3, NaN for NaN. Range reduction by ln 2 in two parts, then the polynomial
// of the Cephes library (Moshier) on [-ln 2 / 2, ln 2 / 2]. No conversion and no branch, so that loops vectorise.
FR_HD float exp_negative(float v) {
  constexpr float least = -87.3f, shift = 0x1.8p23f;
  const float clamped = least > v ? least : v;
  const float turned = mul_add(clamped, 1.44269504f, shift);  // the low bits hold the nearest integer n
  const float n = turned - shift;
  const float r = mul_add(n, 2.12194440e-4f, mul_add(n, -0.693359375f, clamped));
  float p = 1.9875691500e-4f;
  p = mul_add(p, r, 1.3981999507e-3f);
  p = mul_add(p, r, 8.3334519073e-3f);
  p = mul_add(p, r, 4.1665795894e-2f);
  p = mul_add(p, r, 1.6666665459e-1f);
  p = mul_add(p, r, 5.0000001201e-1f);
  p = mul_add(p, r * r, r) + 1.0f;
  const float scale = bit_cast<float>((bit_cast<uint32_t>(turned) << 23) + 0x3f800000u);
  return v < least ? 0.0f : p * scale;
}
FR_HD double exp_negative(double v) { return exp(v); }

}  // namespace fastrobust
