// Where values, gradients and masks lie in a thread's memory. What is no longer needed gives its place to the next of
// the same layout, so that the borders, which nobody writes, stay zero.
#pragma once
#include "block.h"

namespace fastrobust::engine::FR_ISA {

class Memory {
 public:
  // `layouts`: of the values, `masked`: whose signs are kept.
  Memory(const Plan& plan, const Layout* layouts, const Array<bool>& masked) {
    const int64_t ops = plan.count, values = ops + 1;
    // Layer i runs forwards at time i and backwards at 2 * ops - i; the loss in between.
    Array<int64_t> last_read, first_slope;
    for (int64_t v = 0; v < values; ++v) {
      last_read.push(ops);
      first_slope.push(ops);
    }
    for (int64_t i = ops; i-- > 0;) {
      const Op& op = plan.ops[i];
      for (int v : {op.in, op.in2}) {
        if (v < 0) continue;
        // The reader that comes last forwards comes first backwards.
        if (first_slope[v] == ops) {
          last_read[v] = i;
          first_slope[v] = 2 * ops - i;
        }
      }
    }
    for (int64_t i = 0; i < ops; ++i) {
      const Op& op = plan.ops[i];
      const auto keep = [&](int64_t v) { last_read[v] = most(last_read[v], 2 * ops - i); };
      if (op.kind == Kind::activation || op.kind == Kind::max_pool || op.kind == Kind::multiply) keep(op.in);
      if (op.kind == Kind::multiply) keep(op.in2);
      if (op.kind == Kind::max_pool) keep(i + 1);
    }
    for (int64_t v = 0; v < values; ++v) value_.push(place(layouts[v], v - 1, last_read[v]));
    for (int64_t v = values; v-- > 0;) gradient_.push(place(layouts[v], first_slope[v], 2 * ops - (v - 1)));
    for (int64_t v = 0; v < values; ++v) {
      mask_.push(floats_);
      if (masked[v]) floats_ += (layouts[v].size() / kVector * static_cast<int64_t>(sizeof(Bits)) + 63) / 64 * 16;
    }
  }

  int64_t floats() const { return floats_; }
  float* value(float* memory, int64_t v) const { return memory + value_[v]; }
  float* gradient(float* memory, int64_t v) const { return memory + gradient_[gradient_.size() - 1 - v]; }
  Bits* mask(float* memory, int64_t v) const { return reinterpret_cast<Bits*>(memory + mask_[v]); }

 private:
  struct Slot {
    Layout layout;
    int64_t at, until;
  };

  // For use from time `from` until `until`, both included.
  int64_t place(const Layout& layout, int64_t from, int64_t until) {
    for (int64_t i = 0; i < slots_.size(); ++i) {
      Slot& slot = slots_[i];
      if (slot.until < from && slot.layout == layout) {
        slot.until = until;
        return slot.at;
      }
    }
    slots_.push({layout, floats_, until});
    floats_ += layout.size();
    return slots_[slots_.size() - 1].at;
  }

  Array<Slot> slots_;
  Array<int64_t> value_, gradient_, mask_;  // gradients in the order of the backward pass
  int64_t floats_ = 0;
};

}  // namespace fastrobust::engine::FR_ISA
