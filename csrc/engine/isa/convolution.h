// Linear layers and convolutions (a linear layer is one of 1 x 1 on 1 x 1).
#pragma once
#include "box_sums.h"
#include "contract.h"
#include "winograd.h"

namespace fastrobust::engine::FR_ISA {

class Contract : public Layer {
 public:
  // `boxes`: for intervals only; `single`: lanes are channels.
  Contract(const Op& op, int to, const Layout* at, const Route& route, bool boxes, bool single)
      : op_(op), to_(to), route_(route), outputs_(at[to].channels), in_(at[op.in]) {
    const Layout &in = at[op.in], &out = at[to];
    if (boxes) {
      boxes_ = new BoxSums(op.groups, out.channels / op.groups, in.channels / op.groups, strides(op, in, out), op.kw,
                           in, out);
      fill(op, in, out, &boxes_->phase());
    } else {
      forward_ = single ? forwards<Channels>(op, in, out) : forwards<Samples>(op, in, out);
      backward_ = single ? backwards<Channels>(op, in, out) : backwards<Samples>(op, in, out);
    }
  }
  ~Contract() override {
    delete boxes_;
    delete forward_;
    delete backward_;
  }
  Contract(const Contract&) = delete;
  Contract& operator=(const Contract&) = delete;

  // How wide the borders of the input and of the result must be; `direct`: for direct sums alone.
  static void widen(const Op& op, Layout* in, Layout* out, bool direct = false) {
    const Shape &i = in->shape, &o = out->shape;  // rows and columns
    const auto side = [&](int64_t size, int64_t result, int64_t k, int64_t stride, int64_t pad, int64_t dilation,
                          int64_t* before, int64_t* after) {
      *before = most(*before, pad);
      const int64_t beyond = reach(size, result, k, stride, pad, dilation);
      *after = most(*after, k / stride < kWideKernel ? beyond : least(beyond, kRegisters - 1));
      if (direct || !saves(op, *in, *out)) return;
      *before = most(*before, stride == 1 ? Winograd<Dense, Samples>::reach(size, result, pad)
                                          : Winograd<Strided, Samples>::reach(size, result, pad));
      *after = most(*after, stride == 1 ? Winograd<Dense, Samples>::reach(result, size, k - 1 - pad)
                                        : Winograd<Transposed, Samples>::reach(result, size, 0));
    };
    side(i.h, o.h, op.kh, op.stride_h, op.pad_h, op.dilation_h, &in->border_h, &out->border_h);
    side(i.w, o.w, op.kw, op.stride_w, op.pad_w, op.dilation_w, &in->border_w, &out->border_w);
  }

  int64_t scratch() const override { return boxes_ ? in_.size() : most(forward_->scratch(), backward_->scratch()); }

  void load(const float* const* tensors) override {
    if (boxes_) boxes_->load(tensors[op_.weight]);
    for (Sums* sums : {forward_, backward_}) {
      if (sums) sums->load(tensors[op_.weight]);
    }
    if (op_.bias < 0) return;
    bias_.resize((outputs_ + kLanes - 1) / kLanes * kLanes);  // of whole vectors
    for (float& bias : bias_) bias = 0.0f;
    memcpy(bias_.data(), tensors[op_.bias], static_cast<size_t>(outputs_) * sizeof(float));
  }

  void forward(const Block& b) const override {
    forward_->run(b.value[op_.in], bias_.data(), b.result(op_, to_), b.scratch);
  }

  void backward(const Block& b) const override {
    backward_->run(b.gradient[to_], nullptr, b.slope(op_.in, route_), b.scratch);
  }

  bool has_boxes() const override { return true; }
  int64_t roundings() const override { return boxes_->roundings(); }
  void boxes(const Block& b) const override {
    const float *centre = b.value[op_.in], *radius = b.gradient[op_.in];
    const Widening w = widening(b, to_);
    if (b.widening) {
      const Factors factors(w);
      for (int64_t i = 0; i < in_.size(); i += kVector)
        store(b.scratch + i, factors.widened(read(radius + i), read(centre + i)));
      radius = b.scratch;
    }
    boxes_->run(centre, radius, bias_.data(), w, boxes_of(b, op_, to_));
  }

 private:
  // Whether fewer multiplications pay for the transforms, whose cost goes with channels + outputs.
  static bool saves(const Op& op, const Layout& in, const Layout& out) {
    if (op.kh != 3 || op.kw != 3 || op.dilation_h != 1 || op.dilation_w != 1 || op.groups != 1) return false;
    const int64_t work = in.channels * out.channels;
    if (op.stride_h == 1 && op.stride_w == 1)
      return op.pad_h <= 2 && op.pad_w <= 2 && out.shape.h * out.shape.w > 1 &&
             work >= 6 * (in.channels + out.channels);
    return op.stride_h == 2 && op.stride_w == 2 && op.pad_h == 1 && op.pad_w == 1 && work >= 2048;
  }

