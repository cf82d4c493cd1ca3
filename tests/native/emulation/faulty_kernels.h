// Kernels that are wrong on purpose, to show that the emulation notices.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "device.h"

namespace jkoflow {

// Runs the kernel of that name with 64 threads and 256 floats of shared memory; returns 64 results.
inline std::vector<float> run_faulty(const std::string& name) {
  namespace device = cuda::device;
  constexpr auto kBarrier = cuda::Barrier::kStageInput, kOther = cuda::Barrier::kFirstLayer;
  std::vector<float> out(64);
  const auto run = [&](auto body) {
    emulator::launch(1, 64, 256 * sizeof(float), [&] { body(device::thread(), device::shared()); });
    return out;
  };
  if (name == "correct") {
    return run([&](int i, float* shared) {
      shared[i] = static_cast<float>(i);
      device::sync_block(kBarrier);
      out[i] = shared[63 - i] + device::shuffle_xor(0.5f, 1);
    });
  }
  if (name == "overrun") {
    return run([&](int i, float* shared) { shared[256 + i] = 1.0f; });
  }
  if (name == "overrun by reading") {
    return run([&](int i, float* shared) { out[i] = shared[256 + i]; });
  }
  if (name == "uninitialised") {
    return run([&](int i, float* shared) { out[i] = 2.0f * shared[i]; });
  }
  if (name == "divergent collective") {
    return run([&](int i, float*) {
      if (i % 32 < 16) out[i] = device::shuffle_xor(1.0f, 1);
      device::sync_block(kBarrier);
    });
  }
  if (name == "mixed collectives") {
    return run([&](int i, float*) {
      if (i % 2 == 0) {
        device::sync_warp();
      } else {
        out[i] = device::shuffle_xor(1.0f, 1);
      }
    });
  }
  if (name == "divergent barrier") {
    return run([&](int i, float*) { device::sync_block(i < 32 ? kBarrier : kOther); });
  }
  if (name == "early exit") {
    return run([&](int i, float*) {
      if (i == 40) return;
      device::sync_block(kBarrier);
    });
  }
  if (name == "early exit from a warp") {
    return run([&](int i, float*) {
      if (i == 40) return;
      out[i] = device::shuffle_xor(1.0f, 1);
    });
  }
  if (name == "misaligned") {
    return run([&](int i, float* shared) { out[i] = device::load4(shared + i).x; });
  }
  throw std::invalid_argument("no faulty kernel '" + name + "'");
}

}  // namespace jkoflow
