// L2 and L1 steps, projections and random starts: the CPU's results up to the order of additions, in the ball and the
// box, and the same bits for every order of execution, batch and grid.
#include "check.h"
#include "cpu_body.h"
#include "fastrobust/perturb.h"

namespace {

using namespace check;
using namespace fastrobust;

struct Options {
  bool eps_each, step_each, box_each, exact, in_place, grad;
};

template <class T>
double distance(const Array<T>& a, const Array<T>& b) {
  double worst = 0;
  for (int64_t i = 0; i < a.size(); ++i) {
    const double d = std::fabs(double(a[i]) - double(b[i]));
    worst = d <= worst ? worst : (d == d ? d : INFINITY);
  }
  return worst;
}

// What both norms allow: two sums of n terms in different orders, then one rounding to T.
template <class T>
double allowed(int64_t dim) {
  return 2 * std::numeric_limits<T>::epsilon() + 1e-15 * double(dim) + 1e-13;
}

template <class T>
void expect_in_ball(const Array<T>& out, const Array<T>& x, const Ball& ball, int64_t dim) {
  for (int64_t b = 0; b < out.size() / dim; ++b) {
    const double eps = ball.eps_each ? double(static_cast<const T*>(ball.eps_each)[b]) : ball.eps;
    double total = 0;
    for (int64_t i = 0; i < dim; ++i) {
      const double v = out[b * dim + i], d = std::fabs(v - double(x[b * dim + i]));
      const double lo = ball.lo_each ? double(static_cast<const T*>(ball.lo_each)[i]) : ball.lo;
      const double hi = ball.hi_each ? double(static_cast<const T*>(ball.hi_each)[i]) : ball.hi;
      EXPECT(v >= lo && v <= hi, "sample %ld, element %ld: %g is outside the box", b, i, v);
      total = ball.norm == Norm::linf ? std::fmax(total, d) : total + (ball.norm == Norm::l2 ? d * d : d);
    }
    if (ball.norm == Norm::l2) total = std::sqrt(total);
    EXPECT(total <= eps, "sample %ld of dim %ld: %.17g is outside the ball of %.17g", b, dim, total, eps);
  }
}

// Sample b's gradient is ordinary, zero, holds a NaN, has equal magnitudes, or holds an infinity.
template <class G>
Array<G> gradient(int64_t batch, int64_t dim) {
  return Array<G>(batch * dim, 0, [&](int64_t i) {
    const double v = uniform(-1, 1);
    switch (i / dim % 6) {
      case 1:
        return number<G>(0);
      case 2:
        return number<G>(i % dim == dim - 1 ? NAN : v);
      case 3:
        return number<G>(v > 0 ? 0.5 : -0.5);
      case 4:
        return number<G>(i % dim == dim / 2 ? INFINITY : 0);
      default:
        return number<G>(v);
    }
  });
}

template <class T, class G>
void step(Norm norm, int64_t batch, int64_t dim, const Options& o) {
  const double eps = norm == Norm::l2 ? 0.05 * std::sqrt(double(dim)) : 0.03 * double(dim);
  const Array<T> x(batch * dim, 0, [](int64_t) { return number<T>(uniform(0.1, 0.9)); });
  const Array<T> start(batch * dim, 0, [&](int64_t i) { return number<T>(double(x[i]) + uniform(-0.05, 0.05)); });
  const Array<G> g = gradient<G>(batch, dim);
  const Array<T> radii(batch, 0, [&](int64_t) { return number<T>(uniform(0, 2 * eps)); });
  const Array<T> steps(batch, 0, [&](int64_t) { return number<T>(uniform(-2 * eps, 2 * eps)); });
  const Array<T> lo(dim, 0, [](int64_t) { return number<T>(uniform(-0.1, 0.1)); });
  const Array<T> hi(dim, 0, [](int64_t) { return number<T>(uniform(0.9, 1.1)); });

  const auto run = [&](int64_t first, int64_t count, Array<T>& out, Array<int32_t>& flags, const auto& launch) {
    Array<T> x_adv(count * dim, 0, [&](int64_t i) { return start[first * dim + i]; });
    PgdStep a{};
    a.x_adv = x_adv.data();
    a.out = o.in_place ? x_adv.data() : out.data();
    a.x = x.data() + first * dim;
    a.grad = o.grad ? g.data() + first * dim : nullptr;
    a.dtype = dtype<T>();
    a.grad_dtype = dtype<G>();
    a.batch = count;
    a.dim = dim;
    a.step = eps;
    a.step_each = o.step_each ? steps.data() + first : nullptr;
    a.ball = Ball{norm,
                  eps,
                  o.eps_each ? radii.data() + first : nullptr,
                  0.05,
                  0.95,
                  o.box_each ? lo.data() : nullptr,
                  o.box_each ? hi.data() : nullptr,
                  o.exact};
    a.flags = flags.data();
    EXPECT(launch(a) == Status::ok, "launch");
    if (o.in_place) out = x_adv;
    return a.ball;
  };
  const auto on_cuda = [](const PgdStep& a) { return cuda::pgd_step(a, stream()); };
  const auto flags_of = [](int64_t n) { return Array<int32_t>(n, 0, [](int64_t) { return 4; }); };  // or-ed into
  Array<T> expected(batch * dim);
  Array<int32_t> flags = flags_of(batch);
  const Ball ball = run(0, batch, expected, flags, [](const PgdStep& a) { return cpu::baseline::pgd_step(a, 1); });
  Array<T> first(batch * dim);
  int orders = 0;
  in_every_order(
      [&] {
        Array<T> got(batch * dim);
        Array<int32_t> found = flags_of(batch);
        run(0, batch, got, found, on_cuda);
        expect_launches({stream()});
        const double d = distance(got, expected);
        EXPECT(d <= allowed<T>(dim), "norm %d, batch %ld, dim %ld: %g from the CPU's result", int(norm), batch, dim, d);
        EXPECT(found.same(flags), "norm %d, dim %ld: other flags than the CPU's", int(norm), dim);
        EXPECT(got.intact() && found.intact(), "norm %d, dim %ld: written outside", int(norm), dim);
        expect_in_ball(got, x, ball, dim);
        if (orders++ == 0) first = got;
        EXPECT(got.same(first), "norm %d, dim %ld: the order of execution changes the result", int(norm), dim);
      },
      batch < 1000);
  Array<T> alone(dim), last(dim, 0, [&](int64_t i) { return first[(batch - 1) * dim + i]; });
  Array<int32_t> found = flags_of(1);
  run(batch - 1, 1, alone, found, on_cuda);
  EXPECT(alone.same(last), "norm %d, dim %ld: the batch changes the result", int(norm), dim);
  emulation::launches().clear();
}

template <class T>
void random_start(Norm norm, int64_t batch, int64_t dim, bool each) {
  const double eps = norm == Norm::l1 ? 0.1 * double(dim) : (norm == Norm::l2 ? 0.2 * std::sqrt(double(dim)) : 0.2);
  const Array<T> x(batch * dim, 0, [](int64_t) { return number<T>(uniform(0.1, 0.9)); });
  const Array<T> radii(batch, 0, [&](int64_t) { return number<T>(uniform(0, 2 * eps)); });
  const Array<int64_t> index(batch, 0, [](int64_t b) { return 1000 - b; });
  RandomStart a{};
  a.x = x.data();
  a.dtype = dtype<T>();
  a.batch = batch;
  a.dim = dim;
  a.ball = Ball{norm, eps, each ? radii.data() : nullptr, 0.05, 0.95, nullptr, nullptr, true};
  a.seed = 0x123456789abcdef;
  a.index = each ? index.data() : nullptr;
  a.draw = 3;
  Array<T> expected(batch * dim), first(batch * dim);
  a.out = expected.data();
  EXPECT(cpu::baseline::random_start(a, 1) == Status::ok, "launch");
  int orders = 0;
  in_every_order(
      [&] {
        Array<T> got(batch * dim);
        a.out = got.data();
        EXPECT(cuda::random_start(a, stream()) == Status::ok, "launch");
        expect_launches({stream()});
        const double d = distance(got, expected);
        EXPECT(d <= (norm == Norm::linf ? 0 : allowed<T>(dim)), "start %d, dim %ld: %g from the CPU's", int(norm), dim,
               d);
        EXPECT(got.intact(), "start %d, dim %ld: written outside", int(norm), dim);
        expect_in_ball(got, x, a.ball, dim);
        if (orders++ == 0) first = got;
        EXPECT(got.same(first), "start %d, dim %ld: the order of execution changes the result", int(norm), dim);
      },
      batch < 1000);
}

template <class T, class G>
void shapes(const std::vector<int64_t>& dims) {
  int turn = 0;
  for (int64_t dim : dims) {
    const int64_t batch = dim > 1000 ? 2 : 6;
    for (Norm norm : {Norm::l2, Norm::l1}) {
      for (int k = 0; k < (kSmall ? 1 : 3); ++k, ++turn) {
        step<T, G>(norm, batch, dim, {turn % 2 == 0, turn % 3 == 0, turn % 5 < 2, k != 1, turn % 2 == 1, k != 2});
      }
    }
  }
}

// More samples than blocks: each block comes back for another.
void many_samples() {
  step<float, float>(Norm::l2, 8192 + 3, 1, {true, true, false, true, false, false});
  random_start<float>(Norm::l1, 8192 + 3, 1, true);
}

template <class T>
void starts(const std::vector<int64_t>& dims) {
  for (Norm norm : {Norm::linf, Norm::l2, Norm::l1}) {
    for (int64_t dim : dims) random_start<T>(norm, 3, dim, dim % 2 == 0);
  }
}

}  // namespace

void check_rows() {
  if (kSmall) {
    shapes<float, float>({1, 33, 300});
    starts<float>({3, 130});
    return;
  }
  shapes<float, float>({1, 5, 31, 32, 33, 255, 256, 257, 1025, 4097});
  shapes<float, double>({65});
  shapes<float, BFloat16>({33});
  shapes<float, Half>({257});
  shapes<double, float>({130});
  shapes<double, double>({3, 257});
  shapes<double, BFloat16>({7});
  shapes<double, Half>({31});
  starts<float>({1, 3, 4, 127, 130, 1021, 4098});
  starts<double>({2, 129, 1022});
  many_samples();
}
