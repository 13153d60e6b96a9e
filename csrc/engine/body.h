// What an instruction set provides: the engine on plain memory. The tape outlives it.
#pragma once
#include "fastrobust/engine.h"

namespace fastrobust::engine {

struct Plan {  // a tape as plain arrays
  const Shape* values;
  const Op* ops;
  int64_t count;  // of ops; values are one more
};

class Body {
 public:
  virtual ~Body();
  virtual void load(const float* const* tensors) = 0;
  virtual int64_t floats() const = 0;  // that a thread needs, zeroed once, aligned to 64 bytes
  virtual int lanes() const = 0;
  virtual void run(const Pass& pass, int threads, float* const* memory) const = 0;
  virtual void attack(const Attack& attack, int threads, float* const* memory) const = 0;
};

}  // namespace fastrobust::engine
