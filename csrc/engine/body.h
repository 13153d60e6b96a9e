// What an instruction set provides: the engine on plain memory. The tape outlives it.
#pragma once
#include "fastrobust/engine.h"

namespace fastrobust::engine {

constexpr int kLanes = 16;  // samples in a block, or channels of one
constexpr int kMostTogether = 4, kBoxesTogether = 2;

struct Plan {  // a tape as plain arrays
  const Shape* values;
  const Op* ops;
  int64_t count;     // of ops; values are one more
  int64_t together;  // vectors of samples side by side in a block; 1 where values have rows and columns
  bool boxes;        // for boxes: centres and radii, no gradients
  bool single;       // one sample a block: its channels are the lanes
};

class Body {
 public:
  virtual ~Body();
  virtual void load(const float* const* tensors) = 0;
  virtual int64_t floats() const = 0;  // that a thread needs, zeroed once, aligned to 64 bytes
  virtual int lanes() const = 0;       // samples in a block
  virtual void run(const Pass& pass, int threads, float* const* memory) const = 0;
  virtual void attack(const Attack& attack, int threads, float* const* memory) const = 0;
  virtual void votes(const Votes& votes, int threads, float* const* memory) const = 0;
  virtual int64_t without_boxes() const = 0;  // the first op that has no rule for them, or -1
  virtual int64_t roundings(int64_t op) const = 0;
  virtual void boxes(const Boxes& boxes, int threads, float* const* memory) const = 0;
};

}  // namespace fastrobust::engine
