// The whole-network engine: a tape of layers, run on blocks of samples, forwards, backwards to the input, and through
// whole attacks.
//
// Contract. A tape is plain data. Values are numbered from 0, the input; each op reads one or two values and writes the
// next. A value has a shape (channels, rows, columns) per sample; features are channels of 1 x 1. Arrays of samples are
// dense rows in the order channel, row, column, float32. Samples do not influence each other: results do not depend on
// the batch, on its order, or on the number of threads.
#pragma once
#include <memory>
#include <vector>

#include "fastrobust/logit_loss.h"
#include "fastrobust/noise.h"
#include "fastrobust/perturb.h"

namespace fastrobust::engine {

enum class Kind : int32_t {
  contract = 0,
  add = 1,
  affine = 2,
  relu = 3,
  max_pool = 4,
  avg_pool = 5,
  rearrange = 6,
  activation = 7,
  multiply = 8,
  concat = 9
};
using fastrobust::Function;

struct Shape {
  int64_t c, h, w;
  int64_t size() const { return c * h * w; }
};

// Windows of a pool: output row i covers the input rows row_begin[i] .. row_end[i] - 1, and columns likewise. An
// average divides the sum of window (i, j) by divisor[i * columns + j].
struct Windows {
  std::vector<int64_t> row_begin, row_end, column_begin, column_end;
  std::vector<float> divisor;
};

struct Op {
  Kind kind;
  int in, in2;       // values; in2 is -1 but for add
  bool relu;         // max(., 0) of the result
  int weight, bias;  // tensors, or -1. contract: (outputs, channels / groups, kh, kw) and (outputs,); affine: scale and
                     // shift, (channels,) each
  int64_t kh, kw, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;  // contract: a convolution
  float alpha;  // add: in + alpha * in2; activation: its first parameter
  float beta;   // activation: its second
  Function function;
  Windows windows;
  std::vector<int64_t> source;  // rearrange: for each element of the result one of the input, or -1 for a zero
};

struct Tape {
  std::vector<Shape> values;  // values[0] is the input, values[i + 1] the result of ops[i]
  std::vector<Op> ops;
  std::vector<int64_t> tensors;  // their sizes
};

// What a pass over some samples starts from and leaves behind; null where not wanted.
struct Pass {
  const float* x;
  int64_t batch;
  float* logits;
  const LogitLoss* loss;  // its batch is this one; `logits` and `grad` are the engine's business
  float* grad;            // d loss / d x
};

// A whole attack. A sample leaves when it has made its steps, or, with early stop, when it fools the network at an
// iterate and has been let go on `patience` times before; the next one takes its place in the block.
struct Attack {
  PgdStep step;  // x_adv is moved in place; flags count the steps whose gradient was zero or not finite
  LogitLoss loss;
  int64_t steps;
  bool early_stop;
  int64_t patience;
  bool best;    // x_adv becomes the iterate that fools the network with the highest loss, or else has it; not the last
  bool cycles;  // a sample whose iterates repeat may make no more steps than change its result (CUDA makes them all)
  bool* success;   // (batch,) or null: whether that iterate fools the network; null saves a forward pass, unless `best`
  float* value;    // (batch,) or null: its loss
  int64_t* taken;  // (batch,) or null: gradient steps made
};

// By how much a layer widens boxes, so that they hold what rounding may do: gamma of its own sums and of those of the
// evaluations to be enclosed, relative to what is summed, and an absolute slack for each channel of the result.
// docs/bounds/soundness.md, "Boxes by the engine".
struct Widening {
  float own = 0, net = 0;
  const float* slack = nullptr;
};

// Boxes instead of points: what the network makes of lower .. upper, layer by layer, as centres and radii. Each weight
// w is read once; w * centre and |w| * radius are added by multiply-adds in float32, fused where the processor has
// them, in chains of about 256: tap by tap, row by row, and within a tap channel by channel, the first chain from the
// bias on. The chains' sums are added in order. Elementwise steps round outwards; sums do where there are widenings.
struct Boxes {
  const float *lower, *upper;  // (batch, size of a sample)
  int64_t batch;
  float *lower_out, *upper_out;        // (batch, classes)
  const Widening* widening = nullptr;  // of each op, or null
};

// Noisy copies (noise.h) of some images, classified and counted; of any kind that is added.
struct Votes {
  const float* x;        // (images, size of a sample)
  const int64_t* index;  // (images,) 0 .. 2^32 - 1
  int64_t images;
  int64_t first, samples;  // which samples of each: first .. first + samples - 1, below 2^32
  NoiseKind kind;
  double scale;
  uint64_t seed;
  int64_t* counts;  // (images, classes), added to; logits with a NaN have no vote
};

// The transpose of a convolution without its bias, of functions of its result: sums are direct, tap by tap and within a
// tap output by output.
struct Transpose {
  Op op;          // kind contract
  Shape in, out;  // of the convolution
  const float* weight;
  const float* rows;  // (count, size of out)
  int64_t count;
  float* result;  // (count, size of in)
};

class Engine {
 public:
  virtual ~Engine();
  // Takes over the tensors' values (float32, dense); the memory may go afterwards.
  virtual void load(const std::vector<const float*>& tensors) = 0;
  virtual Status run(const Pass& pass, int threads) const = 0;
  virtual Status attack(const Attack& attack, int threads) const = 0;
  virtual Status votes(const Votes& votes, int threads) const = 0;
  // Throws std::invalid_argument, naming the op, where one has no rule for boxes.
  virtual Status boxes(const Boxes& boxes, int threads) const = 0;
  // For each op how many roundings the sums of its boxes pass through, 0 where there are none.
  virtual std::vector<int64_t> roundings() const = 0;
  virtual int64_t workspace() const = 0;  // bytes a thread uses
  // Whether a few samples can be served one by one, channels as lanes, so that no lane waits for a sample.
  virtual bool singles() const = 0;
};

// Throws std::invalid_argument where the tape makes no sense.
std::unique_ptr<Engine> make(const Tape& tape);

}  // namespace fastrobust::engine