  template <class Lanes>
  static Sums* forwards(const Op& op, const Layout& in, const Layout& out) {
    if (saves(op, in, out)) {
      const Strides apart = strides(op, in, out);
      if (op.stride_h == 1) return new Winograd<Dense, Lanes>(apart, false, in, out, op.pad_h, op.pad_w);
      return new Winograd<Strided, Lanes>(apart, false, in, out, op.pad_h, op.pad_w);
    }
    auto* sums = new Direct<Lanes>(op.groups, out.channels / op.groups, in.channels / op.groups, strides(op, in, out),
                                   op.kw, in, out, 1);
    fill(op, in, out, &sums->phase(0));
    return sums;
  }

  static Strides strides(const Op& op, const Layout& in, const Layout& out) {
    const int64_t taps = op.kh * op.kw, channels = in.channels / op.groups, outputs = out.channels / op.groups;
    return {outputs * channels * taps, channels * taps, taps};
  }

  // All pixels, from the kernel's taps.
  static void fill(const Op& op, const Layout& in, const Layout& out, Phase* phase) {
    Phase& all = *phase;
    for (int64_t y = 0; y < op.kh; ++y) all.down.push(y, y * op.dilation_h - op.pad_h);
    for (int64_t x = 0; x < op.kw; ++x) all.across.push(x, x * op.dilation_w - op.pad_w);
    all.place(in);
    all.in_at = in.at(0, 0, 0);
    all.out_at = out.at(0, 0, 0);
    all.rows = out.shape.h;
    all.columns = out.shape.w;
    all.step_h = op.stride_h;
    all.step_w = op.stride_w;
    all.out_row = out.row();
    all.out_column = out.column();
  }

  // The gradient of `in` from that of `out`.
  template <class Lanes>
  static Sums* backwards(const Op& op, const Layout& in, const Layout& out) {
    if (!saves(op, in, out)) return direct_backwards<Lanes>(op, in, out);
    const Strides strides = transposed_strides(op, in, out);
    if (op.stride_h == 1) return new Winograd<Dense, Lanes>(strides, true, out, in, 2 - op.pad_h, 2 - op.pad_w);
    return new Winograd<Transposed, Lanes>(strides, false, out, in, 0, 0);
  }

  static Strides transposed_strides(const Op& op, const Layout& in, const Layout& out) {
    const int64_t taps = op.kh * op.kw, channels = in.channels / op.groups, outputs = out.channels / op.groups;
    return {outputs * channels * taps, taps, channels * taps};
  }

 public:
  template <class Lanes>
  static Sums* direct_backwards(const Op& op, const Layout& in, const Layout& out) {
    const int64_t channels = in.channels / op.groups, outputs = out.channels / op.groups;
    const int64_t down = least(op.stride_h, in.shape.h), across = least(op.stride_w, in.shape.w);
    auto* sums =
        new Direct<Lanes>(op.groups, channels, outputs, transposed_strides(op, in, out), op.kw, out, in, down * across);
    for (int64_t py = 0; py < down; ++py) {
      for (int64_t px = 0; px < across; ++px) {
        Phase& phase = sums->phase(py * across + px);
        const auto side = [](int64_t k, int64_t from, int64_t dilation, int64_t stride, Side* taps) {
          for (int64_t i = 0; i < k; ++i) {
            if ((from - i * dilation) % stride == 0) taps->push(i, (from - i * dilation) / stride);
          }
        };
        side(op.kh, py + op.pad_h, op.dilation_h, op.stride_h, &phase.down);
        side(op.kw, px + op.pad_w, op.dilation_w, op.stride_w, &phase.across);
        phase.place(out);
        phase.in_at = out.at(0, 0, 0);
        phase.out_at = in.at(0, py, px);
        phase.rows = (in.shape.h - py + op.stride_h - 1) / op.stride_h;
        phase.columns = (in.shape.w - px + op.stride_w - 1) / op.stride_w;
        phase.step_h = phase.step_w = 1;
        phase.out_row = op.stride_h * in.row();
        phase.out_column = op.stride_w * in.column();
      }
    }
    return sums;
  }

 private:
  // By how much the gradient's taps go beyond the result's pixels, on either side.
  static int64_t reach(int64_t in, int64_t out, int64_t k, int64_t stride, int64_t pad, int64_t dilation) {
    const int64_t before = ((k - 1) * dilation - pad + stride - 1) / stride,
                  after = (in - 1 + pad) / stride - (out - 1);
    return most(0, most(before, after));
  }

  const Op& op_;
  int to_;
  Route route_;
  int64_t outputs_;
  Layout in_;
  BoxSums* boxes_ = nullptr;  // the others are null then
  Sums *forward_ = nullptr, *backward_ = nullptr;
  Array<float> bias_;  // empty where there is none
};

}  // namespace fastrobust::engine::FR_ISA
