// Activations with their first and second derivatives: one table for host vectors and device scalars.
#pragma once

#include "polynomial.h"

namespace jkoflow {

enum class ActivationKind : int { kTanh, kSoftplus, kSilu, kElu, kSelu, kGelu };

template <class V>
struct Jet {
  V value;      // sigma(z)
  V slope;      // sigma'(z)
  V curvature;  // sigma''(z)
};

// What Math computes of a z. Quantities whose difference from 1 (or 0) counts come in pairs, so that no slope is a
// difference of nearly equal numbers where it is small.
template <class V>
struct Bend {  // of tanh
  V value, slope;
};
template <class V>
struct Gate {
  V open, closed;  // sigmoid(z), sigmoid(-z)
};
template <class V>
struct SoftStep {
  V tail;  // log(1 + e^-|z|)
  Gate<V> gate;
};
template <class V>
struct Decay {
  V power, change;  // e^-|z|, e^-|z| - 1
};
template <class V>
struct Normal {
  V density, below;  // phi(z), Phi(z)
  V square;          // z^2 while the density is not zero
};

// Math supplies bend, gate, soft_step, decay and normal for V; Real is the type of a lane.
template <ActivationKind Kind, class Math, class V, class Real>
JKOFLOW_INLINE Jet<V> activate(V z, Real beta) {
  const Real one = 1, two = 2;
  if constexpr (Kind == ActivationKind::kTanh) {
    const Bend<V> h = Math::bend(z);
    return {h.value, h.slope, -two * h.value * h.slope};
  } else if constexpr (Kind == ActivationKind::kSoftplus) {
    const SoftStep<V> step = Math::soft_step(V(beta * z));
    // NaN stays in the tail; beta * z may overflow.
    return {(z > 0 ? z : V{}) + step.tail * (one / beta), step.gate.open, beta * step.gate.open * step.gate.closed};
  } else if constexpr (Kind == ActivationKind::kSilu) {
    const Gate<V> gate = Math::gate(z);
    return {z * gate.open, gate.open * (one + z * gate.closed),
            gate.open * gate.closed * (two + z * (gate.closed - gate.open))};
  } else if constexpr (Kind == ActivationKind::kGelu) {
    const Normal<V> normal = Math::normal(z);
    return {z * normal.below, normal.below + z * normal.density, normal.density * (two - normal.square)};
  } else {
    // selu = scale * elu(alpha), with the two numbers of Klambauer et al. (2017), arXiv 1706.02515.
    constexpr bool kScaled = Kind == ActivationKind::kSelu;
    const Real above = kScaled ? Real(1.0507009873554804934) : one;
    const Real below = kScaled ? Real(1.0507009873554804934 * 1.6732632423543772848) : one;
    const Decay<V> decay = Math::decay(z);
    const V power = below * decay.power;
    return {z > 0 ? V(above * z) : V(below * decay.change), z > 0 ? V(V{} + above) : power, z > 0 ? V{} : power};
  }
}

}  // namespace jkoflow
