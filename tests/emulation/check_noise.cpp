// Noisy copies: the CPU's up to rounding, whatever kind, norm, layout and alignment. Votes: the CPU's.
#include "check.h"
#include "cpu_body.h"
#include "fastrobust/noise.h"

namespace {

using namespace check;
using namespace fastrobust;

struct Case {
  int64_t slots, dim, channels = 1;
  NoiseKind kind = NoiseKind::normal;
  int norm = -1;  // of the sphere
  bool each = false;
  int x_offset = 0, out_offset = 0;  // from an aligned address
};

template <class In, class Out>
void copies(const Case& c) {
  constexpr int64_t images = 3;
  const Array<In> x(images * c.dim, c.x_offset, [](int64_t) { return In(uniform(0, 1)); });
  const Array<double> scale(c.slots, 0, [](int64_t) { return uniform(0.1, 2); });
  Array<int64_t> image(c.slots, 0, [](int64_t s) { return (s * 5 + 2) % images; });
  const Array<int64_t> copy(c.slots, 0, [](int64_t s) { return s % 4 ? s : (int64_t(1) << 32) - 1 - s; });
  const Array<int64_t> index(images, 0, [](int64_t i) { return i ? 7 * i : (int64_t(1) << 32) - 1; });
  if (c.slots > 4) image[3] = images, image[4] = -1;
  NoisyCopies a{};
  a.x = x.data(), a.dtype = dtype<In>(), a.out_dtype = dtype<Out>();
  a.images = images, a.slots = c.slots, a.dim = c.dim, a.channels = c.channels;
  a.image = image.data(), a.copy = copy.data(), a.index = index.data();
  a.seed = 0x9e3779b97f4a7c15u, a.kind = c.kind, a.scale = 0.7, a.scale_each = c.each ? scale.data() : nullptr;
  a.sphere = c.norm >= 0, a.norm = static_cast<Norm>(c.norm < 0 ? 0 : c.norm);
  Array<Out> expected(c.slots * c.dim, c.out_offset);
  a.out = expected.data();
  EXPECT(cpu::baseline::noisy_copies(a, 1) == Status::ok, "launch");
  const double unit = std::is_same_v<Out, BFloat16> ? 0x1p-7 : std::is_same_v<Out, Half> ? 0x1p-10 : 0;
  const double tolerance = unit + (std::is_same_v<In, double> ? 1e-12 : 2e-6);
  in_every_order([&] {
    Array<Out> got(c.slots * c.dim, c.out_offset);
    a.out = got.data();
    EXPECT(cuda::noisy_copies(a, stream()) == Status::ok, "launch");
    expect_launches({stream()});
    EXPECT(got.intact(), "written outside");
    for (int64_t i = 0; i < got.size(); ++i) {
      const double g = load<double>(got[i]), e = load<double>(expected[i]);
      const bool near = std::fabs(g - e) <= tolerance * std::fmax(1.0, std::fabs(e));
      EXPECT(near || (std::isnan(g) && std::isnan(e)), "kind %d, dim %ld, element %ld: %g, not %g", int(c.kind), c.dim,
             i, g, e);
    }
  });
}

// More fours than threads: the first block comes back for the last of them.
void large() {
  constexpr int64_t grid = 8192 * 256, slots = grid + 100, dim = 4;
  const Array<float> x(dim, 0, [](int64_t) { return 0.5f; });
  const Array<int64_t> image(slots, 0, [](int64_t) { return 0; }), copy(slots, 0, [](int64_t s) { return s; });
  const int64_t index = 3;
  NoisyCopies a{};
  a.x = x.data(), a.images = a.channels = 1, a.slots = slots, a.dim = dim;
  a.image = image.data(), a.copy = copy.data(), a.index = &index, a.scale = 1;
  Array<float> expected(slots * dim), got(slots * dim);
  a.out = expected.data();
  EXPECT(cpu::baseline::noisy_copies(a, 1) == Status::ok, "launch");
  a.out = got.data();
  emulation::options().blocks = 1;
  EXPECT(cuda::noisy_copies(a, stream()) == Status::ok, "launch");
  emulation::options().blocks = emulation::kMostBlocks;
  expect_launches({stream()});
  for (int64_t i = 0; i < slots * dim; i = i == 256 * dim - 1 ? grid * dim : i + 1)
    EXPECT(std::fabs(got[i] - expected[i]) < 2e-6, "element %ld: %g, not %g", i, got[i], expected[i]);
}

template <class S>
void votes(int64_t slots, int64_t classes) {
  constexpr int64_t images = 4;
  const Array<S> logits(slots * classes, 0, [&](int64_t i) {
    const int64_t row = i / classes, c = i % classes;
    if (row % 7 == 3) return number<S>(c % 2);
    if (row % 7 == 5 && c == classes - 1) return number<S>(NAN);
    if (row % 7 == 6) return number<S>(-INFINITY);
    return number<S>(uniform(-5, 5));
  });
  const Array<int64_t> image(slots, 0, [&](int64_t s) { return s % (images + 2) - 1; });  // out of range on either side
  AddVotes a{};
  a.logits = logits.data(), a.dtype = dtype<S>(), a.image = image.data();
  a.slots = slots, a.classes = classes, a.images = images;
  const auto start = [](int64_t i) { return i; };
  Array<int64_t> expected(images * classes, 0, start);
  a.counts = expected.data();
  EXPECT(cpu::baseline::add_votes(a, 1) == Status::ok, "launch");
  in_every_order([&] {
    Array<int64_t> got(images * classes, 0, start);
    a.counts = got.data();
    EXPECT(cuda::add_votes(a, stream()) == Status::ok, "launch");
    expect_launches({stream()});
    EXPECT(got.same(expected) && got.intact(), "%ld slots, %ld classes", slots, classes);
  });
}

}  // namespace

void check_noise() {
  if (kSmall) {
    copies<float, float>({5, 9});
    copies<float, float>({5, 70, 1, NoiseKind::laplace, 2});
    return votes<float>(9, 40);
  }
  for (NoiseKind kind : {NoiseKind::normal, NoiseKind::uniform, NoiseKind::laplace, NoiseKind::split}) {
    for (int64_t dim : {1, 3, 4, 64, 257}) {
      copies<float, float>({9, dim, 1, kind});
      copies<double, double>({9, dim, 1, kind, -1, true});
    }
    copies<float, float>({6, 60, 3, kind, -1, true});
    copies<float, BFloat16>({6, 60, 3, kind});
    copies<float, Half>({6, 64, 1, kind, -1, true});
    copies<float, float>({6, 64, 1, kind, -1, false, 1, 0});
    copies<float, BFloat16>({6, 64, 1, kind, -1, false, 0, 3});
    if (kind == NoiseKind::split) continue;
    for (int norm = 0; norm < 3; ++norm) {
      copies<float, float>({7, 130, 1, kind, norm});
      copies<float, float>({7, 1100, 2, kind, norm, true});
      copies<double, double>({7, 3, 1, kind, norm, true});
    }
  }
  copies<double, Half>({5, 33});
  copies<double, BFloat16>({5, 32});
  large();
  copies<float, float>({8200, 2, 1, NoiseKind::uniform, 1});  // more slots than blocks
  for (int64_t classes : {1, 10, 32, 33, 100}) {
    votes<float>(50, classes);
    votes<double>(31, classes);
  }
  votes<BFloat16>(40, 10);
  votes<Half>(40, 10);
  votes<float>(33000, 2);  // more rows than warps
}
