// Sums the thread blocks' partial gradients in a fixed order.
#pragma once

#include "device.h"
#include "params.h"
#include "shapes.h"

namespace jkoflow::cuda {

// A thread block sums 128 neighbouring numbers: each of its warps, four numbers a lane, those of every eighth partial
// gradient, whose loads do not wait for each other; then its threads add up the warps' sums.
struct Reduce {
  JKOFLOW_DEVICE static void run(const ReduceParams& p) {
    constexpr int kWarps = kSmallThreads / 32;
    const int thread = device::thread(), warp = thread >> 5;
    const int first = device::block() * kReducedNumbers, within = 4 * (thread & 31);
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
    if (first + within < p.count) {
#pragma unroll 8
      for (int block = warp; block < p.blocks; block += kWarps) {
        const float4 v = device::load4(p.partial + static_cast<long long>(block) * p.count + first + within);
        sum.x += v.x;
        sum.y += v.y;
        sum.z += v.z;
        sum.w += v.w;
      }
    }
    float* sums = device::shared();
    device::store4(sums + warp * kReducedNumbers + within, sum);
    device::sync_block(Barrier::kPartialSums);
    if (thread >= kReducedNumbers || first + thread >= p.count) return;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += sums[w * kReducedNumbers + thread];
    p.total[first + thread] = total;
  }
};

}  // namespace jkoflow::cuda
