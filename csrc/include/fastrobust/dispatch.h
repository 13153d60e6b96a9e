// The CPU bodies compiled into this library, and which of them runs.
#pragma once

namespace fastrobust::engine {
class Body;
struct Plan;
}  // namespace fastrobust::engine

namespace fastrobust::cpu {

engine::Body* make_engine(const engine::Plan& plan);  // by the instruction set in use

// The i-th body's name, best first; "" where this processor cannot run it; null past the end.
const char* isa_name(int i);
// Select by name ("avx512", "avx2", "baseline", "auto" or null); false if it is not built or not supported here.
bool select_isa(const char* name);
const char* current_isa();

}  // namespace fastrobust::cpu
