// The names of csrc/cuda/device.h for the emulation.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "barriers.h"
#include "emulator.h"

#define JKOFLOW_DEVICE inline __attribute__((always_inline))
#define JKOFLOW_KERNEL(threads, blocks) void
#define JKOFLOW_KERNEL_PARAMS(Type) const Type
// JKOFLOW_ARCHITECTURE comes from CMakeLists.txt.

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
inline void add2_global(float* sums, float2 terms) {
  const float2 before = load2(sums);
  store2(sums, float2{before.x + terms.x, before.y + terms.y});
}
inline float load_constant(const float* from) { return *from; }
inline float4 load4_constant(const float* from) { return load4(from); }

inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::mma_tf32(c, a, b0, b1);
}

// ---- Warp groups. A product is computed when it is waited for, if its group has ended by then: until then its sums
// are what they were. Its operand is read then, too, by the address swizzle of the hardware: the 16-byte pieces of a
// line of 128 bytes by the line's place among 8. (That a thread has published what it wrote is not checked.)

using Operand = uint64_t;  // in pieces of 16 bytes, from the start of shared memory
inline Operand operand(const float* at) {
  const auto offset = reinterpret_cast<const char*>(at) - reinterpret_cast<const char*>(emulator::shared());
  if (offset % 1024 != 0) emulator::fail("misaligned operand");
  return static_cast<Operand>(offset) / 16;
}

struct Product {
  float* c;
  uint32_t a[4];
  Operand b;
  int fragments;
  bool ended;
};
inline std::vector<Product>& products() {
  static std::vector<Product> of_thread[1024];
  return of_thread[emulator::thread()];
}

inline void publish_operands() {}
inline void begin_products() {}
inline void end_products() {
  for (Product& product : products()) product.ended = true;
}
inline void wait_for_products() {
  const int lane = emulator::thread() % 32, g = lane / 4, t = lane % 4;
  for (const Product& product : products()) {
    if (!product.ended) emulator::fail("products are waited for that have not ended");
    const auto element = [&](int row, int k) {
      const uint64_t linear = 16 * product.b + 128 * row + 4 * k, address = linear ^ (linear >> 7 & 7) << 4;
      return bits(*reinterpret_cast<const float*>(reinterpret_cast<const char*>(emulator::shared()) + address));
    };
    for (int n = 0; n < product.fragments; ++n) {
      float (&c)[4] = reinterpret_cast<float (&)[4]>(product.c[4 * n]);
      mma_tf32(c, product.a, element(8 * n + g, t), element(8 * n + g, t + 4));
    }
  }
  products().clear();
}

template <int NT>
void warp_group_tf32(float (&c)[NT][4], const uint32_t (&a)[4], Operand b) {
  products().push_back({&c[0][0], {a[0], a[1], a[2], a[3]}, b, NT, false});
}

}  // namespace jkoflow::cuda::device
