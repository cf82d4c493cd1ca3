// Polynomials of host vectors and device scalars.
#pragma once

#ifdef __CUDACC__
#define JKOFLOW_INLINE __host__ __device__ __forceinline__
#else
#define JKOFLOW_INLINE inline __attribute__((always_inline))
#endif

namespace jkoflow {

template <class V>
JKOFLOW_INLINE V polynomial(const V&, const V& sum) {
  return sum;
}
// Horner's rule, highest power first.
template <class V, class Real, class... Rest>
JKOFLOW_INLINE V polynomial(const V& y, const V& sum, Real next, Rest... rest) {
  return polynomial(y, V(sum * y + next), rest...);
}

}  // namespace jkoflow
