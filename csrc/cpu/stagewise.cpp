// Steps whose stages have networks of their own, on one instruction set. Apart from integrate.cpp, so that the compiler
// treats the kernels there as if these did not exist.
#include "stagewise.h"

#include "kernels.h"
#include "reduction.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// Memory of a call: the packed networks, for the adjoint the partitions' results, then a space for each partition.

template <class Real>
size_t forward_bytes(const Problem& p, const StagewiseStep& step) {
  Arena networks(nullptr), space(nullptr);
  const StageNetworks<Real> nets(p, step.start_known ? 1 : 0, step.stages, false, networks);
  ForwardSpace<Real>(nets.shape(), step.stages, 1, Keep::kNothing, space);
  return networks.used() + space.used() * partition_count<Real>(p);
}

template <class Real>
void forward(const Problem& p, const StagewiseStep& step, const Adaptive& adaptive, char* memory) {
  Arena arena(memory), counted(nullptr);
  const StageNetworks<Real> nets(p, step.start_known ? 1 : 0, step.stages, false, arena);
  ForwardSpace<Real>(nets.shape(), step.stages, 1, Keep::kNothing, counted);
  const int partitions = partition_count<Real>(p);
  run_threads(partitions, [&](int thread, int threads) {
    [[maybe_unused]] const TileSession tiles;
    nets.prepare(thread, threads);
    for (int i = thread; i < partitions; i += threads) {
      Arena own(memory + arena.used() + counted.used() * i);
      const ForwardSpace<Real> space(nets.shape(), step.stages, 1, Keep::kNothing, own);
      for_each_tile<Real>(p, i, partitions, [&](auto vectors, int64_t first, int samples) {
        stagewise_tile<Real, decltype(vectors)::value>(p, step, adaptive, nets, space, first, samples);
      });
    }
  });
}

template <class Real>
size_t backward_bytes(const Problem& p, const StagewiseStep& step) {
  Arena networks(nullptr), space(nullptr);
  const StageNetworks<Real> nets(p, 0, step.stages, true, networks);
  const int partitions = partition_count<Real>(p);
  networks.take<PartitionResult<Real>>(step.stages * partitions);
  StagewiseSpace<Real>(nets.shape(), step.stages, space);
  return networks.used() + space.used() * partitions;
}

template <class Real>
void backward(const Problem& p, const StagewiseStep& step, const Adjoint& adjoint, char* memory) {
  Arena arena(memory), counted(nullptr);
  const StageNetworks<Real> nets(p, 0, step.stages, true, arena);
  const int partitions = partition_count<Real>(p);
  PartitionResult<Real>* results = arena.take<PartitionResult<Real>>(step.stages * partitions);
  StagewiseSpace<Real>(nets.shape(), step.stages, counted);
  run_threads(partitions, [&](int thread, int threads) {
    [[maybe_unused]] const TileSession tiles;
    nets.prepare(thread, threads);
    for (int i = thread; i < partitions; i += threads) {
      Arena own(memory + arena.used() + counted.used() * i);
      const StagewiseSpace<Real> space(nets.shape(), step.stages, own);
      for (int s = 0; s < step.stages; ++s) {
        space.stage[s].clear();
        results[s * partitions + i] = {space.stage[s], {}};
      }
      for_each_tile<Real>(p, i, partitions, [&](auto vectors, int64_t first, int samples) {
        constexpr int kVectors = decltype(vectors)::value;
        if (keep_for_adjoint(nets.shape()) == Keep::kValues) {
          stagewise_backward_tile<Real, kVectors, Keep::kValues>(p, step, adjoint, nets, space, first, samples);
        } else {
          stagewise_backward_tile<Real, kVectors, Keep::kJets>(p, step, adjoint, nets, space, first, samples);
        }
      });
    }
    wait_for_threads();
    for (int s = 0; adjoint.weight[0] != nullptr && s < step.stages; ++s) {
      const Problem problem = of_stage<Real>(p, p, s);
      const Adjoint own = of_stage<Real>(p, adjoint, s);
      Reduction<Real>(problem, own, nets[s], results + s * partitions, partitions).run(thread, threads);
    }
  });
}

}  // namespace

extern const StagewiseKernels kStagewiseKernels;
const StagewiseKernels kStagewiseKernels = {
    [](const Problem& p, const StagewiseStep& step) {
      return p.float64 ? forward_bytes<double>(p, step) : forward_bytes<float>(p, step);
    },
    [](const Problem& p, const StagewiseStep& step) {
      return p.float64 ? backward_bytes<double>(p, step) : backward_bytes<float>(p, step);
    },
    [](const Problem& p, const StagewiseStep& step, const Adaptive& adaptive, char* memory) {
      p.float64 ? forward<double>(p, step, adaptive, memory) : forward<float>(p, step, adaptive, memory);
    },
    [](const Problem& p, const StagewiseStep& step, const Adjoint& adjoint, char* memory) {
      p.float64 ? backward<double>(p, step, adjoint, memory) : backward<float>(p, step, adjoint, memory);
    },
};

}  // namespace jkoflow::JKOFLOW_ISA
