// How the products of a float32 integration are computed.
#pragma once

namespace jkoflow::cuda {

enum class Precision : int {
  kFp32,    // by float32 FMA
  kTf32x3,  // on tensor cores, each factor split into two TF32 numbers: close to float32
  kTf32,    // on tensor cores; products between hidden layers with factors rounded to TF32
};

}  // namespace jkoflow::cuda
