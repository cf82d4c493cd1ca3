// Which kernels there are and what tiles they carry: data that the kernels are compiled with and the host plans with.
#pragma once

namespace jkoflow::cuda {

// kBackward: the adjoint, and the loss with its gradient.
enum class Task : int { kForward, kBackward, kAdaptiveForward, kAdaptiveBackward };
constexpr bool is_adjoint(Task task) { return task == Task::kBackward || task == Task::kAdaptiveBackward; }
constexpr bool is_adaptive(Task task) { return task == Task::kAdaptiveForward || task == Task::kAdaptiveBackward; }

constexpr int kWidths[] = {64, 128, 256};  // H: what hidden layers are padded to
constexpr int kSmallThreads = 256;         // of a thread block of the kernels that prepare, reduce and finish
constexpr int kSmallShared = 4096;         // bytes of shared memory of those that reduce and finish

// Small tiles are for small batches, whose samples then spread over more multiprocessors, and for what is left of a
// thread block's share; below two fragments a warp would wait for each product.
struct Shape {
  int fragments;  // of 8 samples, in a tile
  int small;      // in the tile that a thread block may carry last
  int blocks;     // thread blocks on a multiprocessor: as many as their registers are limited for
};

struct Shapes {
  int architecture;        // the oldest one that is compiled with these: 80 is compute capability 8.0
  Shape kernels[4][3][2];  // [task][width][tangents]
};

// Ascending; an architecture takes the last row that is not newer. With a row {90, ...} the H100's kernels have tiles
// of their own: kernels and plans follow, those of older GPUs stay.
constexpr Shapes kShapes[] = {
    // What 128 registers and 99 KB of shared memory allow; in the adjoint up to H = 128 half of 255 registers hold
    // gradients, and tangents have no registers for a second kind of tiles.
    {80,
     {{{{5, 2, 4}, {4, 2, 4}},     // forward, H = 64: closed form, tangents
       {{5, 2, 2}, {4, 2, 2}},     // H = 128
       {{2, 1, 1}, {2, 1, 1}}},    // H = 256
      {{{4, 2, 2}, {2, 2, 2}},     // backward, the same
       {{4, 2, 1}, {2, 2, 1}},     //
       {{2, 1, 1}, {1, 1, 1}}},    //
      {{{4, 4, 4}, {4, 4, 4}},     // adaptive steps: one kind of tiles, of at most 32 samples
       {{4, 4, 2}, {4, 4, 2}},     //
       {{2, 2, 1}, {2, 2, 1}}},    //
      {{{4, 4, 2}, {2, 2, 2}},     // their adjoint
       {{4, 4, 1}, {2, 2, 1}},     //
       {{2, 2, 1}, {1, 1, 1}}}}},  //
};

constexpr Shape shape_of(int architecture, Task task, int H, bool tangents) {
  int row = 0, width = 0;
  for (int i = 1; i < static_cast<int>(sizeof kShapes / sizeof *kShapes); ++i) {
    if (kShapes[i].architecture <= architecture) row = i;
  }
  while (kWidths[width] != H) ++width;
  return kShapes[row].kernels[static_cast<int>(task)][width][tangents];
}

// Of a thread block: a warp owns 16 units of a hidden layer.
constexpr int threads_of(int H) { return 2 * H; }

// Panels of tile x H floats at the start of shared memory.
constexpr int panels_of(Task task, bool tangents) { return (is_adjoint(task) ? 4 : 3) + tangents; }

}  // namespace jkoflow::cuda
