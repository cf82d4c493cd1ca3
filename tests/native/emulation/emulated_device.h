// The names of csrc/cuda/device.h for the emulation.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "barriers.h"
#include "emulator.h"

#define JKOFLOW_DEVICE inline __attribute__((always_inline))
#define JKOFLOW_KERNEL(threads, blocks) void
#define JKOFLOW_KERNEL_PARAMS(Type) const Type
#define JKOFLOW_ARCHITECTURE 80  // runtime.cpp plans for it

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace jkoflow::cuda::device {

inline int thread() { return emulator::thread(); }
inline int block() { return emulator::block(); }
inline int blocks() { return emulator::blocks(); }
inline int block_threads() { return emulator::block_threads(); }
inline float* shared() { return emulator::shared(); }

inline void sync_block(Barrier which) { emulator::sync_block(static_cast<int>(which)); }
inline void sync_warp() { emulator::sync_warp(); }
inline float shuffle_xor(float v, int mask) { return emulator::shuffle_xor(v, mask); }

inline uint32_t bits(float v) {
  uint32_t u;
  std::memcpy(&u, &v, sizeof u);
  return u;
}
inline float from_bits(uint32_t u) {
  float v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}

// A unit in the last place is at most 2^-23 of the value.
inline float exp2_approx(float v) { return emulator::approximate(std::exp2(v), 0x1p-22); }
inline float log2_approx(float v) { return emulator::approximate(std::log2(v), 0x1p-22); }
inline float reciprocal_approx(float v) { return emulator::approximate(1.0f / v, 0x1p-23); }
inline float maximum(float a, float b) { return std::fmax(a, b); }
inline float magnitude(float v) { return std::fabs(v); }

inline double magnitude(double v) { return std::fabs(v); }
inline double square_root(double v) { return std::sqrt(v); }
inline double power(double v, double exponent) { return std::pow(v, exponent); }
inline bool is_finite(double v) { return std::isfinite(v); }

inline const float* aligned(const float* from, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) emulator::fail("misaligned vector in memory");
  return from;
}
inline float2 load2(const float* from) { return *reinterpret_cast<const float2*>(aligned(from, sizeof(float2))); }
inline float4 load4(const float* from) { return *reinterpret_cast<const float4*>(aligned(from, sizeof(float4))); }
inline void store2(float* to, float2 v) {
  *reinterpret_cast<float2*>(const_cast<float*>(aligned(to, sizeof(float2)))) = v;
}
inline void store4(float* to, float4 v) {
  *reinterpret_cast<float4*>(const_cast<float*>(aligned(to, sizeof(float4)))) = v;
}
inline float load_constant(const float* from) { return *from; }
inline float4 load4_constant(const float* from) { return load4(from); }

inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::mma_tf32(c, a, b0, b1);
}

}  // namespace jkoflow::cuda::device
