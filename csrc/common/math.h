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

// e^v for v <= 0, within 2 ulp; 0 below -87.3. Range reduction by ln 2 in two parts, then a Taylor polynomial.
FR_HD float exp_negative(float v) {
  const float clamped = v > -87.3f ? v : -87.3f;  // NaN too
  const float n = floorf(clamped * 1.44269504f + 0.5f);
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const float scale = bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return v < -87.3f ? 0.0f : (v != v ? v : p * scale);
}
FR_HD double exp_negative(double v) { return exp(v); }

}  // namespace fastrobust
