// Which kernels there are and what tiles they carry: data that the kernels are compiled with and the host plans with.
#pragma once

#include "precision.h"

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
  Shape kernels[4][3][2];  // [task][width][tangents]
};

// What 128 registers and 99 KB of shared memory allow; in the adjoint up to H = 128 half of 255 registers hold
// gradients, and tangents have no registers for a second kind of tiles.
constexpr Shapes kShapes = {{{{{5, 2, 4}, {4, 2, 4}},   // forward, H = 64: closed form, tangents
                              {{5, 2, 2}, {4, 2, 2}},   // H = 128
                              {{2, 1, 1}, {2, 1, 1}}},  // H = 256
                             {{{4, 2, 2}, {2, 2, 2}},   // backward, the same
                              {{4, 2, 1}, {2, 2, 1}},   //
                              {{2, 1, 1}, {1, 1, 1}}},  //
                             {{{4, 4, 4}, {4, 4, 4}},   // adaptive steps: one kind of tiles, of at most 32 samples
                              {{4, 4, 2}, {4, 4, 2}},   //
                              {{2, 2, 1}, {2, 2, 1}}},  //
                             {{{4, 4, 2}, {2, 2, 2}},   // their adjoint
                              {{4, 4, 1}, {2, 2, 1}},   //
                              {{2, 2, 1}, {1, 1, 1}}}}};

// With warp groups: what 227 KB allow, with room for long inputs.
constexpr Shape kWarpGroupShapes[4][3] = {{{4, 2, 4}, {5, 2, 2}, {4, 2, 1}},   // [task][width]
                                          {{4, 2, 2}, {5, 2, 1}, {3, 1, 1}},   //
                                          {{4, 4, 4}, {4, 4, 2}, {2, 2, 1}},   //
                                          {{4, 4, 2}, {4, 4, 1}, {2, 2, 1}}};  //

// Products between hidden layers by warp groups, four warps whose tensor cores read the right factor from shared memory
// themselves (wgmma): it is kept there as an operand (layout.h), split into two planes. Compute capability 9.0 alone
// has the instructions, and only code for sm_90a.
constexpr int kWarpGroupArchitecture = 90;
constexpr bool with_warp_groups(int architecture, Precision precision, bool tangents) {
  return architecture == kWarpGroupArchitecture && precision == Precision::kTf32x3 && !tangents;
}

constexpr Shape shape_of(int architecture, Task task, int H, Precision precision, bool tangents) {
  int width = 0;
  while (kWidths[width] != H) ++width;
  return with_warp_groups(architecture, precision, tangents) ? kWarpGroupShapes[static_cast<int>(task)][width]
                                                             : kShapes.kernels[static_cast<int>(task)][width][tangents];
}

// Of a thread block: a warp owns 16 units of a hidden layer.
constexpr int threads_of(int H) { return 2 * H; }

// Panels at the start of shared memory, and how many times tile x H floats they take: an operand has a second plane,
// which the last panel of the forward kernel can do without.
constexpr int panels_of(Task task, bool tangents) { return (is_adjoint(task) ? 4 : 3) + tangents; }
constexpr int planes_of(Task task, bool tangents, bool warp_groups) {
  return warp_groups ? 2 * panels_of(task, tangents) - !is_adjoint(task) : panels_of(task, tangents);
}

}  // namespace jkoflow::cuda
