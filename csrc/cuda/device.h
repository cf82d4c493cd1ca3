// The only file with CUDA builtins and PTX. With JKOFLOW_EMULATION the same names come from the emulation in
// tests/native/emulation, and the kernels compile as C++.
#pragma once

#include "barriers.h"

#ifdef JKOFLOW_EMULATION
#include "emulated_device.h"
#else

#define JKOFLOW_DEVICE __device__ __forceinline__
#define JKOFLOW_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define JKOFLOW_KERNEL_PARAMS(Type) const __grid_constant__ Type

// What the kernels are compiled for, as shapes.h counts: 90 with the instructions of sm_90a, else 80, the oldest. The
// host's pass over them uses none of it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "jkoflow's CUDA kernels need compute capability 8.0 or newer; set CMAKE_CUDA_ARCHITECTURES"
#endif
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define JKOFLOW_ARCHITECTURE 90
#else
#define JKOFLOW_ARCHITECTURE 80
#endif

namespace jkoflow::cuda::device {

// Volatile: read again wherever they are asked for. Otherwise all addresses that follow from them are computed once,
// held across the whole kernel and spilled.
JKOFLOW_DEVICE int thread() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
JKOFLOW_DEVICE int block() {
  int index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
}
JKOFLOW_DEVICE int blocks() { return static_cast<int>(gridDim.x); }
JKOFLOW_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }

extern __shared__ __align__(1024) float dynamic_shared[];
JKOFLOW_DEVICE float* shared() { return dynamic_shared; }

// Barriers of the thread block and of the warp; both order memory.
JKOFLOW_DEVICE void sync_block(Barrier) { __syncthreads(); }
JKOFLOW_DEVICE void sync_warp() { __syncwarp(); }

JKOFLOW_DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

JKOFLOW_DEVICE unsigned bits(float v) { return __float_as_uint(v); }
JKOFLOW_DEVICE float from_bits(unsigned v) { return __uint_as_float(v); }

// One instruction each, with about 2 units in the last place.
JKOFLOW_DEVICE float exp2_approx(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
JKOFLOW_DEVICE float log2_approx(float v) {
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
JKOFLOW_DEVICE float reciprocal_approx(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
JKOFLOW_DEVICE float maximum(float a, float b) { return fmaxf(a, b); }
JKOFLOW_DEVICE float magnitude(float v) { return fabsf(v); }

// What decides about steps is computed in double.
JKOFLOW_DEVICE double magnitude(double v) { return fabs(v); }
JKOFLOW_DEVICE double square_root(double v) { return sqrt(v); }
JKOFLOW_DEVICE double power(double v, double exponent) { return pow(v, exponent); }
JKOFLOW_DEVICE bool is_finite(double v) { return isfinite(v); }

// Vectors of memory that is aligned to them.
JKOFLOW_DEVICE float2 load2(const float* from) { return *reinterpret_cast<const float2*>(from); }
JKOFLOW_DEVICE float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }
JKOFLOW_DEVICE void store2(float* to, float2 v) { *reinterpret_cast<float2*>(to) = v; }
JKOFLOW_DEVICE void store4(float* to, float4 v) { *reinterpret_cast<float4*>(to) = v; }
// Adds to two sums in global memory, to which this thread alone adds while the kernel runs, without waiting for them.
JKOFLOW_DEVICE void add2_global(float* sums, float2 terms) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(sums), "f"(terms.x), "f"(terms.y) : "memory");
#else
  const float2 before = load2(sums);
  store2(sums, float2{before.x + terms.x, before.y + terms.y});
#endif
}
// Of memory that no kernel writes while this one runs.
JKOFLOW_DEVICE float load_constant(const float* from) { return __ldg(from); }
JKOFLOW_DEVICE float4 load4_constant(const float* from) { return __ldg(reinterpret_cast<const float4*>(from)); }

// c += a b with a (16 x 8) and b (8 x 8) in TF32, whose lower 13 bits the tensor core ignores. With g = lane / 4 and
// t = lane % 4: a0..a3 are (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b0, b1 are (t, g), (t + 4, g); c0..c3 are
// (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1). Volatile, so that it is never moved to where lanes have parted.
JKOFLOW_DEVICE void mma_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- Warp groups, for JKOFLOW_ARCHITECTURE 90: four warps, 16 rows of the product each; see layout.h for the operand.

// An operand in shared memory at a multiple of 1024 bytes: address, 1024 bytes from 8 rows to the next, swizzle of 128
// bytes. Adding to it moves on by 16 bytes.
using Operand = unsigned long long;
JKOFLOW_DEVICE Operand operand(const float* at) {
  return (static_cast<unsigned>(__cvta_generic_to_shared(at)) & 0x3ffffu) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
// What this thread has written becomes visible to the tensor cores, for those who wait at the next barrier.
JKOFLOW_DEVICE void publish_operands() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Begins a group of products whose registers have been written; ends it; waits until it is done.
JKOFLOW_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
JKOFLOW_DEVICE void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
JKOFLOW_DEVICE void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

// c += a b for 8 of the depth and all rows of the operand, fragment n being its rows 8 n to 8 n + 7. Registers of a
// must stay as they are until the wait.
JKOFLOW_DEVICE void warp_group_tf32(float (&c)[1][4], const unsigned (&a)[4], Operand b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, 1, 1, 1;"
               : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
JKOFLOW_DEVICE void warp_group_tf32(float (&c)[2][4], const unsigned (&a)[4], Operand b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k8.f32.tf32.tf32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, 1, 1, 1;"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
JKOFLOW_DEVICE void warp_group_tf32(float (&c)[3][4], const unsigned (&a)[4], Operand b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n24k8.f32.tf32.tf32 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11}, {%12,%13,%14,%15}, "
      "%16, 1, 1, 1;"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
JKOFLOW_DEVICE void warp_group_tf32(float (&c)[4][4], const unsigned (&a)[4], Operand b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k8.f32.tf32.tf32 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
      "{%16,%17,%18,%19}, %20, 1, 1, 1;"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
        "+f"(c[3][2]), "+f"(c[3][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
JKOFLOW_DEVICE void warp_group_tf32(float (&c)[5][4], const unsigned (&a)[4], Operand b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n40k8.f32.tf32.tf32 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19}, {%20,%21,%22,%23}, %24, 1, 1, 1;"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
        "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

}  // namespace jkoflow::cuda::device

#endif
