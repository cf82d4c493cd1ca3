// Sums whose error does not grow with the number of terms.
#pragma once

#include "activation.h"

#ifdef __FAST_MATH__
#error "with -ffast-math a compiler takes (next - sum) for the increment, and nothing is compensated"
#endif

namespace jkoflow {

// Adds to a sum whose rounding, `rest`, is carried beside it: sum + rest is what was added so far (Kahan, "Further
// remarks on reducing truncation errors", 1965). Contraction to fused multiply-adds only takes a rounding out of the
// increment: no product stands in what is compared here.
template <class V>
JKOFLOW_INLINE void add_compensated(V& sum, V& rest, const V& increment) {
  const V term = increment + rest;
  const V next = sum + term;
  rest = term - (next - sum);
  sum = next;
}

}  // namespace jkoflow
