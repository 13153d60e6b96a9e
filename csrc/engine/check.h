#pragma once
#include "fastrobust/engine.h"

namespace fastrobust::engine {

void check(const Tape& tape);  // throws std::invalid_argument

}  // namespace fastrobust::engine
