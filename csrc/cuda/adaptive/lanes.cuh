// The lanes of a tile: how the rows of a thread block's share are dealt out to them, and the weights within a step.
#pragma once

#include "../tile.cuh"
#include "lane.h"

namespace jkoflow::cuda {

template <class T>
JKOFLOW_DEVICE Board& board_of(const T& tile) {
  return *reinterpret_cast<Board*>(tile.at(tile.p.layout.lanes));
}
template <class Lane, class T>
JKOFLOW_DEVICE Lane& lane_of(const T& tile, int s) {
  return reinterpret_cast<Lane*>(tile.at(tile.p.layout.lanes) + kBoardFloats)[s];
}

// Deals out the rows of a thread block's share. Warp 0 decides, a thread for each sample of the tile. No reference to
// the tile is kept: it would be one to the object that holds both, which the compiler then leaves in memory.
template <class Lane>
struct Dealer {
  long long next, end;  // rows that are left; of use to warp 0 only

  JKOFLOW_DEVICE explicit Dealer(const Params& p) : next(first_sample(p, 0)) {
    end = next + p.share < p.batch ? next + p.share : p.batch;
  }

  // Gives free lanes the next rows, in order: take(lane, row), -1 if there is none left. By all threads of warp 0.
  template <class T, class Take>
  JKOFLOW_DEVICE void deal(const T& tile, Take&& take) {
    static_assert(T::kSamples <= 32);
    const bool present = tile.thread < T::kSamples;
    const bool free = present && lane_of<Lane>(tile, tile.thread).row < 0;
    float before = 0.0f, wanted = free ? 1.0f : 0.0f;  // small integers
#pragma unroll
    for (int mask = 1; mask < 32; mask <<= 1) {
      const float others = device::shuffle_xor(wanted, mask);
      if (tile.thread & mask) before += others;
      wanted += others;
    }
    bool taken = false;
    if (free) {
      const long long row = next + static_cast<int>(before);
      taken = row < end;
      take(lane_of<Lane>(tile, tile.thread), taken ? row : -1);
    }
    next = next + static_cast<int>(wanted) < end ? next + static_cast<int>(wanted) : end;
    float active = present && lane_of<Lane>(tile, tile.thread).row >= 0 ? 1.0f : 0.0f, fresh = taken ? 1.0f : 0.0f;
#pragma unroll
    for (int mask = 1; mask < 32; mask <<= 1) {
      active += device::shuffle_xor(active, mask);
      fresh += device::shuffle_xor(fresh, mask);
    }
    if (tile.thread == 0) board_of(tile) = {static_cast<int>(active), static_cast<int>(fresh)};
  }
};

// Weight of a stage's slope, times the step, in the position at a share theta of the step.
JKOFLOW_DEVICE double dense_weight(const Stepping& s, int stage, double theta) {
  const double* c = s.dense[stage];
  return theta * (c[0] + theta * (c[1] + theta * (c[2] + theta * c[3])));
}

JKOFLOW_DEVICE RecordHead* record_at(const Stepping& s, long long place) {
  return reinterpret_cast<RecordHead*>(s.records + place * s.record_bytes);
}
JKOFLOW_DEVICE float* record_position(RecordHead* record) { return reinterpret_cast<float*>(record + 1); }

}  // namespace jkoflow::cuda
