// The barriers of a thread block by name, so that the emulation can leave out one at a time and show that the race is
// seen.
#pragma once

namespace jkoflow::cuda {

enum class Barrier : int {
  kStageInput,       // the stage's input is complete
  kFirstLayer,       // h_1 and its slopes are complete
  kSecondLayer,      // h_2 is complete
  kTopLayer,         // the last h and the divergence are complete
  kForwardTangent1,  // u_1 of a direction is complete
  kForwardTangent2,  // u_2 of a direction is complete
  kSmallTile,        // the large tiles' positions are no longer needed
  kLossTerms,        // the tile's end is complete, for the terms of the loss
  kStageAdjoint,     // the cotangent of the stage's velocity is complete, its input panel restored
  kTangent1,         // u_1 of a direction is complete
  kTangent2,         // u_2 of a direction is complete
  kTangentAdjoint2,  // the cotangent of a_3 is complete
  kTangentAdjoint1,  // the cotangent of a_2 is complete
  kMiddleAdjoint,    // the cotangent of z_3 is complete
  kTopAdjoint,       // the cotangent of z_2, and of q, is complete
  kFirstAdjoint,     // the cotangent of z_1 is complete
  kInputAdjoint,     // the cotangent of the stage's input is complete
  kStepAdjoint,      // those of all stages of the step are complete
  kTermSums,         // the thread block's terms of the loss are complete
  kRowSlopes,        // every row's slope of the stage that it has evaluated is complete
  kRowSteps,         // it is decided what every row does next
  kPartialSums,      // every warp's sums of partial gradients are complete
  kPathSums,         // every warp's share of the chain rule of the first layer is complete
  kTermTotals,       // every thread's share of the loss's terms is complete
  kCount
};

}  // namespace jkoflow::cuda
