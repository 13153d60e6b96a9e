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

class Owner : public Engine {
 public:
  explicit Owner(const Tape& tape)
      : tape_(tape),
        body_(cpu::make_engine(Plan{tape_.values.data(), tape_.ops.data(), static_cast<int64_t>(tape_.ops.size())})) {}

  void load(const std::vector<const float*>& tensors) override {
    if (tensors.size() != tape_.tensors.size()) throw std::invalid_argument("engine: another number of tensors");
    // Packing costs more than looking whether anything changed. Other threads may be running the old weights.
    const std::unique_lock<std::shared_mutex> alone(loading_);
    bool same = loaded_;
    seen_.resize(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) {
      const auto count = static_cast<size_t>(tape_.tensors[i]);
      seen_[i].resize(count);
      if (same && std::memcmp(seen_[i].data(), tensors[i], count * sizeof(float)) == 0) continue;
      same = false;
      std::memcpy(seen_[i].data(), tensors[i], count * sizeof(float));
    }
    if (!same) body_->load(tensors.data());
    loaded_ = true;
  }

  Status run(const Pass& pass, int threads) const override {
    return with_memory(pass.batch, threads, [&](int team, float* const* memory) { body_->run(pass, team, memory); });
  }

  Status attack(const Attack& attack, int threads) const override {
    return with_memory(attack.step.batch, threads,
                       [&](int team, float* const* memory) { body_->attack(attack, team, memory); });
  }

  int64_t workspace() const override { return body_->floats() * static_cast<int64_t>(sizeof(float)); }

 private:
  template <class Work>
  Status with_memory(int64_t batch, int threads, const Work& work) const {
    const std::shared_lock<std::shared_mutex> together(loading_);
    if (!loaded_) throw std::logic_error("engine: load() comes first");
    const int64_t blocks = (batch + body_->lanes() - 1) / body_->lanes();
    const int team = static_cast<int>(std::min<int64_t>(threads, blocks));
    std::vector<Memory> own;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (; !idle_.empty() && static_cast<int>(own.size()) < team; idle_.pop_back())
        own.push_back(std::move(idle_.back()));
    }
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
    if (team > 0) work(team, list.data());
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Memory& m : own) idle_.push_back(std::move(m));
    return Status::ok;
  }

  const Tape tape_;
  const std::unique_ptr<Body> body_;
  std::vector<std::vector<float>> seen_;
  bool loaded_ = false;
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
