// The activations on the device: the table of activation.h with the kind chosen at run time, the same in every thread.
#pragma once

#include "../activation.h"
#include "../mills.h"
#include "device.h"

namespace jkoflow::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// From one base-2 exponential and one reciprocal or logarithm each. Slopes have small relative errors; values of tanh
// and elu, too, as polynomials near 0. Polynomials by scripts/minimax.py.
struct DeviceMath {
  JKOFLOW_DEVICE static Bend<float> bend(float z) {
    const float a = device::magnitude(z);
    const float power = device::exp2_approx(-2.0f * kLog2E * a), r = device::reciprocal_approx(1.0f + power);
    const float y = z * z;
    const float near = z + z * y *
                               polynomial(y, 0.00148741295f, -0.00728385227f, 0.0212648961f, -0.0538589196f,
                                          0.133325921f, -0.333333250f);
    const float far = 1.0f - 2.0f * power * r;
    return {a < 0.9f ? near : (z < 0.0f ? -far : far), 4.0f * power * r * r};
  }
  JKOFLOW_DEVICE static Gate<float> gate(float z) { return gate(z, decayed(z)); }
  JKOFLOW_DEVICE static SoftStep<float> soft_step(float z) {
    const float power = decayed(z);
    return {kLn2 * device::log2_approx(1.0f + power), gate(z, power)};
  }
  JKOFLOW_DEVICE static Decay<float> decay(float z) {
    const float power = decayed(z), below = -device::magnitude(z);
    const float near =
        below + below * below * polynomial(below, 0.00742122201f, 0.0414702829f, 0.166652923f, 0.499999848f);
    return {power, below > -0.35f ? near : power - 1.0f};
  }
  JKOFLOW_DEVICE static Normal<float> normal(float z) {
    // Where the density underflows, its factors must be finite.
    const float square = -device::maximum(-z * z, -200.0f);
    const float density = device::exp2_approx(-0.5f * kLog2E * square) * 0.3989422804f;
    const float tail =
        density * mills_ratio<float>(device::reciprocal_approx(1.0f + kMillsScale<float> * device::magnitude(z)));
    return {density, z < 0.0f ? tail : 1.0f - tail, square};
  }

 private:
  JKOFLOW_DEVICE static float decayed(float z) { return device::exp2_approx(-kLog2E * device::magnitude(z)); }
  JKOFLOW_DEVICE static Gate<float> gate(float z, float power) {
    const float larger = device::reciprocal_approx(1.0f + power), smaller = power * larger;
    return {z < 0.0f ? smaller : larger, z < 0.0f ? larger : smaller};
  }
};

// A fragment after the activation; what is not used is not computed.
struct Jets {
  float value[4], slope[4], curvature[4];
};

template <ActivationKind Kind>
JKOFLOW_DEVICE void activate_as(float beta, const float (&z)[4], Jets& jets) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const Jet<float> jet = activate<Kind, DeviceMath>(z[j], beta);
    jets.value[j] = jet.value;
    jets.slope[j] = jet.slope;
    jets.curvature[j] = jet.curvature;
  }
}

JKOFLOW_DEVICE void activate(int kind, float beta, const float (&z)[4], Jets& jets) {
  if (kind == static_cast<int>(ActivationKind::kTanh)) {
    activate_as<ActivationKind::kTanh>(beta, z, jets);
  } else if (kind == static_cast<int>(ActivationKind::kSoftplus)) {
    activate_as<ActivationKind::kSoftplus>(beta, z, jets);
  } else if (kind == static_cast<int>(ActivationKind::kSilu)) {
    activate_as<ActivationKind::kSilu>(beta, z, jets);
  } else if (kind == static_cast<int>(ActivationKind::kElu)) {
    activate_as<ActivationKind::kElu>(beta, z, jets);
  } else if (kind == static_cast<int>(ActivationKind::kSelu)) {
    activate_as<ActivationKind::kSelu>(beta, z, jets);
  } else {
    activate_as<ActivationKind::kGelu>(beta, z, jets);
  }
}

// use(n, jets) for every fragment. tanh, the usual one, has a loop of its own, so that the latencies of its fragments
// overlap.
template <int NT, class Use>
JKOFLOW_DEVICE void activate_all(int kind, float beta, const float (&z)[NT][4], Use&& use) {
  if (kind == static_cast<int>(ActivationKind::kTanh)) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      Jets jets;
      activate_as<ActivationKind::kTanh>(beta, z[n], jets);
      use(n, jets);
    }
  } else {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      Jets jets;
      activate(kind, beta, z[n], jets);
      use(n, jets);
    }
  }
}

}  // namespace jkoflow::cuda
