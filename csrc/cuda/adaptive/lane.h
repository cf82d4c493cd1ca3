// What a tile keeps of the rows that it carries with steps of their own: plain data, whose size the host plans with.
#pragma once

#include "../../tableau.h"

namespace jkoflow::cuda {

// Rows that a tile has under way, and whether it has just taken up new ones.
struct Board {
  int active, taken;
};
constexpr int kBoardFloats = 32;

// A row on its way. The thread of its place in the tile decides about it; all others only read.
struct RowLane {
  // What is evaluated next: the start, the trial step by which the first step is chosen, or stage 1, 2, ...
  enum : int { kStart = -2, kTrial = -1 };
  double t, dt, last_error;
  long long row;              // -1: none
  long long attempts, steps;  // steps: accepted ones
  long long evaluations;
  long long finished;    // the row that has just come to its end, or -1
  int phase, output;     // output: the next one
  int rejected, finite;  // the attempt before
  int moved, taken;      // whether the last attempt was accepted, and whether the row is new
  int slot;              // stage that is evaluated: its input is x plus the weighted slopes of those before
  float time;            // of that stage
  float logdet, logdet_rest;
  float weight[kMaxStages], divergence[kMaxStages];
};

// A row on its way back.
struct ReturnLane {
  double t, dt;         // of the step at hand
  long long row, step;  // -1: none
  long long previous;   // the step before
  long long finished;
  int taken, first_output, end_output;
  float logdet_bar, pending_logdet_bar;  // pending: of the outputs within the step, for the steps before
  float divergence_extra[kMaxStages];    // cotangents of the stages' divergences by these outputs
};

constexpr int lane_floats(int tile, bool adjoint) {
  return kBoardFloats + static_cast<int>((adjoint ? sizeof(ReturnLane) : sizeof(RowLane)) / sizeof(float)) * tile;
}

// An accepted step as problem.h records it; x follows.
struct RecordHead {
  double t, dt;
  long long previous;
  int first_output, end_output;
};

}  // namespace jkoflow::cuda
