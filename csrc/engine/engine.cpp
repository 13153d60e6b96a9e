// What the instruction sets share: the tape, its check, and the threads' memory, kept between calls.
#include "fastrobust/engine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>

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
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kPage = 64;  // what lies beyond a thread's memory is to be seen
#else
constexpr size_t kPage = 2 << 20;
#endif

using Memory = std::unique_ptr<float, void (*)(void*)>;

// Whether samples may lie side by side in place of columns: every layer works on features one by one, or mixes them.
bool features_only(const Tape& tape) {
  for (const Shape& v : tape.values) {
    if (v.h != 1 || v.w != 1) return false;
  }
  for (const Op& op : tape.ops) {
    if (op.kind == Kind::max_pool || op.kind == Kind::avg_pool || op.kind == Kind::rearrange) return false;
    if (op.kind != Kind::contract) continue;
    if (op.kh != 1 || op.kw != 1 || op.pad_h != 0 || op.pad_w != 0) return false;
    if (op.stride_w != 1) return false;  // it would skip samples
  }
  return true;
}

// Whether a block of one sample can have its channels as lanes.
bool channels_may_be_lanes(const Tape& tape) {
  for (const Op& op : tape.ops) {
    if (op.kind == Kind::contract && op.groups != 1) return false;
    if (op.kind == Kind::concat && tape.values[static_cast<size_t>(op.in)].c % kLanes != 0) return false;
  }
  return true;
}

// What a sample costs by itself, as a multiple of what it costs as one of 16: lanes beyond the last channel work for
// nothing, and a linear layer reads each weight for one sample, large ones from memory. Measured.
double single_cost(const Tape& tape) {
  const auto whole = [](int64_t c) { return (c + kLanes - 1) / kLanes * kLanes; };
  double cost = 0, useful = 0;
  for (size_t i = 0; i < tape.ops.size(); ++i) {
    const Op& op = tape.ops[i];
    if (op.kind != Kind::contract) continue;
    const Shape &in = tape.values[static_cast<size_t>(op.in)], &out = tape.values[i + 1];
    const double pixels = static_cast<double>(out.h * out.w), taps = static_cast<double>(op.kh * op.kw);
    const double each = pixels * taps * (pixels > 1 ? 1.4 : in.c * out.c < (1 << 20) ? 2.8 : 6.0);
    cost += each * static_cast<double>(in.c * whole(out.c) + whole(in.c) * out.c);  // forwards and backwards
    useful += pixels * taps * static_cast<double>(2 * in.c * out.c);
  }
  return useful > 0 ? cost / useful : 1.0;
}

class Owner : public Engine {
 public:
  explicit Owner(const Tape& tape) : tape_(tape) {
    const auto count = static_cast<int64_t>(tape_.ops.size());
    const auto add = [&](int64_t together, bool boxes, bool single) {
      const Plan plan{tape_.values.data(), tape_.ops.data(), count, together, boxes, single};
      bodies_.emplace_back(cpu::make_engine(plan));
    };
    for (int64_t together = features_only(tape_) ? kMostTogether : 1; together > 0; together /= 2)
      add(together, false, false);
    if (singles()) add(1, false, true);
    single_cost_ = single_cost(tape_);
    add(features_only(tape_) ? kBoxesTogether : 1, true, false);
    packed_.resize(bodies_.size());
    idle_.resize(bodies_.size());
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
    return with_memory(body_for(pass.batch, threads), pass.batch, threads,
                       [&](const Body& body, int team, float* const* memory) { body.run(pass, team, memory); });
  }

  Status attack(const Attack& attack, int threads) const override {
    return with_memory(body_for(attack.step.batch, threads), attack.step.batch, threads,
                       [&](const Body& body, int team, float* const* memory) { body.attack(attack, team, memory); });
  }

  Status votes(const Votes& votes, int threads) const override {
    const int64_t total = votes.images * votes.samples;
    return with_memory(body_for(total, threads), total, threads,
                       [&](const Body& body, int team, float* const* memory) { body.votes(votes, team, memory); });
  }

