// The CPU bodies compiled into this library, and which of them runs.
#pragma once
#include <cstdint>

#include "fastrobust/types.h"

namespace fastrobust::engine {
class Body;
struct Plan;
struct Transpose;
}  // namespace fastrobust::engine

namespace fastrobust::cpu {

engine::Body* make_engine(const engine::Plan& plan);  // by the instruction set in use
Status transpose(const engine::Transpose& args, int threads);

// Does nothing but multiply and add, as fast as this processor can: `rounds` times on each thread. The number of
// floating- point operations done.
double multiply_adds(int threads, int64_t rounds);

// The i-th body's name, best first; "" where this processor cannot run it; null past the end.
const char* isa_name(int i);
// Select by name ("avx512", "avx2", "baseline", "auto" or null); false if it is not built or not supported here.
bool select_isa(const char* name);
const char* current_isa();

}  // namespace fastrobust::cpu
