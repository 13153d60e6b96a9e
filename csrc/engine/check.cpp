// What a tape must satisfy: with that, no layer reads or writes out of bounds.
#include "check.h"

#include <stdexcept>
#include <string>

namespace fastrobust::engine {
namespace {

// Far beyond what fits in memory, and small enough for places in a block to be worked out in 64 bits.
constexpr int64_t kLongest = 1 << 24, kLargest = int64_t(1) << 40;

bool fits(int64_t v) { return 0 <= v && v <= kLongest; }
// a * b, or more than kLargest; both at least 0
int64_t times(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}
// With borders as wide as padding needs.
bool fits(const Shape& s, int64_t border_h, int64_t border_w) {
  return fits(s.h) && fits(s.w) && times(times(s.c, s.h + 2 * border_h), s.w + 2 * border_w) <= kLargest;
}

class Checker {
 public:
  Checker(const Tape& tape, size_t number) : tape_(tape), op_(tape.ops[number]), number_(number) {}

  void check() const {
    const int to = static_cast<int>(number_) + 1;
    must(op_.in >= 0 && op_.in < to, "in must be an earlier value");
    const bool two = op_.kind == Kind::add || op_.kind == Kind::multiply || op_.kind == Kind::concat;
    must(two ? op_.in2 >= 0 && op_.in2 < to : op_.in2 == -1, "in2 must be an earlier value, where there are two");
    const Shape &in = tape_.values[op_.in], &out = tape_.values[to];
    must(out.c > 0 && out.h > 0 && out.w > 0, "the result must not be empty");
    must(fits(out, 0, 0), "the result is too large");
    switch (op_.kind) {
      case Kind::contract:
        must(op_.kh > 0 && op_.kw > 0 && op_.stride_h > 0 && op_.stride_w > 0, "kernel and stride must be positive");
        must(op_.pad_h >= 0 && op_.pad_w >= 0 && op_.dilation_h > 0 && op_.dilation_w > 0, "padding and dilation");
        for (int64_t v :
             {op_.kh, op_.kw, op_.stride_h, op_.stride_w, op_.pad_h, op_.pad_w, op_.dilation_h, op_.dilation_w})
          must(fits(v), "too large");
        must(fits(in, op_.pad_h, op_.pad_w) && fits(out, in.h + op_.pad_h, in.w + op_.pad_w), "too large");
        must(op_.groups > 0 && in.c % op_.groups == 0 && out.c % op_.groups == 0, "groups must divide the channels");
        must(out.h == pixels(in.h, op_.kh, op_.stride_h, op_.pad_h, op_.dilation_h), "rows of the result");
        must(out.w == pixels(in.w, op_.kw, op_.stride_w, op_.pad_w, op_.dilation_w), "columns of the result");
        tensor(op_.weight, times(times(times(out.c, in.c / op_.groups), op_.kh), op_.kw));
        if (op_.bias != -1) tensor(op_.bias, out.c);
        break;
      case Kind::add:
      case Kind::multiply:
        must(same(in, out) && same(tape_.values[op_.in2], out), "it keeps the shape of both");
        break;
      case Kind::affine:
      case Kind::relu:
        must(same(in, out), "it keeps the shape");
        if (op_.weight != -1) tensor(op_.weight, in.c);
        if (op_.bias != -1) tensor(op_.bias, in.c);
        break;
      case Kind::max_pool:
      case Kind::avg_pool: {
        must(in.c == out.c, "a pool keeps the channels");
        windows(op_.windows.row_begin, op_.windows.row_end, in.h, out.h);
        windows(op_.windows.column_begin, op_.windows.column_end, in.w, out.w);
        const auto divisors = static_cast<int64_t>(op_.windows.divisor.size());
        must(divisors == (op_.kind == Kind::max_pool ? 0 : out.h * out.w), "a divisor a window, for an average");
        for (float d : op_.windows.divisor) must(d != 0.0f, "divisors must not be 0");
        break;
      }
      case Kind::rearrange:
        must(static_cast<int64_t>(op_.source.size()) == out.size(), "a source for each element");
        for (int64_t i : op_.source) must(-1 <= i && i < in.size(), "sources");
        break;
      case Kind::activation:
        must(same(in, out), "it keeps the shape");
        must(op_.function >= Function::leaky_relu && op_.function <= Function::hardtanh, "unknown function");
        must(op_.function != Function::softplus || op_.alpha > 0.0f, "softplus needs a positive beta");
        break;
      case Kind::concat: {
        const Shape& in2 = tape_.values[op_.in2];
        must(in.c + in2.c == out.c && in.h == out.h && in2.h == out.h && in.w == out.w && in2.w == out.w, "channels");
        break;
      }
      default:
        must(false, "unknown kind");
    }
  }

 private:
  void must(bool holds, const char* what) const {
    if (!holds) throw std::invalid_argument("engine: op " + std::to_string(number_) + ": " + what);
  }
  void tensor(int which, int64_t size) const {
    must(which >= 0 && which < static_cast<int>(tape_.tensors.size()), "no such tensor");
    must(tape_.tensors[which] == size, "a tensor has another size");
  }
  void windows(const std::vector<int64_t>& begin, const std::vector<int64_t>& end, int64_t in, int64_t out) const {
    must(static_cast<int64_t>(begin.size()) == out && begin.size() == end.size(), "a window a pixel");
    for (size_t i = 0; i < begin.size(); ++i) must(0 <= begin[i] && begin[i] < end[i] && end[i] <= in, "windows");
  }
  static bool same(const Shape& a, const Shape& b) { return a.c == b.c && a.h == b.h && a.w == b.w; }
  static int64_t pixels(int64_t in, int64_t k, int64_t stride, int64_t pad, int64_t dilation) {
    const int64_t room = in + 2 * pad - (k - 1) * dilation - 1;
    return room < 0 ? 0 : room / stride + 1;
  }

  const Tape& tape_;
  const Op& op_;
  size_t number_;
};

}  // namespace

void check(const Tape& tape) {
  if (tape.ops.empty() || tape.values.size() != tape.ops.size() + 1)
    throw std::invalid_argument("engine: a tape has ops, and one value more");
  const Shape &x = tape.values.front(), &logits = tape.values.back();
  if (x.c < 1 || x.h < 1 || x.w < 1) throw std::invalid_argument("engine: the input must not be empty");
  if (!fits(x, 0, 0)) throw std::invalid_argument("engine: the input is too large");
  if (logits.h != 1 || logits.w != 1) throw std::invalid_argument("engine: the last value must be features");
  for (int64_t size : tape.tensors) {
    if (size < 1) throw std::invalid_argument("engine: tensors must not be empty");
  }
  for (size_t i = 0; i < tape.ops.size(); ++i) Checker(tape, i).check();
  std::vector<bool> read(tape.values.size());
  for (const Op& op : tape.ops) {
    read[op.in] = true;
    if (op.in2 >= 0) read[op.in2] = true;
  }
  for (size_t v = 0; v + 1 < read.size(); ++v) {
    if (!read[v]) throw std::invalid_argument("engine: value " + std::to_string(v) + " has no reader");
  }
}

}  // namespace fastrobust::engine