  Status boxes(const Boxes& boxes, int threads) const override {
    const int64_t op = bodies_.back()->without_boxes();
    if (op >= 0) throw std::invalid_argument("boxes: op " + std::to_string(op) + " of the tape has no rule for them");
    return with_memory(bodies_.size() - 1, boxes.batch, threads,
                       [&](const Body& body, int team, float* const* memory) { body.boxes(boxes, team, memory); });
  }

  std::vector<int64_t> roundings() const override {
    std::vector<int64_t> found;
    for (size_t i = 0; i < tape_.ops.size(); ++i) found.push_back(bodies_.back()->roundings(static_cast<int64_t>(i)));
    return found;
  }

  bool singles() const override { return channels_may_be_lanes(tape_); }

  int64_t workspace() const override { return bodies_.front()->floats() * static_cast<int64_t>(sizeof(float)); }

 private:
  // Wide blocks read the weights less often, but leave more lanes idle at the end of a batch.
  size_t body_for(int64_t batch, int threads) const {
    size_t best = 0;
    double least = 0;
    for (size_t i = 0; i + 1 < bodies_.size(); ++i) {
      const int64_t lanes = bodies_[i]->lanes(), blocks = (batch + lanes - 1) / lanes;
      const double cost = static_cast<double>((blocks + threads - 1) / threads * lanes) * per_lane(lanes);
      if (i == 0 || cost < least) {
        best = i;
        least = cost;
      }
    }
    return best;
  }

  // What a lane costs, measured on wide layers.
  double per_lane(int64_t lanes) const {
    static_assert(kMostTogether == 4);
    return lanes == 64 ? 1.0 : lanes == 32 ? 1.05 : 1.15 * (lanes == 16 ? 1.0 : single_cost_);
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
  Status with_memory(size_t which, int64_t batch, int threads, const Work& work) const {
    const std::shared_lock<std::shared_mutex> together = ready(which);
    const Body& body = *bodies_[which];
    const int64_t blocks = (batch + body.lanes() - 1) / body.lanes();
    const int team = static_cast<int>(std::min<int64_t>(threads, blocks));
    std::vector<Memory> own;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      std::vector<Memory>& idle = idle_[which];
      for (; !idle.empty() && static_cast<int>(own.size()) < team; idle.pop_back())
        own.push_back(std::move(idle.back()));
    }
    const size_t needed = static_cast<size_t>(body.floats()) * sizeof(float);
    const size_t page = needed < kPage ? 64 : kPage, bytes = (needed + page - 1) / page * page;
    while (static_cast<int>(own.size()) < team) {
      Memory memory(static_cast<float*>(std::aligned_alloc(page, bytes)), std::free);
      if (!memory) return Status::no_memory;
#if defined(__linux__)
      if (page == kPage) madvise(memory.get(), bytes, MADV_HUGEPAGE);
#endif
      std::memset(memory.get(), 0, bytes);  // borders stay zero
      own.push_back(std::move(memory));
    }
    std::vector<float*> list;
    for (const Memory& m : own) list.push_back(m.get());
    if (team > 0) work(body, team, list.data());
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Memory& m : own) idle_[which].push_back(std::move(m));
    return Status::ok;
  }

  const Tape tape_;
  std::vector<std::unique_ptr<Body>> bodies_;  // widest first; the last is for boxes
  std::vector<std::vector<float>> kept_;       // the tensors
  double single_cost_;
  bool loaded_ = false;
  mutable std::vector<bool> packed_;  // by body: whether it has them
  mutable std::shared_mutex loading_;
  mutable std::mutex mutex_;
  mutable std::vector<std::vector<Memory>> idle_;  // by body: where the borders are zero depends on it
};

}  // namespace

std::unique_ptr<Engine> make(const Tape& tape) {
  check(tape);
  return std::make_unique<Owner>(tape);
}

}  // namespace fastrobust::engine
