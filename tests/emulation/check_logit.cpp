// logit_loss: the CPU's losses and gradients up to the order of additions; predictions, truth values and counts equal.
#include "check.h"
#include "cpu_body.h"
#include "fastrobust/logit_loss.h"

namespace {

using namespace check;
using namespace fastrobust;

template <class S>
using Real = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class S>
double unit() {
  return std::is_same_v<S, BFloat16>
             ? 0x1p-8
             : (std::is_same_v<S, Half> ? 0x1p-11 : double(std::numeric_limits<Real<S>>::epsilon()));
}

bool near(double a, double b, double tolerance) {
  return a == b || (std::isnan(a) && std::isnan(b)) || std::fabs(a - b) <= tolerance * std::fmax(1.0, std::fabs(b));
}

template <class S>
struct Result {
  Array<Real<S>> loss;
  Array<int64_t> prediction;
  Array<unsigned char> correct;
  Array<S> grad;
  Array<int32_t> invalid;

  Result(int64_t batch, int64_t classes)
      : loss(batch), prediction(batch), correct(batch), grad(batch * classes), invalid(1, 0, [](int64_t) {
          return 0;
        }) {}

  bool same(const Result& o) const {
    return loss.same(o.loss) && prediction.same(o.prediction) && correct.same(o.correct) && grad.same(o.grad) &&
           invalid.same(o.invalid);
  }
  bool intact() const {
    return loss.intact() && prediction.intact() && correct.intact() && grad.intact() && invalid.intact();
  }
};

template <class S>
void rows(Loss kind, int64_t batch, int64_t classes, bool targeted, double smoothing) {
  // Rows with ties, with a NaN, with large logits; labels and targets out of range on either side.
  const Array<S> logits(batch * classes, 0, [&](int64_t i) {
    const int64_t row = i / classes, c = i % classes;
    if (row % 7 == 3) return number<S>(c % 2);
    if (row % 7 == 5 && c == classes - 1) return number<S>(NAN);
    return number<S>(uniform(-1, 1) * (row % 7 == 4 ? 100 : 5));
  });
  const Array<S> reference(batch * classes, 0, [&](int64_t) { return number<S>(uniform(-5, 5)); });
  const auto any = [&](int64_t) { return std::uniform_int_distribution<int64_t>(0, classes - 1)(generator()); };
  Array<int64_t> label(batch, 0, any), target(batch, 0, any);
  if (batch > 10) label[6] = -1, label[8] = classes, target[9] = classes, target[10] = -1;

  const auto arguments = [&](Result<S>& r) {
    LogitLoss a{};
    a.logits = logits.data();
    a.dtype = dtype<S>();
    a.batch = batch;
    a.classes = classes;
    a.kind = kind;
    a.label = label.data();
    a.target = targeted ? target.data() : nullptr;
    a.reference = kind == Loss::kl || kind == Loss::linear ? reference.data() : nullptr;
    a.smoothing = smoothing;
    a.loss = r.loss.data();
    a.prediction = r.prediction.data();
    a.correct = reinterpret_cast<bool*>(r.correct.data());
    a.grad = r.grad.data();
    a.invalid = r.invalid.data();
    return a;
  };
  Result<S> expected(batch, classes), first(batch, classes);
  EXPECT(cpu::baseline::logit_loss(arguments(expected), 1) == Status::ok, "launch");
  int orders = 0;
  in_every_order(
      [&] {
        Result<S> got(batch, classes);
        EXPECT(cuda::logit_loss(arguments(got), stream()) == Status::ok, "launch");
        expect_launches({stream()});
        EXPECT(got.prediction.same(expected.prediction) && got.correct.same(expected.correct), "kind %d, classes %ld",
               int(kind), classes);
        EXPECT(got.invalid.same(expected.invalid), "%d invalid, not %d", got.invalid[0], expected.invalid[0]);
        EXPECT(got.intact(), "kind %d, classes %ld: written outside", int(kind), classes);
        const double sums = double(std::numeric_limits<Real<S>>::epsilon()) * (8 + std::sqrt(double(classes)));
        const double terms =
            kind == Loss::linear ? double(classes) : 1;  // of either sign, so that the sum may be small
        for (int64_t r = 0; r < batch; ++r) {
          EXPECT(near(got.loss[r], expected.loss[r], sums * terms), "kind %d, classes %ld, row %ld: loss %g, not %g",
                 int(kind), classes, r, double(got.loss[r]), double(expected.loss[r]));
        }
        for (int64_t i = 0; i < batch * classes; ++i) {
          const double a = load<double>(got.grad[i]), b = load<double>(expected.grad[i]);
          EXPECT(near(a, b, sums + unit<S>()), "kind %d, classes %ld, element %ld: gradient %g, not %g", int(kind),
                 classes, i, a, b);
        }
        if (orders++ == 0) first = got;
        EXPECT(got.same(first), "kind %d, classes %ld: the order of execution changes the result", int(kind), classes);
      },
      batch < 1000);
}

template <class S>
void shapes(const std::vector<int64_t>& all) {
  for (int64_t classes : all) {
    const int64_t batch = classes > 200 ? 6 : 13;
    rows<S>(Loss::ce, batch, classes, false, 0.0);
    rows<S>(Loss::ce, batch, classes, true, 0.1);
    rows<S>(Loss::kl, batch, classes, false, 0.0);
    rows<S>(Loss::linear, batch, classes, false, 0.0);
    rows<S>(Loss::margin, batch, classes, classes % 2 == 0, 0.0);
    if (classes >= 3) rows<S>(Loss::dlr, batch, classes, false, 0.0);
    if (classes >= 4) rows<S>(Loss::dlr_targeted, batch, classes, true, 0.0);
  }
}

}  // namespace

void check_logit() {
  if (kSmall) return shapes<float>({2, 33, 65});
  shapes<float>({2, 3, 4, 10, 31, 32, 33, 64, 65, 1000, 1025});
  shapes<double>({2, 32, 65});
  shapes<BFloat16>({3, 33});
  shapes<Half>({4, 31});
  rows<float>(Loss::ce, 1, 10, false, 0.0);
  rows<float>(Loss::margin, 4 * 8192 + 5, 2, false, 0.0);  // each warp comes back for another row
}
