// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and what is drawn with it.
//
// key = seed; counter = (element block, draw, sample, stream). A draw depends on these numbers alone: not on the
// batch, the thread, the device or the order of calls.
#pragma once
#include "math.h"

namespace fastrobust {

enum Stream : uint32_t { kStartElements = 1, kStartRadius = 2, kNoise = 3, kNoiseRadius = 4 };

struct Words {
  uint32_t w[4];
};

FR_HD Words philox(uint64_t seed, uint32_t block, uint32_t draw, uint32_t sample, uint32_t stream) {
  uint32_t c0 = block, c1 = draw, c2 = sample, c3 = stream;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Uniform in (0, 1): the centres of 2^32 equal cells, exact in double.
FR_HD double uniform(uint32_t word) {
  // By way of a signed number, which every instruction set can convert in lanes.
  return (static_cast<double>(static_cast<int32_t>(word ^ 0x80000000u)) + 2147483648.5) * 0x1p-32;
}

// Natural logarithm of a positive normal double. The series log m = 2 atanh((m - 1) / (m + 1)) over m in
// [sqrt(1/2), sqrt(2)) is cut after 9 terms: relative error below 1e-14, branch-free, so that loops vectorise.
FR_HD double log_positive(double v) {
  const int64_t bits = bit_cast<int64_t>(v);
  const int64_t shifted = bits - 0x3fe6a09e667f3bcd;  // exponent of v / sqrt(1/2)
  const int64_t e = shifted >> 52;
  const double m = bit_cast<double>(bits - e * (int64_t(1) << 52));
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double p = 1.0 / 17.0;
  p = p * z + 1.0 / 15.0;
  p = p * z + 1.0 / 13.0;
  p = p * z + 1.0 / 11.0;
  p = p * z + 1.0 / 9.0;
  p = p * z + 1.0 / 7.0;
  p = p * z + 1.0 / 5.0;
  p = p * z + 1.0 / 3.0;
  p = p * z + 1.0;
  // int64 -> double through the mantissa of 2^52 + 2^51: |e| is small, and no AVX-512 conversion is needed.
  const double exponent = bit_cast<double>(e + 0x4338000000000000) - 0x1.8p52;
  return exponent * 0.6931471805599453 + 2.0 * s * p;
}

struct Two {
  double a, b;
};

// cos(2 pi u) and sin(2 pi u) for u in [0, 1], by Taylor series about the nearest quarter turn, error below 1e-13.
FR_HD Two cos_sin_turn(double u) {
  const double q = (u * 4.0 + 0x1.8p52) - 0x1.8p52;  // nearest integer, 0 .. 4
  const double t = (u - q * 0.25) * 6.283185307179586, z = t * t;
  const double cosine =
      1.0 +
      z * (-1.0 / 2 +
           z * (1.0 / 24 +
                z * (-1.0 / 720 +
                     z * (1.0 / 40320 + z * (-1.0 / 3628800 + z * (1.0 / 479001600.0 + z * (-1.0 / 87178291200.0)))))));
  const double sine =
      t * (1.0 + z * (-1.0 / 6 +
                      z * (1.0 / 120 + z * (-1.0 / 5040 +
                                            z * (1.0 / 362880 + z * (-1.0 / 39916800.0 + z * (1.0 / 6227020800.0)))))));
  const bool odd = q == 1.0 || q == 3.0;
  const double a = odd ? sine : cosine, b = odd ? cosine : sine;
  return {q == 1.0 || q == 2.0 ? -a : a, q == 2.0 || q == 3.0 ? -b : b};
}

// Two standard normals from two words (Box and Muller, 1958).
FR_HD Two normal_pair(uint32_t first, uint32_t second) {
  const double radius = sqrt(-2.0 * log_positive(uniform(first)));
  const Two turn = cos_sin_turn(uniform(second));
  return {radius * turn.a, radius * turn.b};
}

// A standard Laplace variable: the top bit is the sign, the rest an exponential magnitude.
FR_HD double laplace(uint32_t word) {
  const double magnitude =
      -log_positive((static_cast<double>(static_cast<int32_t>(word & 0x7fffffffu)) + 0.5) * 0x1p-31);
  return word >> 31 ? -magnitude : magnitude;
}

}  // namespace fastrobust
