// Linf steps and projections: equal to the CPU's, bit for bit, at every alignment, tail and combination of options.
#include <sys/mman.h>

#include "check.h"
#include "cpu_body.h"
#include "fastrobust/perturb.h"

namespace {

using namespace check;
using namespace fastrobust;

struct Options {
  bool eps_each, step_each, box_each, flags, in_place;
  int offset;  // of one array, in elements
};

// Ordinary samples hold some of what a gradient should not: zeros, NaN, Inf. Others are plain, or zero, or zero but for
// one element.
template <class G>
Array<G> gradient(int64_t batch, int64_t dim, int offset) {
  return Array<G>(batch * dim, offset, [&](int64_t i) {
    const double v = uniform(-1, 1), kind = uniform(0, 1), infinite = v > 0 ? INFINITY : -INFINITY;
    switch (i / dim % 5) {
      case 1:
        return number<G>(i % dim == dim / 2 + dim / 8 ? v : 0);
      case 2:
        return number<G>(v);
      case 3:
        return number<G>(v > 0 ? 0.0 : -0.0);
      case 4:
        return number<G>(i % dim == dim / 2 ? infinite : 0);
      default:
        return number<G>(kind < 0.8 ? v : (kind < 0.9 ? 0.0 : (kind < 0.95 ? NAN : infinite)));
    }
  });
}

template <class T, class G>
void linf(int64_t batch, int64_t dim, const Options& o, bool grad) {
  const auto pixel = [](int64_t) { return number<T>(uniform(0.1, 0.9)); };
  const Array<T> x(batch * dim, o.offset == 1 ? 1 : 0, pixel);
  const Array<T> start(batch * dim, 0, [&](int64_t i) { return number<T>(double(x[i]) + uniform(-0.3, 0.3)); });
  const Array<G> g = gradient<G>(batch, dim, o.offset == 2 ? 1 : 0);
  const Array<T> eps(batch, 0, [](int64_t) { return number<T>(uniform(0, 0.2)); });
  const Array<T> steps(batch, 0, [](int64_t) { return number<T>(uniform(-0.1, 0.1)); });
  const Array<T> lo(dim, 0, [](int64_t) { return number<T>(uniform(-0.1, 0.1)); });
  const Array<T> hi(dim, 0, [](int64_t) { return number<T>(uniform(0.9, 1.1)); });

  const auto run = [&](Array<T>& x_adv, Array<T>& out, Array<int32_t>& flags, const auto& launch) {
    PgdStep a{};
    a.x_adv = x_adv.data();
    a.out = o.in_place ? x_adv.data() : out.data();
    a.x = x.data();
    a.grad = grad ? g.data() : nullptr;
    a.dtype = dtype<T>();
    a.grad_dtype = dtype<G>();
    a.batch = batch;
    a.dim = dim;
    a.step = 0.03;
    a.step_each = o.step_each ? steps.data() : nullptr;
    a.ball = Ball{Norm::linf,
                  0.1,
                  o.eps_each ? eps.data() : nullptr,
                  0.05,
                  0.95,
                  o.box_each ? lo.data() : nullptr,
                  o.box_each ? hi.data() : nullptr,
                  true};
    a.flags = o.flags ? flags.data() : nullptr;
    EXPECT(launch(a) == Status::ok, "launch");
    if (o.in_place) out = x_adv;
  };
  const auto copy = [&] { return Array<T>(batch * dim, o.offset == 3 ? 1 : 0, [&](int64_t i) { return start[i]; }); };
  const auto empty = [](int64_t n) { return Array<int32_t>(n, 0, [](int64_t) { return 0; }); };
  Array<T> x_adv = copy(), expected(batch * dim, 0);
  Array<int32_t> flags = empty(batch);
  run(x_adv, expected, flags, [](const PgdStep& a) { return cpu::baseline::pgd_step(a, 1); });
  in_every_order([&] {
    Array<T> mine = copy(), got(batch * dim, 0);
    Array<int32_t> found = empty(batch);
    run(mine, got, found, [](const PgdStep& a) { return cuda::pgd_step(a, stream()); });
    expect_launches({stream()});
    EXPECT(got.same(expected) && found.same(flags), "batch %ld, dim %ld: another result than the CPU's", batch, dim);
    EXPECT(got.intact() && found.intact() && mine.intact(), "batch %ld, dim %ld: written outside", batch, dim);
  });
}

using Shapes = std::vector<std::pair<int64_t, int64_t>>;

template <class T, class G>
void shapes(bool grad) {
  const Shapes all =
      kSmall ? Shapes{{1, 1}, {30, 5}, {3, 129}, {2, 513}, {1, 2049}}
             : Shapes{{1, 1},    {3, 1},    {1, 31},   {3, 32},   {5, 33},   {2, 127},  {3, 128},  {5, 129},
                      {2, 255},  {3, 256},  {4, 257},  {2, 511},  {3, 512},  {2, 513},  {2, 1023}, {3, 1024},
                      {2, 1025}, {1, 2047}, {2, 2048}, {2, 2049}, {1000, 5}, {70, 131}, {3, 4099}, {2, 6144}};
  int turn = 0;
  for (const auto& [batch, dim] : all) {
    // Every option appears with every neighbour of a power of two, not every combination with each.
    linf<T, G>(batch, dim, {false, false, false, false, turn % 2 == 0, 0}, grad);
    linf<T, G>(batch, dim, {false, false, false, true, turn % 2 == 1, 0}, grad);
    for (int k = 0; k < 2; ++k, turn += 5) {
      linf<T, G>(batch, dim, {turn % 2 == 0, turn % 3 != 0, turn % 5 < 2, turn % 7 < 5, k == 0, (turn + k) % 4}, grad);
    }
    ++turn;
  }
}

// More than 2^31 elements: only the first and the last block run, on memory that is never touched elsewhere.
void huge() {
  const int64_t dim = 1000, batch = (int64_t(1) << 33) / dim + 3, total = batch * dim;
  const auto reserve = [](size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) std::abort();
    return p;
  };
  float* out = static_cast<float*>(reserve(total * 4));
  float* x = static_cast<float*>(reserve(total * 4));
  uint16_t* grad = static_cast<uint16_t*>(reserve(total * 2));
  int32_t* flags = static_cast<int32_t*>(reserve(batch * 4));
  const int64_t last = total - 2;
  for (int64_t i : {int64_t(0), last}) grad[i] = 0x3f80;  // 1 in bfloat16
  for (bool with_flags : {false, true}) {
    PgdStep a{};
    a.out = out;
    a.x_adv = a.x = x;
    a.grad = grad;
    a.grad_dtype = DType::bf16;
    a.batch = batch;
    a.dim = dim;
    a.step = 0.25;
    a.ball = Ball{Norm::linf, 0.5, nullptr, 0.0, 1.0, nullptr, nullptr, true};
    a.flags = with_flags ? flags : nullptr;
    const uint64_t blocks = (total + 2047) / 2048;
    for (uint64_t b : {uint64_t(0), blocks - 1}) {
      emulation::options().first_block = b;
      emulation::options().blocks = 1;
      EXPECT(cuda::pgd_step(a, stream()) == Status::ok, "launch");
    }
    emulation::options() = {};
    expect_launches({stream(), stream()});
    for (int64_t i : {int64_t(0), last}) {
      EXPECT(out[i] == 0.25f && out[i + 1] == 0.0f, "element %ld of %ld", i, total);
      out[i] = 0;
    }
  }
  EXPECT(flags[0] == kUseful && flags[batch - 1] == kUseful && flags[batch - 3] == 0, "flags of %ld samples", batch);
  munmap(out, total * 4), munmap(x, total * 4), munmap(grad, total * 2), munmap(flags, batch * 4);
}

}  // namespace

void check_linf() {
  shapes<float, float>(true);
  shapes<double, BFloat16>(true);
  if (kSmall) return;
  shapes<float, double>(true);
  shapes<float, BFloat16>(true);
  shapes<float, Half>(true);
  shapes<float, float>(false);
  shapes<double, float>(true);
  shapes<double, double>(true);
  shapes<double, Half>(true);
  shapes<double, double>(false);
  huge();
}
