"""Plants faults in the CUDA kernels, one at a time, and demands that a check of the emulated kernels fails for each.

Every fault is written into a copy of the sources beside the original, behind a switch that is read when the test
program
starts: one compilation serves all of them.

    python mutants.py write COPY         copy csrc/ to COPY with the faults in it
    python mutants.py run PROGRAM        run the checks once for each fault, print the table
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SECONDS = 300  # a check that takes longer than this hangs, which is a failure too

SWITCH = """
#include <cstdlib>
inline int planted() {
  static const int chosen = std::getenv("MUTANT") ? std::atoi(std::getenv("MUTANT")) : -1;
  return chosen;
}
"""


@dataclass(frozen=True)
class Mutant:
    """In the one line of csrc/cuda/`file` that contains `line`, `old` is replaced by `new` when the mutant is chosen.

    Attributes:
        what: the fault in words.
        checks: the checks that look at this kernel.
        old: an expression, or a statement if it ends with a semicolon.
    """

    what: str
    checks: str
    file: str
    line: str
    old: str
    new: str

    def apply(self, number: int, original: list[str], lines: list[str]) -> None:
        """Puts the switch into `lines`; the line is looked up in the original."""
        places = [i for i, line in enumerate(original) if self.line in line and self.old in line]
        if len(places) != 1 or self.old not in lines[places[0]]:
            raise SystemExit(f"mutants: {self.file} has {len(places)} lines with {self.line!r}; update mutants.py")
        if self.old.endswith(";"):
            switched = f"{{ if (planted() == {number}) {{ {self.new} }} else {{ {self.old} }} }}"
        else:
            switched = f"(planted() == {number} ? ({self.new}) : ({self.old}))"
        lines[places[0]] = lines[places[0]].replace(self.old, switched, 1)


def mutant(what: str, checks: str, file: str, old: str, new: str, line: str = "") -> Mutant:
    return Mutant(what, checks, file, line or old, old, new)


TEAM, LINF, ROWS, STEP, START, LOGIT, LAUNCH, MLP, NET, TAPE, INTERVAL, MARGINS, CROWN, NOISE, VOTES = (
    "team.cuh", "linf.cuh", "rows.cuh", "step_rows.cu", "start_rows.cu", "logit_loss.cu", "launch.cuh", "mlp.cu",
    "mlp.cuh", "mlp_engine.cu", "interval.cu", "interval_margins.cu",
    "crown.cu", "noise.cu", "votes.cu",
)  # fmt: skip
BLOCK_LOOP = "for (int64_t i = threadIdx.x;"
WARP_LOOP = "for (int64_t i = lane_;"
MUTANTS = [
    # Interval propagation.
    mutant("parts overlap", "interval", INTERVAL, "count * part / parts", "count * (part > 0 ? part - 1 : 0) / parts",
           "first = count"),
    mutant("a channel's rows are taken for its neighbour's", "interval", INTERVAL, "row * a.channels + channel",
           "row * a.channels + (channel ^ 1) % a.channels"),
    mutant("the last part's sums are left out", "interval", INTERVAL, "part < parts",
           "part < (parts > 1 ? parts - 1 : 1)", "for (int part = 0;"),
    mutant("statistics are of all rows", "interval", INTERVAL, "a.stat_rows", "a.rows", "apart = total("),
    mutant("a negative scale turns boxes over", "interval", INTERVAL, "s < 0 ? -s : s", "s", "static_cast<Z>(rest)"),
    mutant("eps is left out", "interval", INTERVAL, "var + a.eps", "var", "of_x = w / sqrt"),
    mutant("the radius' gradient does not reach the scale", "interval", INTERVAL,
           "sums[2] += static_cast<double>(by.radius) * radius;", ";"),
    mutant("the sign of the scale is lost backwards", "interval", INTERVAL, "scale.s < 0 ? -qr : 0", "qr"),
    mutant("the mean is detached", "interval", INTERVAL, "found.mean_part", "Z(0)"),
    mutant("the variance is detached", "interval", INTERVAL, "found.var_part", "Z(0)"),
    mutant("a margin's radius is added", "interval", MARGINS, "(apart < 0 ? -apart : apart)",
           "(apart < 0 ? apart : -apart)", "return apart * load"),
    mutant("the label's own row gets no gradient", "interval", MARGINS, "y == j", "false", "for (int64_t o = 0;"),
    mutant("labels out of range reach the weights", "interval", MARGINS, "continue;", ";",
           "y >= a.classes) continue;"),
    mutant("positive weights take the upper line", "interval", CROWN,
           "above ? low_slope[line + i] : high_slope[line + i]", "above ? high_slope[line + i] : low_slope[line + i]"),
    mutant("intercepts are left out", "interval", CROWN, "(above ? low[line + i] : high[line + i])", "0 * v",
           "return static_cast<double>(v)"),
    mutant("intercepts get no gradient through the weights", "interval", CROWN, "c * (above ? low[k] : high[k])",
           "0 * c"),
    mutant("a row's block does not come back", "interval", CROWN, "row += gridDim.x", "row += a.batch * a.rows"),
    # Noisy copies and votes.
    mutant("copies of one image share their noise", "noise", NOISE, "static_cast<uint32_t>(a.copy[slot])", "0u"),
    mutant("images share their noise", "noise", NOISE, "static_cast<uint32_t>(a.index[image])", "0u"),
    mutant("a slot's own scale is not read", "noise", NOISE, "a.scale_each ? a.scale_each[slot] : a.scale", "a.scale"),
    mutant("an image out of range is read as the first", "noise", NOISE, "slot.image < 0", "false", "if (slot.image"),
    mutant("channels are taken for rows", "noise", NOISE, "channels > 1", "false", "at = channels"),
    mutant("a copy's last elements go to the next", "noise", NOISE, "i < dim", "true", "if (i < dim)"),
    mutant("a norm goes past the copy's end", "noise", NOISE, "4 * block + k < a.dim", "true", "v = 4 * block"),
    mutant("an odd copy is written in packs", "noise", NOISE, "a.dim % 4 == 0", "true"),
    mutant("packs of an unaligned input", "noise", NOISE, "aligned(a.x, alignof(Pack<In>))", "true"),
    mutant("packs of an unaligned output", "noise", NOISE, "aligned(a.out, alignof(Pack<Out>))", "true"),
    mutant("threads do not come back for more", "noise", NOISE, "i += step", "i += total", "i < total"),
    mutant("slots beyond the grid have no norm", "noise", NOISE, "at += gridDim.x", "at += a.slots"),
    mutant("a squared norm", "noise", NOISE, "v + z * z", "v + fabs(z)"),
    mutant("a NaN votes", "noise", VOTES, "odd", "false", "warp.leads()"),
    mutant("every lane votes", "noise", VOTES, "!warp.leads()", "false"),
    mutant("votes for images that are not there", "noise", VOTES, "image >= a.images", "false"),
    mutant("rows beyond the grid do not vote", "noise", VOTES, "row += step", "row += a.slots"),
    # A block's reduction.
    mutant("no __syncthreads in a block's reduction", "rows", TEAM, "__syncthreads();", ";"),
    mutant("the two halves of the scratch do not take turns", "rows", TEAM, "turn_ = 1 - turn_;", ";"),
    mutant("a warp's results go to its neighbour's slot", "rows", TEAM, "k * warps + warp", "k * warps + (warp ^ 1)",
           "if (lane == 0)"),
    mutant("the last warp is left out", "rows", TEAM, "lane % warps", "lane % warps % (warps > 1 ? warps - 1 : 1)",
           "= butterfly(slots"),
    mutant("a pair's second half is read as the first", "rows", TEAM, "k * warps", "0", "= butterfly(slots"),
    mutant("the scratch is half as large as it must be", "rows", TEAM, "2 * kSlots * (threads / kWarp)",
           "kSlots * (threads / kWarp)"),
    mutant("a block skips its first element", "rows", TEAM, "threadIdx.x", "threadIdx.x + 1", BLOCK_LOOP),
    mutant("a block goes one element too far", "rows", TEAM, "i < n", "i <= n", BLOCK_LOOP),
    mutant("a block stops one element early", "rows", TEAM, "i < n", "i < n - 1", BLOCK_LOOP),
    mutant("a block's stride is one short", "rows", TEAM, "blockDim.x", "blockDim.x - 1", BLOCK_LOOP),
    # Draws, four at a time.
    mutant("a direction's sum goes past the sample's end", "rows", TEAM, "4 * block + k < n", "true", "s +="),
    mutant("a direction goes past the sample's end", "rows", TEAM, "4 * block + k < n", "true", "if (4 * block"),
    mutant("a direction's last elements are not drawn", "rows", TEAM, "(n + 3) / 4", "n / 4", "each((n + 3)"),
    # A butterfly.
    mutant("a butterfly without its widest step", "rows", TEAM, "width / 2", "width / 4"),
    mutant("a butterfly without its last step", "logit", TEAM, "distance > 0", "distance > 1", "v = op(v,"),
    mutant("a shuffle over the wrong distance", "logit", TEAM, "__shfl_xor_sync(kAllLanes, v, distance)",
           "__shfl_xor_sync(kAllLanes, v, distance & 15)"),
    # A warp's row.
    mutant("a warp skips its first element", "logit", TEAM, "lane_", "lane_ + 1", WARP_LOOP),
    mutant("a warp goes one element too far", "logit", TEAM, "i < n", "i <= n", WARP_LOOP),
    mutant("a warp's stride is two warps", "logit", TEAM, "kWarp", "2 * kWarp", WARP_LOOP),
    mutant("the first of equals loses", "logit", TEAM, "other < best", "other > best"),
    mutant("the largest is found in half a warp", "logit", TEAM, "kWarp / 2", "kWarp / 4"),
    mutant("an index is shuffled without its value", "logit", TEAM,
           "__shfl_xor_sync(kAllLanes, value, distance)", "value"),
    mutant("a warp does not share what a lane found", "logit", TEAM, "__any_sync(kAllLanes, found)", "found"),
    mutant("every lane leads", "logit", TEAM, "lane_ == 0", "true"),
    mutant("invalid rows are not counted atomically", "logit", TEAM, "atomicAdd(counter, 1)", "*counter = 1"),
    # The elementwise kernels.
    mutant("a load past the end", "linf", LINF, "at + k < total", "at + k <= total", "to.v[k] ="),
    mutant("a store past the end", "linf", LINF, "at + k < total", "at + k <= total", "if (at + k < total) p[k]"),
    mutant("a store that ends early", "linf", LINF, "at + k < total", "at + k < total - 1", "if (at + k < total) p[k]"),
    mutant("a sample past the last one", "linf", LINF, "at + k < total", "at + k <= total", "kWhole ||"),
    mutant("the last warp takes the way of whole ones", "linf", LINF, "first + kWarpSpan <= total",
           "first + kWarpSpan <= total + 1"),
    mutant("the last block is not launched", "linf", LINF, "total + Kernel::kBlockSpan - 1", "total"),
    mutant("every warp takes the block's first elements", "linf", LINF, "threadIdx.x / kWarp * kWarpSpan", "0"),
    mutant("block numbers in 32 bits", "linf", LINF, "static_cast<int64_t>(blockIdx.x) * kBlockSpan",
           "static_cast<int32_t>(blockIdx.x * kBlockSpan)"),
    mutant("places in 32 bits", "linf", LINF, "((at | a.dim) >> 32) == 0", "true"),
    mutant("samples meet one element late", "linf", LINF, "here.column == a.dim", "here.column > a.dim"),
    mutant("the next sample is still this one", "linf", LINF, "here = {here.row + 1, 0};", "here = {here.row, 0};"),
    mutant("the block's place taken for each warp's", "linf", LINF, "first - block", "0", "start = block_inside"),
    mutant("a warp across two samples taken for one", "linf", LINF, "start.column + kWarpSpan <= a.dim",
           "start.column + kWarpSpan <= a.dim + 1"),
    mutant("a warp past the last sample takes part", "linf", LINF, "start.row < a.batch", "true"),
    mutant("flags are not set", "linf", LINF, "atomicOr(a.flags + row, found)", "0"),
    mutant("flags are overwritten", "linf", LINF, "atomicOr(a.flags + row, found)", "a.flags[row] = found"),
    mutant("flags of a pack's first sample get lost", "linf", LINF, "flag(here.row, found);", ";",
           "          flag(here.row, found);"),
    mutant("flags pass to the next sample", "linf", LINF, "found = 0;", ";", "          found = 0;"),
    mutant("useful gradients not shared in a block", "linf", LINF, "__syncthreads_or(found & kUseful)",
           "found & kUseful"),
    mutant("odd gradients not shared in a block", "linf", LINF, "__syncthreads_or(found & kNonFinite)",
           "found & kNonFinite"),
    mutant("useful gradients not shared in a warp", "linf", LINF, "__any_sync(kAllLanes, found & kUseful)",
           "found & kUseful"),
    mutant("odd gradients not shared in a warp", "linf", LINF, "__any_sync(kAllLanes, found & kNonFinite)",
           "found & kNonFinite"),
    mutant("x taken for aligned", "linf", LINF, "aligned(a.x, sizeof(Pack<T, kPack>))", "true"),
    mutant("the gradient taken for aligned", "linf", LINF, "aligned(a.grad, alignof(Pack<G, kPack>))", "true"),
    # Launchers and grids.
    mutant("a step's block does not come back", "rows", STEP, "gridDim.x", "a.batch"),
    mutant("a start's block does not come back", "rows", START, "gridDim.x", "a.batch"),
    mutant("a row's warp does not come back", "logit", LOGIT, "row += step", "row += a.batch"),
    mutant("every warp of a block takes one row", "logit", LOGIT, "threadIdx.x / kWarp", "0"),
    mutant("the last rows are not launched", "logit", LOGIT, "a.batch + kRows - 1", "a.batch"),
    mutant("a step's flags are overwritten", "rows", STEP, "a.flags[b] |= found;", "a.flags[b] = found;"),
    mutant("the first sample's radius for all", "rows", ROWS,
           "static_cast<const T*>(ball.eps_each)[b]", "static_cast<const T*>(ball.eps_each)[0]"),
    # Fully connected networks: a block's memory and layers.
    mutant("a block's memory is not cleared", "mlp", NET, "p < reinterpret_cast<float*>(seats_)", "false"),
    mutant("samples sit down before all is cleared", "mlp", NET, "__syncthreads();", ";", "before all is cleared"),
    mutant("a layer does not wait for the one before", "mlp", NET, "__syncthreads();", ";", "what others wrote"),
    mutant("a layer does not wait for its gradient", "mlp", NET, "__syncthreads();", ";", "so does the layer before"),
    mutant("the last seat is left out", "mlp", NET, "s < kCount", "s < kCount - 1"),
    mutant("two warps serve each seat", "mlp", NET, "threadIdx.x / kWarp", "threadIdx.x / kWarp / 2", "for (int s ="),
    mutant("hidden gradients are not masked", "mlp", NET, "net_.layers[l - 1].relu", "false"),
    mutant("a ReLU of the logits does not mask", "mlp", NET, "net_.layers[net_.count - 1].relu", "false"),
    mutant("a ReLU hides NaN", "mlp", NET, "v < 0.0f ? 0.0f : v", "v > 0.0f ? v : 0.0f"),
    mutant("a ReLU passes gradients at zero", "mlp", NET, "value > 0.0f", "value >= 0.0f"),
    mutant("a quarter's last output is left out", "mlp", NET, "q < rows", "q < rows - 1"),
    mutant("a thread's next rows are a group too far", "mlp", NET, "blockDim.x / kGroups", "blockDim.x / kGroups + 1",
           "q < rows"),
    mutant("a sum leaves out its last inputs", "mlp", NET, "c < layer.inputs", "c + 3 < layer.inputs",
           "for (int c = 0;"),
    mutant("a sum goes four inputs too far", "mlp", NET, "c < layer.inputs", "c < layer.inputs + 4", "for (int c = 0;"),
    mutant("outputs past the last are stored", "mlp", NET, "o >= layer.outputs", "false"),
    mutant("a gradient leaves out its last outputs", "mlp", NET, "o < layer.outputs", "o + 3 < layer.outputs",
           "for (int o = 0;"),
    mutant("the last inputs get no gradient", "mlp", NET, "c < layer.inputs", "c + 3 < layer.inputs", "kGroups * 4; c"),
    mutant("gradients past the last input are stored", "mlp", NET, "c + k >= layer.inputs", "false"),
    mutant("each element has its own scale", "mlp", NET, "i / layer.pixels", "i", "weights_ + i / layer.pixels, v"),
    mutant("gradients take the first scale", "mlp", NET, "i / layer.pixels", "0", "weights_[layer.weight + i"),
    mutant("a scale leaves out its ReLU", "mlp", NET, "layer.relu", "false", "relu(result)"),
    mutant("the last element is not scaled", "mlp", NET, "n < layer.inputs * kCount", "n < layer.inputs * kCount - 1"),
    # Passes.
    mutant("a layer starts before the points are there", "mlp", MLP, "__syncthreads();", ";", "the points are here"),
    mutant("a gradient starts before its slopes", "mlp", MLP, "__syncthreads();", ";", "the slopes are known"),
    mutant("a pass's block does not come back", "mlp", MLP, "gridDim.x", "pass.batch", "first < pass.batch; first"),
    mutant("a pass reads past the batch", "mlp", MLP, "first + s < pass.batch", "true", "samples.input(s), pass.x"),
    mutant("a pass writes past the batch", "mlp", MLP, "b >= pass.batch", "false"),
    mutant("a gradient is written past the batch", "mlp", MLP, "first + s < pass.batch", "true", "copy_row(pass.grad"),
    mutant("a row's last element is not copied", "mlp", MLP, "i < n", "i < n - 1"),
    mutant("a target counts for the first sample only", "mlp", MLP, "a.target += b;", ";"),
    mutant("a reference is the first sample's", "mlp", MLP, "b * classes", "0", "a.reference = "),
    # Attacks.
    mutant("weights are not whole in shared memory", "mlp", MLP, "i < quads", "i < quads - 1"),
    mutant("activations lie on the weights", "mlp", MLP, "memory += quads;", ";"),
    mutant("no room for the weights", "mlp", MLP, "net.weights * sizeof(float)", "0"),
    mutant("more shared memory than there is", "mlp", MLP, "bytes <= static_cast<size_t>(device.shared)", "true"),
    mutant("an attack's block does not come back", "mlp", MLP, "gridDim.x", "batch", "first < batch; first"),
    mutant("a seat is taken past the batch", "mlp", MLP, "first + s < batch", "true"),
    mutant("a layer starts before all are seated", "mlp", MLP, "__syncthreads();", ";", "all are seated"),
    mutant("a layer starts before the points have moved", "mlp", MLP, "__syncthreads();", ";", "the points have moved"),
    mutant("a warp leaves alone", "mlp", MLP, "__syncthreads_or(judge(samples, a, first, k, judged))",
           "judge(samples, a, first, k, judged)"),
    mutant("the last iterate is not judged", "mlp", MLP, "k < a.steps || asked", "k < a.steps"),
    mutant("a step goes past the sample", "mlp", MLP, "i >= dim", "i > dim"),
    mutant("a step leaves out the last span", "mlp", MLP, "(dim + kSpan - 1) / kSpan", "dim / kSpan"),
    mutant("empty seats are moved", "mlp", MLP, "!samples.seat(s).taken", "false", "continue;"),
    mutant("useful gradients stay in their lane", "mlp", MLP, "__any_sync(kAllLanes, found & kUseful)",
           "found & kUseful"),
    mutant("odd gradients stay in their lane", "mlp", MLP, "__any_sync(kAllLanes, found & kNonFinite)",
           "found & kNonFinite"),
    mutant("a span's flags replace the others'", "mlp", MLP,
           "atomicOr(&samples.seat(s).flags, (useful ? kUseful : 0) | (odd ? kNonFinite : 0));",
           "samples.seat(s).flags = (useful ? kUseful : 0) | (odd ? kNonFinite : 0);"),
    mutant("a row's flags get lost", "mlp", MLP, "samples.seat(s).flags = found;", ";"),
    mutant("flags stay from step to step", "mlp", MLP, "seat.flags = 0;", ";"),
    mutant("odd gradients count as useful", "mlp", MLP, "seat.flags != kUseful", "!(seat.flags & kUseful)"),
    mutant("patience does not end", "mlp", MLP, "seat.patience -= fooled && seat.patience > 0;", ";"),
    mutant("nobody is patient", "mlp", MLP, "seat.patience == 0", "true"),
    mutant("a target is taken for a label", "mlp", MLP, "p == a.loss.target[b]", "p != a.loss.label[b]"),
    mutant("a warp does not hear the verdict", "mlp", MLP, "__shfl_sync(kAllLanes, verdict, 0)", "verdict"),
    mutant("who has left comes back", "mlp", MLP, "seat.taken = false;", ";"),
    mutant("steps are counted from one", "mlp", MLP, "a.taken[b] = k", "a.taken[b] = k + 1"),
    mutant("the last rows are not packed", "mlp", MLP, "o < padded(outputs)", "o < outputs", "for (int o ="),
    mutant("packing reads past the weights", "mlp", MLP, "o < outputs && c < columns", "true"),
    mutant("packing reads past the biases", "mlp", MLP, "o < outputs", "true", "a.packed[layer.bias"),
    mutant("packing leaves out the last column", "mlp", MLP, "c < row", "c < columns"),
    # Which networks are taken.
    mutant("a branch is taken for a chain", "mlp", TAPE, "op.in != number", "false"),
    mutant("groups are taken for one", "mlp", TAPE, "op.groups == 1", "true"),
    mutant("a border is taken for none", "mlp", TAPE, "op.pad_h == 0", "true"),
    mutant("a layer more than there is room for", "mlp", TAPE, "net.count == kMostLayers", "net.count > kMostLayers"),
    mutant("the cache is large enough for all", "mlp", TAPE, "bytes > static_cast<size_t>(device.cache)", "false"),
    mutant("a ReLU after a flatten gets lost", "mlp", TAPE, "!op.relu", "true", "flat(op) &&"),
    mutant("turned elements pass for a flatten", "mlp", TAPE, "return false;", "return true;", "op.source[i] !="),
    mutant("a failed launch passes", "launchers", LAUNCH, "cudaGetLastError() == cudaSuccess", "true"),
]  # fmt: skip


def write(copy: Path) -> None:
    """csrc with every mutant behind its switch; files that stay the same keep their time."""
    for source in CSRC.rglob("*.*"):
        text = source.read_text()
        if source.parent.name == "cuda":
            original = text.split("\n")
            lines = list(original)
            for number, m in enumerate(MUTANTS):
                if m.file == source.name:
                    m.apply(number, original, lines)
            text = "\n".join(lines)
            if source.name == LAUNCH:
                text = text.replace("#pragma once", "#pragma once" + SWITCH, 1)
        target = copy / source.relative_to(CSRC)
        if not target.exists() or target.read_text() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)


def killed(program: Path, number: int) -> str:
    """How the checks failed with this mutant; empty if they did not."""
    environment = {**os.environ, "MUTANT": str(number)}
    try:
        run = subprocess.run(
            [program, MUTANTS[number].checks], env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"hangs for {SECONDS} s"
    if run.returncode == 0:
        return ""
    for line in run.stderr.splitlines():
        if any(sign in line for sign in ("ERROR: AddressSanitizer", "runtime error", "emulation:", ".cpp:")):
            return line.split("ERROR: ")[-1].split("/")[-1][:110]
    return f"exit code {run.returncode}"


def run(program: Path) -> int:
    healthy = subprocess.run([program], env={**os.environ, "MUTANT": "-1"}, capture_output=True, text=True)
    if healthy.returncode:
        print(f"mutants: the checks fail without any fault:\n{healthy.stderr[-2000:]}")
        return 1
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ends = list(pool.map(lambda number: killed(program, number), range(len(MUTANTS))))
    for m, end in zip(MUTANTS, ends, strict=True):
        print(f"{'killed  ' if end else 'SURVIVED'}  {m.file:14} {m.what:52} {end}")
    survivors = ends.count("")
    print(f"{len(ends) - survivors} of {len(ends)} mutants killed")
    return 1 if survivors else 0


def main() -> int:
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "run"):
        print(__doc__, file=sys.stderr)
        return 2
    if sys.argv[1] == "run":
        return run(Path(sys.argv[2]))
    write(Path(sys.argv[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
