// Random numbers for one instruction set. They stand in a file of their own because -frounding-math, which the other
// bodies need, keeps square roots out of vector code.
#pragma once
#include "../common/draws.h"

namespace fastrobust::cpu::FR_ISA {

// The n elements of a direction, and up to three more: `to` has room for a multiple of four.
void direction(Norm norm, const Draw& key, int64_t n, double* to);

}  // namespace fastrobust::cpu::FR_ISA
