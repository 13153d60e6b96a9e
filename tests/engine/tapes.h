// Random tapes that make sense, and what spoils them.
#pragma once
#include <random>

#include "reference.h"

namespace fuzz {

class Draws {
 public:
  explicit Draws(uint64_t seed) : generator_(seed) {}
  int64_t whole(int64_t low, int64_t high) {  // both included
    return low + static_cast<int64_t>(generator_() % static_cast<uint64_t>(high - low + 1));
  }
  bool chance(double p) { return real(0, 1) < p; }
  double real(double low, double high) {
    return low + (high - low) * static_cast<double>(generator_() >> 11) * 0x1p-53;
  }
  double normal() {  // nearly
    double sum = 0;
    for (int i = 0; i < 6; ++i) sum += real(-1, 1);
    return sum * std::sqrt(0.5);
  }
  template <class T>
  const T& of(const std::vector<T>& v) {
    return v[static_cast<size_t>(whole(0, static_cast<int64_t>(v.size()) - 1))];
  }

 private:
  std::mt19937_64 generator_;
};

struct Net {
  Tape tape;
  Tensors tensors;
};

class Author {
 public:
  explicit Author(Draws& draws) : d_(draws), features_(d_.chance(0.2)) {}

  Net write() {
    const bool wide = d_.chance(0.3);  // enough channels for Winograd's transforms to pay
    const int64_t most = d_.chance(0.15) ? 1 : 9;
    net_.tape.values.push_back({d_.whole(wide ? 12 : 1, wide ? 32 : 6), d_.whole(1, most), d_.whole(1, most)});
    if (features_) net_.tape.values[0] = {d_.whole(1, 70), 1, 1};
    const int64_t ops = d_.whole(0, 8);
    for (int64_t i = 0; i < ops; ++i) any();
    finish(d_.whole(2, 7));
    return net_;
  }

 private:
  static Op blank(Kind kind, int in) {
    return {kind, in, -1, false, -1, -1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1.0f, 0.0f, Function::leaky_relu, {}, {}};
  }
  const Shape& shape(int v) const { return net_.tape.values[static_cast<size_t>(v)]; }
  int last() const { return static_cast<int>(net_.tape.ops.size()); }
  int some() { return d_.chance(0.7) ? last() : static_cast<int>(d_.whole(0, last())); }
  int tensor(int64_t size, double scale, double middle = 0) {
    std::vector<float> t(static_cast<size_t>(size));
    for (float& v : t) v = static_cast<float>(middle + scale * d_.normal());
    net_.tensors.push_back(t);
    net_.tape.tensors.push_back(size);
    return static_cast<int>(net_.tensors.size()) - 1;
  }
  void push(const Op& op, const Shape& result) {
    net_.tape.ops.push_back(op);
    net_.tape.values.push_back(result);
  }
  static int64_t pixels(int64_t in, int64_t k, int64_t stride, int64_t pad, int64_t dilation) {
    const int64_t room = in + 2 * pad - (k - 1) * dilation - 1;
    return room < 0 ? 0 : room / stride + 1;
  }
  // Another value that fits beside v, or v itself.
  int partner(int v, bool channels_too) {
    std::vector<int> fit;
    for (int u = 0; u <= last(); ++u) {
      const Shape &a = shape(u), &b = shape(v);
      if (a.h == b.h && a.w == b.w && (a.c == b.c || !channels_too)) fit.push_back(u);
    }
    return d_.of(fit);
  }

  void any() {
    const int in = some();
    const Shape& s = shape(in);
    Op op = blank(static_cast<Kind>(d_.of(std::vector<int>{0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 9})), in);
    op.relu = d_.chance(0.3);
    switch (op.kind) {
      case Kind::contract:
        return contract(op);
      case Kind::add:
        op.alpha = d_.chance(0.5) ? 1.0f : static_cast<float>(d_.real(-1.5, 1.5));
        op.in2 = partner(in, true);
        return push(op, s);
      case Kind::multiply:
        op.in2 = partner(in, true);
        return push(op, s);
      case Kind::concat: {
        op.in2 = partner(in, false);
        const int64_t both = s.c + shape(op.in2).c;
        return both > 60 ? contract(blank(Kind::contract, in)) : push(op, {both, s.h, s.w});
      }
      case Kind::affine:
        if (d_.chance(0.8)) op.weight = tensor(s.c, 0.5, 0.5);
        if (d_.chance(0.8)) op.bias = tensor(s.c, 0.5);
        return push(op, s);
      case Kind::relu:
        op.relu = true;
        return push(op, s);
      case Kind::max_pool:
      case Kind::avg_pool:
        return features_ ? push(blank(Kind::affine, in), s) : pool(op);
      case Kind::rearrange:
        return features_ ? push(blank(Kind::relu, in), s) : rearrange(op);
      case Kind::activation:
        op.function = static_cast<Function>(d_.whole(0, 8));
        op.alpha = static_cast<float>(d_.real(-0.3, 1.2));
        if (op.function == Function::hardtanh) op.alpha = static_cast<float>(d_.real(-1, 0));
        if (op.function == Function::softplus) op.alpha = static_cast<float>(d_.real(0.5, 3));
        op.beta = static_cast<float>(op.function == Function::softplus ? 20 : d_.real(0.1, 1));
        return push(op, s);
    }
  }

