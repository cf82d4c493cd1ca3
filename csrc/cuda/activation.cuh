// The activations on the device: the table of activation.h with the kind chosen at run time, the same in every thread.
#pragma once

#include "../activation.h"
#include "device.h"

namespace jkoflow::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// From one base-2 exponential each; the errors are absolute, below 3e-7.
struct DeviceMath {
  JKOFLOW_DEVICE static float tanh(float z) {
    return 1.0f - 2.0f * device::reciprocal_approx(device::exp2_approx(2.0f * kLog2E * z) + 1.0f);
  }
  JKOFLOW_DEVICE static float sigmoid(float z) {
    return device::reciprocal_approx(1.0f + device::exp2_approx(-kLog2E * z));
  }
  JKOFLOW_DEVICE static float softplus(float z) {
    const float distance = device::maximum(z, -z);
    return device::maximum(z, 0.0f) + kLn2 * device::log2_approx(1.0f + device::exp2_approx(-kLog2E * distance));
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
  } else {
    activate_as<ActivationKind::kSilu>(beta, z, jets);
  }
}

}  // namespace jkoflow::cuda
