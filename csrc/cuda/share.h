// How a batch is shared out among the thread blocks that a GPU runs at a time.
#pragma once

namespace jkoflow::cuda {

struct Shares {
  int blocks;
  long long samples;             // of each thread block; the last one has what is left
  int large_tiles, small_tiles;  // that a share takes, the small one last
};

// One share for each of up to `slots` thread blocks, all at once, as even as tiles allow. A thread block carries its
// share in tiles of `tile` samples and, if `small_tile` samples are enough for the rest, a small one; not if both are
// the same. Tiles dealt out one by one would leave slots idle in the last round: 10000 samples in tiles of 32 are 313,
// on 132 slots 3 rounds that are 79 % full; shares of 80 are 95 % full. 250 samples are 16 shares of 16, not 8 of 32.
// batch > 0.
inline Shares share_out(long long batch, long long slots, int tile, int small_tile) {
  const long long least = (batch + slots - 1) / slots, rest = least % tile;
  const bool small = small_tile < tile && rest > 0 && rest <= small_tile;
  const long long large = least / tile + (rest > 0 && !small), samples = large * tile + small * small_tile;
  return {static_cast<int>((batch + samples - 1) / samples), samples, static_cast<int>(large), small};
}

// The same for rows that a tile takes up one by one, when there is room: as even as can be, but not so thin that most
// of a tile stands empty while every thread block reads all weights.
inline Shares share_out_rows(long long batch, long long slots) {
  constexpr long long kLeast = 8;
  const long long even = (batch + slots - 1) / slots, samples = even < kLeast ? kLeast : even;
  return {static_cast<int>((batch + samples - 1) / samples), samples, 0, 0};
}

}  // namespace jkoflow::cuda
