// The draws of noise.h in float32, for one number or a vector of them. Those of draws.h, in double, are made of the
// same words and differ by rounding.
//
// L names the types of float32: Vec, Mask (int32_t) and Words (uint32_t), and has whole(Mask) -> Vec, root(Vec) and
// high(Words, uint32_t), the upper halves of 64-bit products.
#pragma once
#include "draws.h"
#include "fastrobust/noise.h"

namespace fastrobust {

struct Scalar {
  using Vec = float;
  using Mask = int32_t;
  using Words = uint32_t;
  FR_HD static float whole(int32_t m) { return static_cast<float>(m); }
  FR_HD static float root(float v) { return sqrtf(v); }
  FR_HD static uint32_t high(uint32_t a, uint32_t m) {
    return static_cast<uint32_t>((static_cast<uint64_t>(a) * m) >> 32);
  }
};

// philox() of many counters.
template <class L>
FR_HD void philox_lanes(uint64_t seed, typename L::Words c0, typename L::Words c1, typename L::Words c2,
                        uint32_t stream, typename L::Words (&w)[4]) {
  using Words = typename L::Words;
  Words c3 = Words{} + stream;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#if defined(__CUDA_ARCH__)
#pragma unroll
#elif !defined(__CUDACC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const Words a = L::high(c0, 0xD2511F53u), a_low = c0 * 0xD2511F53u;
    const Words b = L::high(c2, 0xCD9E8D57u), b_low = c2 * 0xCD9E8D57u;
    c0 = b ^ c1 ^ k0;
    c1 = b_low;
    c2 = a ^ c3 ^ k1;
    c3 = a_low;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  w[0] = c0, w[1] = c1, w[2] = c2, w[3] = c3;
}

// log(end), or log(1 - end) where `upper`, for end in (0, 1/2]: so both ends of (0, 1) keep their relative precision.
template <class L>
FR_HD typename L::Vec log_from(typename L::Vec end, typename L::Mask upper) {
  using Vec = typename L::Vec;
  using Mask = typename L::Mask;
  // u = 2^e (1 + f) with 1 + f in about sqrt(1/2) .. sqrt(2).
  const Mask shifted = bit_cast<Mask>(end) - 0x3f3504f3, e_low = shifted >> 23;
  const Vec f_low = bit_cast<Vec>(static_cast<Mask>(bit_cast<Mask>(end) - (shifted & ~0x7fffff))) - 1.0f;
  const Mask close = end < 0.29289323f;
  const Vec f = upper ? (close ? -end : 1.0f - 2.0f * end) : f_low;
  const Vec e = upper ? (close ? Vec{} : Vec{} - 1.0f) : L::whole(e_low);
  const Vec s = f / (2.0f + f), z = s * s;
  const Vec series = (((z * (1.0f / 9) + 1.0f / 7) * z + 1.0f / 5) * z + 1.0f / 3) * z;
  return e * 0.69314718f + 2.0f * (s + s * series);
}

// sqrt(-2 log u) for u = (w + 1/2) 2^-32.
template <class L>
FR_HD typename L::Vec radial(typename L::Words w) {
  using Mask = typename L::Mask;
  const Mask word = bit_cast<Mask>(w), upper = word < 0, near = upper ? ~word : word;
  return L::root(-2.0f * log_from<L>((L::whole(near) + 0.5f) * 0x1p-32f, upper));
}

// radius * cos and sin of 2 pi (w + 1/2) 2^-32, about the nearest quarter turn.
template <class L>
FR_HD void turn(typename L::Words w, typename L::Vec radius, typename L::Vec* cosine, typename L::Vec* sine) {
  using Vec = typename L::Vec;
  using Mask = typename L::Mask;
  using Words = typename L::Words;
  const Words quarter = (w + 0x20000000u) >> 30;  // 0 .. 3; 4 is 0 by overflow
  const Vec t = (L::whole(bit_cast<Mask>(static_cast<Words>(w - (quarter << 30)))) + 0.5f) * 1.4629180793e-9f,
            z = t * t;
  const Vec c = 1.0f + z * (-0.5f + z * (4.16666418e-2f + z * (-1.38873162e-3f + z * 2.44332072e-5f)));
  const Vec s = t + t * (z * (-1.66666546e-1f + z * (8.33216087e-3f + z * -1.95152959e-4f)));
  const Mask odd = (quarter & 1u) != 0u, flip_c = ((quarter + 1u) & 2u) != 0u, flip_s = (quarter & 2u) != 0u;
  const Vec a = radius * (odd ? s : c), b = radius * (odd ? c : s);
  *cosine = flip_c ? -a : a;
  *sine = flip_s ? -b : b;
}

// laplace() of philox.h: the top bit is the sign, the rest an exponential magnitude.
template <class L>
FR_HD typename L::Vec laplace_lanes(typename L::Words w) {
  using Vec = typename L::Vec;
  using Mask = typename L::Mask;
  const Mask word = bit_cast<Mask>(w), rest = word & 0x7fffffff, upper = rest >= 0x40000000;
  const Mask near = upper ? 0x7fffffff - rest : rest;
  const Vec log = log_from<L>((L::whole(near) + 0.5f) * 0x1p-31f, upper);
  return word < 0 ? log : -log;
}

// Elements 4 * block .. 4 * block + 3 of a draw that is added.
template <class L>
FR_HD void four_draws(NoiseKind kind, const typename L::Words (&w)[4], typename L::Vec (&z)[4]) {
  using Mask = typename L::Mask;
  using Words = typename L::Words;
  if (kind == NoiseKind::normal) {
    turn<L>(w[1], radial<L>(w[0]), &z[0], &z[1]);
    turn<L>(w[3], radial<L>(w[2]), &z[2], &z[3]);
    return;
  }
  for (int k = 0; k < 4; ++k) {
    if (kind == NoiseKind::laplace)
      z[k] = laplace_lanes<L>(w[k]);
    else
      z[k] = (L::whole(bit_cast<Mask>(static_cast<Words>(w[k] ^ 0x80000000u))) + 0.5f) * 0x1p-31f;
  }
}

// The norm whose directions (draws.h) are the same draws in double, with eps = 1; for splitting those on -1 .. 1.
FR_HD constexpr Norm direction_of(NoiseKind kind) {
  return kind == NoiseKind::normal ? Norm::l2 : kind == NoiseKind::laplace ? Norm::l1 : Norm::linf;
}

// Splitting noise (Levine and Feizi, ICML 2021): s = 2 * scale * u, u uniform on 0 .. 1; the draw is 2 u - 1, exactly.
FR_HD double split(double x, double scale, double draw) {
  const double s = 2.0 * scale * ((draw + 1.0) / 2.0);
  return ((s < 1.0 ? s : 1.0) + (x > s ? 1.0 : 0.0)) / 2.0;
}

}  // namespace fastrobust
