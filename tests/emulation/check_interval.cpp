// Interval propagation: the CPU's results and gradients up to the order of additions.
#include <array>
#include <tuple>
#include <utility>

#include "check.h"
#include "cpu_body.h"
#include "fastrobust/interval.h"

namespace {

using namespace check;
using namespace fastrobust;

template <class S>
double unit() {
  return std::is_same_v<S, BFloat16>
             ? 0x1p-7
             : (std::is_same_v<S, Half> ? 0x1p-10 : 64 * double(std::numeric_limits<Compute<S>>::epsilon()));
}

// The largest difference as a share of the largest number.
template <class T>
double apart(const Array<T>& a, const Array<T>& b) {
  double most = 0, largest = 1;
  for (int64_t i = 0; i < a.size(); ++i) {
    const double x = load<double>(a[i]), y = load<double>(b[i]);
    if (std::isnan(x) != std::isnan(y)) return INFINITY;
    if (std::isnan(x)) continue;
    most = std::fmax(most, std::fabs(x - y));
    largest = std::fmax(largest, std::fabs(y));
  }
  return most / largest;
}

// Arrays that a launch writes; those of the GPU are compared with those of the CPU.
template <class... T>
struct Results {
  std::tuple<Array<T>...> all;
  explicit Results(const std::array<int64_t, sizeof...(T)>& sizes)
      : all(make(sizes, std::index_sequence_for<T...>{})) {}
  template <size_t... I>
  static std::tuple<Array<T>...> make(const std::array<int64_t, sizeof...(T)>& sizes, std::index_sequence<I...>) {
    return {Array<T>(sizes[I], 0, [](int64_t) { return number<T>(0); })...};
  }
  template <int I>
  auto* at() {
    return std::get<I>(all).data();
  }
  void expect_near(const Results& other, double tolerance, const char* what) const {
    expect_near(other, tolerance, what, std::index_sequence_for<T...>{});
  }
  template <size_t... I>
  void expect_near(const Results& other, double tolerance, const char* what, std::index_sequence<I...>) const {
    (
        [&] {
          const double far = apart(std::get<I>(all), std::get<I>(other.all));
          EXPECT(far <= tolerance, "%s, result %d: %g apart", what, int(I), far);
          EXPECT(std::get<I>(all).intact(), "%s, result %d: written outside", what, int(I));
        }(),
        ...);
  }
};

struct Sizes {
  int64_t rows, boxes, channels, size, stat_rows;
};

template <class S>
void block(Function function, const Sizes& n) {
  using Z = Compute<S>;
  const int64_t points = n.rows * n.channels * n.size, boxes = n.boxes * n.channels * n.size;
  const auto any = [](double lo, double hi) { return [=](int64_t) { return number<S>(uniform(lo, hi)); }; };
  const auto numbers = [](double lo, double hi) { return [=](int64_t) { return Z(uniform(lo, hi)); }; };
  const Array<S> x(points, 0, any(-2, 3)), r(boxes, 0, any(0, 1)), g(points, 0, any(-1, 1)), h(boxes, 0, any(-1, 1));
  const Array<Z> scale(n.channels, 0, numbers(-2, 2)), shift(n.channels, 0, numbers(-1, 1));
  const Array<Z> by_mean(n.channels, 0, numbers(-1, 1)), by_var(n.channels, 0, numbers(-1, 1));
  const int64_t stats = n.stat_rows ? n.channels : 0;
  Array<double> work(cuda::interval_work(n.channels));
  IntervalBlock a{};
  a.points = x.data(), a.radius = r.data(), a.dtype = dtype<S>();
  a.rows = n.rows, a.boxes = n.boxes, a.channels = n.channels, a.size = n.size, a.stat_rows = n.stat_rows;
  a.scale = n.channels % 2 ? scale.data() : nullptr, a.shift = shift.data(), a.eps = 1e-3;
  a.function = function, a.a = 0.1, a.b = 0.7, a.work = work.data();
  using Forward = Results<S, S, Z, Z>;
  const auto forward = [&](Forward& to) {
    IntervalBlock f = a;
    f.out = to.template at<0>(), f.reach = to.template at<1>(), f.mean = to.template at<2>(),
    f.var = to.template at<3>();
    return f;
  };
  Forward expected({points, boxes, stats, stats});
  EXPECT(cpu::baseline::interval.block(forward(expected), 1) == Status::ok, "launch");
  using Backward = Results<S, S, Z, Z>;
  const auto backward = [&](Backward& to) {
    IntervalBlock b = a;
    b.mean = expected.template at<2>(), b.var = expected.template at<3>();
    b.grad_out = g.data(), b.grad_reach = h.data();
    b.grad_mean = by_mean.data(), b.grad_var = n.size % 2 ? by_var.data() : nullptr;
    b.grad_points = to.template at<0>(), b.grad_radius = to.template at<1>();
    b.grad_scale = to.template at<2>(), b.grad_shift = to.template at<3>();
    return b;
  };
  Backward slopes({points, boxes, n.channels, n.channels});
  EXPECT(cpu::baseline::interval.block_backward(backward(slopes), 1) == Status::ok, "launch");
  in_every_order([&] {
    Forward got({points, boxes, stats, stats});
    EXPECT(cuda::interval_block(forward(got), stream()) == Status::ok, "launch");
    got.expect_near(expected, unit<S>(), "block");
    Backward back({points, boxes, n.channels, n.channels});
    EXPECT(cuda::interval_block_backward(backward(back), stream()) == Status::ok, "launch");
    back.expect_near(slopes, 4 * unit<S>(), "block backward");
    EXPECT(work.intact(), "written outside the work");
    const size_t count = n.stat_rows ? 4 : 3;
    expect_launches(std::vector<void*>(count, stream()));
  });
}

template <class S>
void margins(int64_t batch, int64_t features, int64_t classes) {
  using Z = Compute<S>;
  const auto any = [](double lo, double hi) { return [=](int64_t) { return number<S>(uniform(lo, hi)); }; };
  const Array<S> c(batch * features, 0, any(-1, 1)), r(batch * features, 0, any(0, 1));
  const Array<S> w(classes * features, 0, any(-1, 1));
  const Array<Z> bias(classes, 0, [](int64_t) { return Z(uniform(-1, 1)); });
  const Array<Z> g(batch * classes, 0, [](int64_t) { return Z(uniform(-1, 1)); });
  Array<int64_t> label(batch, 0, [&](int64_t i) { return i % (classes + 1) - (i % 5 == 4); });  // -1 and `classes` too
  IntervalMargins a{};
  a.centre = c.data(), a.radius = r.data(), a.weight = w.data(), a.label = label.data(), a.dtype = dtype<S>();
  a.bias = features % 2 ? bias.data() : nullptr, a.batch = batch, a.features = features, a.classes = classes;
  const auto run = [&](auto forward, auto backward, Results<Z>& out, Results<S, S, S, Z>& slopes) {
    IntervalMargins f = a, b = a;
    f.out = out.template at<0>();
    EXPECT(forward(f) == Status::ok, "launch");
    b.grad = g.data(), b.grad_centre = slopes.template at<0>(), b.grad_radius = slopes.template at<1>();
    b.grad_weight = slopes.template at<2>(), b.grad_bias = slopes.template at<3>();
    EXPECT(backward(b) == Status::ok, "launch");
  };
  const std::array<int64_t, 4> sizes{batch * features, batch * features, classes * features, classes};
  Results<Z> expected({batch * classes});
  Results<S, S, S, Z> expected_slopes(sizes);
  run([](const auto& f) { return cpu::baseline::interval.margins(f, 1); },
      [](const auto& b) { return cpu::baseline::interval.margins_backward(b, 1); }, expected, expected_slopes);
  in_every_order([&] {
    Results<Z> out({batch * classes});
    Results<S, S, S, Z> slopes(sizes);
    run([](const auto& f) { return cuda::interval_margins(f, stream()); },
        [](const auto& b) { return cuda::interval_margins_backward(b, stream()); }, out, slopes);
    out.expect_near(expected, unit<S>(), "margins");
    slopes.expect_near(expected_slopes, unit<S>(), "margins backward");
    expect_launches(std::vector<void*>(3, stream()));
  });
}

template <class T>
void crown(int64_t batch, int64_t rows, int64_t size) {
  const auto any = [](int64_t) { return T(uniform(-2, 2)); };
  const int64_t weights = batch * rows * size, line = batch * size;
  const Array<T> weight(weights, 0, any), g(weights, 0, any);
  const Array<T> low_slope(line, 0, any), low(line, 0, any), high_slope(line, 0, any), high(line, 0, any);
  const Array<double> c(batch * rows, 0, [](int64_t) { return uniform(-1, 1); });
  CrownLines a{};
  a.weight = weight.data(), a.low_slope = low_slope.data(), a.low = low.data(), a.high_slope = high_slope.data();
  a.high = high.data(), a.dtype = dtype<T>(), a.batch = batch, a.rows = rows, a.size = size;
  using Out = Results<T, double>;
  using Slopes = Results<T, T, T, T, T>;
  const auto run = [&](auto forward, auto backward, Out& out, Slopes& slopes) {
    CrownLines f = a, b = a;
    f.moved = out.template at<0>(), f.constant = out.template at<1>();
    EXPECT(forward(f) == Status::ok, "launch");
    b.grad_moved = g.data(), b.grad_constant = c.data(), b.grad_weight = slopes.template at<0>();
    b.grad_low_slope = slopes.template at<1>(), b.grad_low = slopes.template at<2>();
    b.grad_high_slope = slopes.template at<3>(), b.grad_high = slopes.template at<4>();
    EXPECT(backward(b) == Status::ok, "launch");
  };
  Out expected({weights, batch * rows});
  Slopes expected_slopes({weights, line, line, line, line});
  run([](const auto& f) { return cpu::baseline::crown.lines(f, 1); },
      [](const auto& b) { return cpu::baseline::crown.lines_backward(b, 1); }, expected, expected_slopes);
  in_every_order([&] {
    Out out({weights, batch * rows});
    Slopes slopes({weights, line, line, line, line});
    run([](const auto& f) { return cuda::crown_lines(f, stream()); },
        [](const auto& b) { return cuda::crown_lines_backward(b, stream()); }, out, slopes);
    out.expect_near(expected, unit<T>(), "crown");
    slopes.expect_near(expected_slopes, unit<T>(), "crown backward");
    expect_launches({stream(), stream()});
  });
}

}  // namespace

