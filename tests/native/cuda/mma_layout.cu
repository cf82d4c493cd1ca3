// On a GPU, before everything else: one TF32 tensor product, one 3xTF32 product and the approximate functions against
// what the kernels count on. Prints what is wrong and exits with 1.
//   nvcc -std=c++17 -arch=native -I csrc -I csrc/cuda tests/native/cuda/mma_layout.cu -o mma_layout && ./mma_layout
#include "mma_layout.h"

#include <cmath>
#include <cstdio>

#include "activation.cuh"
#include "product.cuh"

namespace {

using namespace jkoflow;

constexpr int kPoints = 1024;

struct Results {
  float product[128];             // of mma_layout_kernel
  float split[128];               // of factors that TF32 does not hold, by 3xTF32
  float truncated;                // 1 + 2^-11 times 1: 1 if the tensor core ignores the lower 13 bits
  float rounded, nan;             // the same rounded to nearest, 1 + 2^-10; the NaN that GPUs compute, rounded
  float activations[3][kPoints];  // tanh, sigmoid, softplus
};

__host__ __device__ float fine(int i) {
  return 1.0f + 0.37f * static_cast<float>(i % 7) + 1.9e-5f * static_cast<float>(i);
}
__host__ __device__ float point(int i) { return -12.0f + 24.0f * static_cast<float>(i) / (kPoints - 1); }

__global__ void check_kernel(Results* results) {
  mma_layout_kernel(results->product);
  const cuda::Lane lane;
  const int g = lane.g, t = lane.t;
  const float a[4] = {fine(g * 8 + t), fine((g + 8) * 8 + t), fine(g * 8 + t + 4), fine((g + 8) * 8 + t + 4)};
  float c[4] = {};
  cuda::mma<cuda::Precision::kTf32x3>(c, a, fine(t * 8 + g), fine((t + 4) * 8 + g));
  for (int j = 0; j < 4; ++j) results->split[(g + 8 * (j >> 1)) * 8 + 2 * t + (j & 1)] = c[j];

  const unsigned one = cuda::device::bits(1.0f + 0x1p-11f);
  const unsigned ones[4] = {t == 0 ? one : 0u, t == 0 ? one : 0u, 0u, 0u};
  float sum[4] = {};
  cuda::device::mma_tf32(sum, ones, t == 0 ? cuda::device::bits(1.0f) : 0u, 0u);
  if (lane.index == 0) results->truncated = sum[0];
  const float factor[4] = {t == 0 ? 1.0f + 0x1p-11f : 0.0f, 0.0f, 0.0f, 0.0f};
  const float not_a_number[4] = {cuda::device::from_bits(0x7fffffffu), 0.0f, 0.0f, 0.0f};
  float rounded[4] = {}, nan[4] = {};
  cuda::mma<cuda::Precision::kTf32>(rounded, factor, t == 0 ? 1.0f : 0.0f, 0.0f);
  cuda::mma<cuda::Precision::kTf32>(nan, not_a_number, 1.0f, 0.0f);
  if (lane.index == 0) results->rounded = rounded[0], results->nan = nan[0];

  for (int i = lane.index; i < kPoints; i += 32) {
    results->activations[0][i] = cuda::DeviceMath::bend(point(i)).value;
    results->activations[1][i] = cuda::DeviceMath::gate(point(i)).open;
    const float beyond = point(i) > 0 ? point(i) : 0.0f;
    results->activations[2][i] = beyond + cuda::DeviceMath::soft_step(point(i)).tail;
  }
}

// In code for sm_90a alone; elsewhere it says that there is nothing to check.
__global__ void check_warp_group_kernel(float* out) {
#if JKOFLOW_ARCHITECTURE == 90
  warp_group_layout_kernel(out);
#else
  out[0] = -1.0f;
#endif
}

bool ok(cudaError_t error, const char* what) {
  if (error != cudaSuccess) std::printf("%s: %s\n", what, cudaGetErrorString(error));
  return error == cudaSuccess;
}

}  // namespace

int main() {
  Results* device = nullptr;
  static Results host;
  if (!ok(cudaMalloc(&device, sizeof(Results)), "cudaMalloc")) return 1;
  check_kernel<<<1, 32>>>(device);
  if (!ok(cudaGetLastError(), "launch") || !ok(cudaMemcpy(&host, device, sizeof host, cudaMemcpyDefault), "kernel")) {
    return 1;
  }
  int failures = 0;
  const auto report = [&failures](const char* what, double error, double allowed) {
    const bool good = error <= allowed;
    failures += !good;
    std::printf("%-28s error %.2e, allowed %.2e: %s\n", what, error, allowed, good ? "ok" : "WRONG");
  };
  report("mma layout, elements", wrong_elements(host.product), 0);
  report("tf32 truncation", std::fabs(host.truncated - 1.0f), 0);
  report("tf32 rounding", std::fabs(host.rounded - (1.0f + 0x1p-10f)), 0);
  report("tf32 NaN lost", std::isnan(host.nan) ? 0 : 1, 0);
  double split = 0;
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      double sum = 0;
      for (int k = 0; k < 8; ++k) sum += static_cast<double>(fine(row * 8 + k)) * fine(k * 8 + column);
      split = std::fmax(split, std::fabs(host.split[row * 8 + column] - sum) / sum);
    }
  }
  report("3xTF32, relative", split, 2e-6);
  double errors[3] = {};
  for (int i = 0; i < kPoints; ++i) {
    const double z = point(i), exact[3] = {std::tanh(z), 1 / (1 + std::exp(-z)), std::log1p(std::exp(z))};
    for (int f = 0; f < 3; ++f) {
      const double scale = std::fmax(1.0, std::fabs(exact[f]));
      errors[f] = std::fmax(errors[f], std::fabs(host.activations[f][i] - exact[f]) / scale);
    }
  }
  report("tanh", errors[0], 5e-7);
  report("sigmoid", errors[1], 5e-7);
  report("softplus", errors[2], 5e-7);
  constexpr int kElements = 64 * 16;
  float *wrong = nullptr, sum = 0.0f;
  static float elements[kElements];
  if (!ok(cudaMalloc(&wrong, sizeof elements), "cudaMalloc")) return 1;
  check_warp_group_kernel<<<1, 128, 4096>>>(wrong);
  if (!ok(cudaMemcpy(elements, wrong, sizeof elements, cudaMemcpyDefault), "warp group kernel")) return 1;
  for (const float element : elements) sum += element;
  if (elements[0] < 0.0f) {
    std::printf("no warp groups in this code\n");
  } else {
    report("warp group, wrong elements", sum, 0);
  }
  return failures == 0 ? 0 : 1;
}