  void contract(Op op) {
    const Shape s = shape(op.in);
    const bool winograd = !features_ && s.c >= 12 && d_.chance(0.8);
    int64_t out = d_.whole(1, features_ ? 70 : 20);
    for (;;) {
      const bool unit = features_ && d_.chance(0.9);
      const auto side = [&](int64_t* k, int64_t* stride, int64_t* pad, int64_t* dilation) {
        *k = unit ? 1 : d_.whole(1, d_.chance(0.3) ? 14 : 5);
        *stride = d_.whole(1, 3);
        *pad = unit ? 0 : d_.whole(0, d_.chance(0.1) ? 8 : 3);
        *dilation = d_.whole(1, 2);
      };
      side(&op.kh, &op.stride_h, &op.pad_h, &op.dilation_h);
      side(&op.kw, &op.stride_w, &op.pad_w, &op.dilation_w);
      if (winograd) {
        op.kh = op.kw = 3;
        op.dilation_h = op.dilation_w = 1;
        op.stride_h = op.stride_w = s.c >= 24 && d_.chance(0.6) ? 2 : 1;
        op.pad_h = op.stride_h == 2 ? 1 : d_.whole(0, 2);
        op.pad_w = op.stride_h == 2 ? 1 : d_.whole(0, 2);
        out = op.stride_h == 2 ? 2048 / s.c + d_.whole(0, 4) : d_.whole(12, 40);
      }
      const int64_t h = pixels(s.h, op.kh, op.stride_h, op.pad_h, op.dilation_h);
      const int64_t w = pixels(s.w, op.kw, op.stride_w, op.pad_w, op.dilation_w);
      if (h < 1 || w < 1 || h > 12 || w > 12 || (features_ && h * w > 1)) continue;
      std::vector<int64_t> groups;
      for (int64_t g = 1; g <= s.c; ++g) {
        if (s.c % g == 0) groups.push_back(g);
      }
      op.groups = winograd || d_.chance(0.6) ? 1 : d_.of(groups);
      out = (out + op.groups - 1) / op.groups * op.groups;
      return weigh(op, {out, h, w});
    }
  }

  void weigh(Op op, const Shape& result) {
    const int64_t each = shape(op.in).c / op.groups * op.kh * op.kw;
    op.weight = tensor(result.c * each, 1 / std::sqrt(static_cast<double>(each)));
    if (d_.chance(0.6)) op.bias = tensor(result.c, 0.3);
    push(op, result);
  }

  void pool(Op op) {
    const Shape s = shape(op.in);
    engine::Windows& w = op.windows;
    // Regular windows cut off at the edges, which may overlap or leave gaps, or the irregular ones of adaptive pools.
    const auto side = [&](int64_t n, std::vector<int64_t>* begin, std::vector<int64_t>* end) {
      if (d_.chance(0.3)) {
        const int64_t out = d_.whole(1, n);
        for (int64_t i = 0; i < out; ++i) begin->push_back(i * n / out), end->push_back(((i + 1) * n + out - 1) / out);
      } else {
        const int64_t k = d_.whole(1, std::min<int64_t>(n, 4)), pad = d_.whole(0, k / 2), stride = d_.whole(1, 3);
        for (int64_t at = -pad; at + k <= n + pad; at += stride)
          begin->push_back(std::max<int64_t>(at, 0)), end->push_back(std::min(at + k, n));
      }
    };
    side(s.h, &w.row_begin, &w.row_end);
    side(s.w, &w.column_begin, &w.column_end);
    const size_t rows = w.row_begin.size(), columns = w.column_begin.size();
    for (size_t i = 0; i < rows * columns && op.kind == Kind::avg_pool; ++i) {
      const size_t y = i / columns, x = i % columns;
      const int64_t area = (w.row_end[y] - w.row_begin[y]) * (w.column_end[x] - w.column_begin[x]);
      w.divisor.push_back(static_cast<float>(area + d_.whole(0, 1)));
    }
    push(op, {s.c, static_cast<int64_t>(rows), static_cast<int64_t>(columns)});
  }