void check_interval() {
  const Function smooth[] = {Function::identity, Function::relu, Function::leaky_relu, Function::sigmoid,
                             Function::tanh,     Function::silu, Function::gelu,       Function::gelu_tanh,
                             Function::softplus, Function::elu,  Function::hardtanh};
  if (kSmall) {
    block<float>(Function::relu, {3, 1, 2, 9, 2});
    crown<float>(2, 3, 33);
    return margins<float>(3, 5, 3);
  }
  crown<float>(3, 5, 300);
  crown<double>(2, 1, 33);
  crown<float>(2, 4200, 2);  // more rows than blocks
  for (Function f : smooth) {
    block<float>(f, {7, 3, 5, 9, 0});
    block<float>(f, {7, 3, 3, 1, 4});
    block<double>(f, {5, 5, 2, 7, 5});
  }
  block<float>(Function::relu, {5, 2, 3, 4100, 3});  // several blocks to a channel
  block<float>(Function::silu, {9, 0, 4, 1000, 0});
  block<BFloat16>(Function::relu, {6, 2, 3, 11, 4});
  block<Half>(Function::tanh, {6, 2, 4, 11, 0});
  for (int64_t classes : {1, 3, 10}) {
    margins<float>(6, 33, classes);
    margins<double>(7, 64, classes);
  }
  margins<BFloat16>(5, 31, 4);
  margins<float>(2, 1, 40000 / 2);  // more rows than warps
}
