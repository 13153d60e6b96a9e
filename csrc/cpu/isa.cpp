// Every CPU body, compiled once per instruction set into the namespace that FR_ISA names.
#include <cstdlib>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif
#include <type_traits>

#include "logit_loss-inl.h"
#include "perturb-inl.h"
