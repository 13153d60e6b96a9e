// Noisy copies of images for randomized smoothing, and what a network said of them counted.
//
// Contract. Slot s of `out` is copy number copy[s] of image[s]: x + scale * draw, where a draw is a function of seed,
// index[image[s]], copy[s] and the number of an element in its sample alone (Philox, stream kNoise, a counter for each
// four elements). It is computed in x's type, f32 or f64, and rounded to out's once. A slot whose image is out of range
// becomes NaN.
#pragma once
#include "fastrobust/types.h"

namespace fastrobust {

// Standard normal; uniform on -1 .. 1; Laplace of scale 1; with s = 2 * scale * u, u uniform on 0 .. 1, the result is
// (min(s, 1) + (x > s)) / 2 (Levine and Feizi, ICML 2021).
enum class NoiseKind : int32_t { normal = 0, uniform = 1, laplace = 2, split = 3 };

struct NoisyCopies {
  void* out;  // (slots, dim)
  const void* x;
  DType dtype, out_dtype;  // out's is x's, bf16 or f16
  int64_t images, slots, dim;
  const int64_t *image, *copy;  // (slots,)
  const int64_t* index;         // (images,)
  uint64_t seed;
  NoiseKind kind;
  double scale;
  const double* scale_each;  // (slots,) or null
  bool sphere;               // divide each copy's draw by its norm
  Norm norm;
  int64_t channels;  // in memory element (channel, pixel) of a sample is number pixel * channels + channel; 1: in order
};

// counts[image[s]][c] += 1, c the first largest of a row of logits. A row with a NaN or an image out of range has none.
struct AddVotes {
  int64_t* counts;  // (images, classes)
  const void* logits;
  DType dtype;
  const int64_t* image;  // (slots,)
  int64_t slots, classes, images;
};

namespace cpu {
Status noisy_copies(const NoisyCopies& args, int threads);
Status add_votes(const AddVotes& args, int threads);
}  // namespace cpu
namespace cuda {
Status noisy_copies(const NoisyCopies& args, void* stream);
Status add_votes(const AddVotes& args, void* stream);
}  // namespace cuda

}  // namespace fastrobust
