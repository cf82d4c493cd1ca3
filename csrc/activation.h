// Activations with their first and second derivatives: one table for host vectors and device scalars.
#pragma once

#ifdef __CUDACC__
#define JKOFLOW_INLINE __host__ __device__ __forceinline__
#else
#define JKOFLOW_INLINE inline __attribute__((always_inline))
#endif

namespace jkoflow {

enum class ActivationKind : int { kTanh, kSoftplus, kSilu };

template <class V>
struct Jet {
  V value;      // sigma(z)
  V slope;      // sigma'(z)
  V curvature;  // sigma''(z)
};

// Math supplies tanh, sigmoid and softplus (beta = 1) for V; Real is the type of a lane.
template <ActivationKind Kind, class Math, class V, class Real>
JKOFLOW_INLINE Jet<V> activate(V z, Real beta) {
  const Real one = 1, two = 2;
  if constexpr (Kind == ActivationKind::kTanh) {
    const V h = Math::tanh(z);
    const V slope = one - h * h;
    return {h, slope, -two * h * slope};
  } else if constexpr (Kind == ActivationKind::kSoftplus) {
    const V scaled = beta * z;
    const V slope = Math::sigmoid(scaled);
    return {Math::softplus(scaled) * (one / beta), slope, beta * slope * (one - slope)};
  } else {
    const V gate = Math::sigmoid(z);
    const V h = z * gate;
    return {h, gate + h * (one - gate), gate * (one - gate) * (two + z * (one - two * gate))};
  }
}

}  // namespace jkoflow