  void rearrange(Op op) {
    const Shape s = shape(op.in);
    Shape result = d_.chance(0.5) ? s : Shape{d_.whole(1, 8), d_.whole(1, 6), d_.whole(1, 6)};
    const bool flat = d_.chance(0.3), permuted = flat || d_.chance(0.4);
    if (flat && s.size() <= 200) result = {s.size(), 1, 1};
    op.source.resize(static_cast<size_t>(result.size()));
    for (int64_t& i : op.source) i = d_.chance(0.1) ? -1 : d_.whole(0, s.size() - 1);
    if (permuted && result.size() == s.size()) {
      for (size_t i = 0; i < op.source.size(); ++i) {
        const auto j = static_cast<size_t>(d_.whole(0, static_cast<int64_t>(i)));
        op.source[i] = op.source[j];
        op.source[j] = static_cast<int64_t>(i);
      }
    }
    push(op, result);
  }

  // Every value that nobody reads adds to the logits.
  void finish(int64_t classes) {
    std::vector<bool> read(net_.tape.values.size());
    for (const Op& op : net_.tape.ops) {
      read[static_cast<size_t>(op.in)] = true;
      if (op.in2 >= 0) read[static_cast<size_t>(op.in2)] = true;
    }
    int sum = -1;
    for (size_t v = 0; v < read.size(); ++v) {
      if (read[v]) continue;
      Op op = blank(Kind::contract, static_cast<int>(v));
      op.kh = shape(op.in).h;
      op.kw = shape(op.in).w;
      op.relu = d_.chance(0.05);
      weigh(op, {classes, 1, 1});
      if (sum >= 0) {
        Op join = blank(d_.chance(0.8) ? Kind::add : Kind::multiply, sum);
        join.in2 = last();
        push(join, {classes, 1, 1});
      }
      sum = last();
    }
  }

  Draws& d_;
  bool features_;
  Net net_;
};

// One to three numbers of a tape changed: mostly to what it should refuse.
inline void spoil(Tape* tape, Draws& d) {
  const auto odd = [&](int64_t now) {
    const uint64_t far = uint64_t(1) << d.whole(8, 63), n = static_cast<uint64_t>(now);
    return static_cast<int64_t>(
        d.of(std::vector<uint64_t>{n + 1, n - 1, 0, uint64_t(-1), 1, 2, -n, 2 * n, far, -far, far - 1}));
  };
  const auto change = [&](auto* number) { *number = static_cast<std::decay_t<decltype(*number)>>(odd(*number)); };
  const auto change_one = [&](std::vector<int64_t>* list) {
    if (list->empty() || d.chance(0.2)) return d.chance(0.5) ? list->push_back(0) : list->clear();
    change(&(*list)[static_cast<size_t>(d.whole(0, static_cast<int64_t>(list->size()) - 1))]);
  };
  for (int64_t n = d.whole(1, 3); n > 0; --n) {
    Shape& s = tape->values[static_cast<size_t>(d.whole(0, static_cast<int64_t>(tape->values.size()) - 1))];
    if (tape->ops.empty()) return;
    Op& op = tape->ops[static_cast<size_t>(d.whole(0, static_cast<int64_t>(tape->ops.size()) - 1))];
    int64_t* geometry[] = {&op.kh,    &op.kw,         &op.stride_h,   &op.stride_w, &op.pad_h,
                           &op.pad_w, &op.dilation_h, &op.dilation_w, &op.groups};
    int* links[] = {&op.in, &op.in2, &op.weight, &op.bias};
    std::vector<int64_t>* lists[] = {&op.source, &op.windows.row_begin, &op.windows.row_end, &op.windows.column_begin,
                                     &op.windows.column_end};
    int64_t* sizes[] = {&s.c, &s.h, &s.w};
    switch (d.whole(0, 11)) {
      case 0:
        change(sizes[d.whole(0, 2)]);
        break;
      case 1:
        op.kind = static_cast<Kind>(d.whole(-1, 10));
        break;
      case 2:
        op.function = static_cast<Function>(d.whole(-1, 10));
        break;
      case 3:
      case 4:
      case 5:
        change(geometry[d.whole(0, 8)]);
        break;
      case 6:
      case 7:
        change(links[d.whole(0, 3)]);
        break;
      case 8:
      case 9:
        change_one(lists[d.whole(0, 4)]);
        break;
      case 10:
        change_one(&tape->tensors);
        break;
      default:
        op.windows.divisor.assign(static_cast<size_t>(d.whole(0, 4)), d.chance(0.5) ? 0.0f : NAN);
        if (d.chance(0.3)) tape->ops.pop_back();
    }
  }
}

}  // namespace fuzz
