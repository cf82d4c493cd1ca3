// The adjoint kernel: from the cotangents at the end of the integration, or from the JKO objective itself, back to
// those of x, context and parameters. Gradients of parameters are summed over all tiles of a thread block and left as
// its partial gradient.
#pragma once

#include "backward/tile.cuh"

namespace jkoflow::cuda {

// A thread block's share: large tiles, the last tile small if that is enough. Between the two the barriers of a tile
// suffice.
template <int H, Precision P, int NT, int kSmall, bool kTangents>
JKOFLOW_DEVICE void run_backward(const Params& p) {
  using Large = TileAdjoint<H, P, NT, kTangents>;
  using Small = TileAdjoint<H, P, kSmall, kTangents>;
  KeptSums<H, P> kept;
  Large large(p, kept);
  large.clear_sums();
  if (p.terms != nullptr) large.clear_terms();
  for (int tile = 0; tile < p.large_tiles && first_sample(p, tile) < p.batch; ++tile) large.adjoint_of_tile(tile);
  if constexpr (NT != kSmall) {
    if (p.small_tiles > 0 && first_sample(p, p.large_tiles) < p.batch) Small(p, kept).adjoint_of_tile(p.large_tiles);
  }
  large.tile.renew();
  if (p.want_parameters) large.store_sums();
  if (p.terms != nullptr) large.store_terms();
}

}  // namespace jkoflow::cuda
