// What the instruction sets share: the tape, its check, and the threads' memory, kept between calls.
#include "fastrobust/engine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "body.h"
#include "check.h"
#include "fastrobust/dispatch.h"

namespace fastrobust::engine {

Body::~Body() = default;
Engine::~Engine() = default;

namespace {

// Activations are walked in strides: small pages would miss the translation buffers.
constexpr size_t kPage = 2 << 20;

using Memory = std::unique_ptr<float, void (*)(void*)>;

// Whether samples may lie side by side in place of columns: every layer works on features one by one, or mixes them.
bool features_only(const Tape& tape) {
  for (const Shape& v : tape.values) {
    if (v.h != 1 || v.w != 1) return false;
  }
  for (const Op& op : tape.ops) {
    if (op.kind == Kind::max_pool || op.kind == Kind::avg_pool || op.kind == Kind::resample) return false;
    if (op.kind == Kind::contract && (op.kh != 1 || op.kw != 1 || op.pad_h != 0 || op.pad_w != 0)) return false;
  }
  return true;
}

class Owner : public Engine {
 public:
  explicit Owner(const Tape& tape) : tape_(tape) {
    const auto count = static_cast<int64_t>(tape_.ops.size());
    for (int64_t together = features_only(tape_) ? kMostTogether : 1; together > 0; together /= 2)
      bodies_.emplace_back(cpu::make_engine(Plan{tape_.values.data(), tape_.ops.data(), count, together}));
    packed_.resize(bodies_.size());
  }

  void load(const std::vector<const float*>& tensors) override {
    if (tensors.size() != tape_.tensors.size()) throw std::invalid_argument("engine: another number of tensors");
    // Packing costs more than looking whether anything changed. Other threads may be running the old weights.
    const std::unique_lock<std::shared_mutex> alone(loading_);
    bool same = loaded_;
    kept_.resize(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) {
      const auto count = static_cast<size_t>(tape_.tensors[i]);
      kept_[i].resize(count);
      if (same && std::memcmp(kept_[i].data(), tensors[i], count * sizeof(float)) == 0) continue;
      same = false;
      std::memcpy(kept_[i].data(), tensors[i], count * sizeof(float));
    }
    if (!same) std::fill(packed_.begin(), packed_.end(), false);
    loaded_ = true;
  }

  Status run(const Pass& pass, int threads) const override {
    return with_memory(pass.batch, threads,
                       [&](const Body& body, int team, float* const* memory) { body.run(pass, team, memory); });
  }

  Status attack(const Attack& attack, int threads) const override {
    return with_memory(attack.step.batch, threads,
                       [&](const Body& body, int team, float* const* memory) { body.attack(attack, team, memory); });
  }

  int64_t workspace() const override { return bodies_.front()->floats() * static_cast<int64_t>(sizeof(float)); }

 private:
  // Wide blocks read the weights less often, as long as there is one for every thread.
  size_t body_for(int64_t batch, int threads) const {
    for (size_t i = 0; i + 1 < bodies_.size(); ++i) {
      if (batch > (threads - 1) * bodies_[i]->lanes()) return i;
    }
    return bodies_.size() - 1;
  }

  // The body's weights are packed when it is first used with them.
  std::shared_lock<std::shared_mutex> ready(size_t body) const {
    for (;;) {
      std::shared_lock<std::shared_mutex> together(loading_);
      if (!loaded_) throw std::logic_error("engine: load() comes first");
      if (packed_[body]) return together;
      together.unlock();
      const std::unique_lock<std::shared_mutex> alone(loading_);
      if (packed_[body]) continue;
      std::vector<const float*> tensors;
      for (const std::vector<float>& tensor : kept_) tensors.push_back(tensor.data());
      bodies_[body]->load(tensors.data());
      packed_[body] = true;
    }
  }

  template <class Work>
  Status with_memory(int64_t batch, int threads, const Work& work) const {
    const size_t which = body_for(batch, threads);
    const std::shared_lock<std::shared_mutex> together = ready(which);
    const Body& body = *bodies_[which];
    const int64_t blocks = (batch + body.lanes() - 1) / body.lanes();
    const int team = static_cast<int>(std::min<int64_t>(threads, blocks));
    std::vector<Memory> own;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (; !idle_.empty() && static_cast<int>(own.size()) < team; idle_.pop_back())
        own.push_back(std::move(idle_.back()));
    }
    // The widest block's memory serves all: where there are several there are no borders to keep zero.
    const size_t bytes = (static_cast<size_t>(workspace()) + kPage - 1) / kPage * kPage;
    while (static_cast<int>(own.size()) < team) {
      Memory memory(static_cast<float*>(std::aligned_alloc(kPage, bytes)), std::free);
      if (!memory) return Status::no_memory;
#if defined(__linux__)
      madvise(memory.get(), bytes, MADV_HUGEPAGE);
#endif
      std::memset(memory.get(), 0, bytes);  // borders stay zero
      own.push_back(std::move(memory));
    }
    std::vector<float*> list;
    for (const Memory& m : own) list.push_back(m.get());
    if (team > 0) work(body, team, list.data());
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Memory& m : own) idle_.push_back(std::move(m));
    return Status::ok;
  }

  const Tape tape_;
  std::vector<std::unique_ptr<Body>> bodies_;  // widest first
  std::vector<std::vector<float>> kept_;       // the tensors
  bool loaded_ = false;
  mutable std::vector<bool> packed_;  // by body: whether it has them
  mutable std::shared_mutex loading_;
  mutable std::mutex mutex_;
  mutable std::vector<Memory> idle_;
};

}  // namespace

std::unique_ptr<Engine> make(const Tape& tape) {
  check(tape);
  return std::make_unique<Owner>(tape);
}

}  // namespace fastrobust::engine
