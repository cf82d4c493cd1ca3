// Whole integrations on one instruction set, with their adjoint and the fused loss.
#include "adaptive_adjoint.h"
#include "evaluate.h"
#include "kernels.h"
#include "reduction.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// Memory of a call: the packed network, then one workspace for each partition.

template <class Real>
size_t forward_bytes(const Problem& p) {
  Arena network(nullptr), space(nullptr);
  const Network<Real> net(p, network, false);
  ForwardSpace<Real>(net, p.tableau.stages, 1, Keep::kNothing, space);
  return network.used() + space.used() * partition_count<Real>(p);
}

// Prepares the network and calls run(net, partition, partitions, its memory) for every partition.
template <class Real, class Run>
void run_partitions(const Problem& p, char* memory, size_t space_bytes, Run&& run) {
  Arena arena(memory);
  const Network<Real> net(p, arena, false);
  const int partitions = partition_count<Real>(p);
  run_threads(partitions, [&](int thread, int threads) {
    [[maybe_unused]] const TileSession tiles;
    net.prepare(p, thread, threads, wait_for_threads);
    for (int i = thread; i < partitions; i += threads) {
      Arena own(memory + arena.used() + space_bytes * i);
      run(net, i, partitions, own);
    }
  });
}

// run_tile(net, space, Constant<Vectors>, first, samples) treats each tile.
template <class Real, class RunTile>
void run_forward(const Problem& p, char* memory, RunTile&& run_tile) {
  Arena network(nullptr), counted(nullptr);
  ForwardSpace<Real>(Network<Real>(p, network, false), p.tableau.stages, 1, Keep::kNothing, counted);
  run_partitions<Real>(p, memory, counted.used(), [&](const Network<Real>& net, int i, int partitions, Arena& own) {
    const ForwardSpace<Real> space(net, p.tableau.stages, 1, Keep::kNothing, own);
    for_each_tile<Real>(p, i, partitions, [&](auto vectors, int64_t first, int samples) {
      run_tile(net, space, vectors, first, samples);
    });
  });
}

template <class Real>
void forward(const Problem& p, char* memory) {
  run_forward<Real>(p, memory,
                    [&](const Network<Real>& net, const ForwardSpace<Real>& space, auto vectors, int64_t first,
                        int samples) { forward_tile<Real, decltype(vectors)::value>(p, net, space, first, samples); });
}

template <class Real>
void evaluate(const Problem& p, char* memory) {
  run_forward<Real>(p, memory,
                    [&](const Network<Real>& net, const ForwardSpace<Real>& space, auto vectors, int64_t first,
                        int samples) { evaluate_tile<Real, decltype(vectors)::value>(p, net, space, first, samples); });
}

template <class Real>
size_t adaptive_bytes(const Problem& p) {
  Arena network(nullptr), space(nullptr);
  LaneTile<Real>(p, Network<Real>(p, network, false), space);
  return network.used() + space.used() * partition_count<Real>(p);
}

template <class Real>
RowFailure adaptive(const Problem& p, const Adaptive& a, cpu::StepLog* const* logs, char* memory) {
  Arena network(nullptr), counted(nullptr);
  LaneTile<Real>(p, Network<Real>(p, network, false), counted);
  run_partitions<Real>(p, memory, counted.used(), [&](const Network<Real>& net, int i, int partitions, Arena& own) {
    const LaneTile<Real> tile(p, net, own);
    const SampleRange rows = samples_of<Real>(p, i, partitions);
    logs[i]->failure = RowStepper<Real>(p, a, net, tile, *logs[i], rows.begin, rows.end).run();
  });
  const int partitions = partition_count<Real>(p);
  int64_t offset = 0;  // the logs will lie one after the other
  for (int i = 0; a.last_step != nullptr && i < partitions; ++i) {
    const SampleRange rows = samples_of<Real>(p, i, partitions);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      if (a.last_step[row] >= 0) a.last_step[row] += offset;
    }
    offset += logs[i]->count();
  }
  for (int i = 0; i < partitions; ++i) {
    if (logs[i]->failure.row >= 0) return logs[i]->failure;
  }
  return {};
}

// What a partition of the adjoint or the loss works in.
template <class Real>
struct AdjointSpace {
  ForwardSpace<Real> forward;
  BackwardSpace<Real> backward;
  Real* path;  // the tile's own positions, for the loss
  AdjointSpace(const Problem& p, const Network<Real>& net, int kept_steps, bool with_path, Arena& arena)
      : forward(net, p.tableau.stages, kept_steps, keep_for_adjoint(net), arena),
        backward(net, p.tableau.stages, arena),
        path(arena.take<Real>(with_path ? static_cast<ptrdiff_t>(p.num_steps) * p.dim * kTile<Real> : 0)) {}
};

// Memory of an adjoint: the network, the partitions' results and their spaces, which make_space(net, arena) takes.
template <class Real, class MakeSpace>
size_t adjoint_bytes(const Problem& p, MakeSpace&& make_space) {
  Arena network(nullptr), space(nullptr);
  const Network<Real> net(p, network, true);
  make_space(net, space);
  const size_t partitions = partition_count<Real>(p);
  network.take<PartitionResult<Real>>(partitions);
  return network.used() + space.used() * partitions;
}

// Threads of an adjoint: run(net, space, result, Constant<keep>, partition, partitions) treats a partition, whose
// gradients are then reduced.
template <class Real, class MakeSpace, class Run>
void run_adjoint(const Problem& p, const Adjoint& adjoint, double* terms, char* memory, MakeSpace&& make_space,
                 Run&& run) {
  Arena arena(memory);
  const Network<Real> net(p, arena, true);
  const int partitions = partition_count<Real>(p);
  PartitionResult<Real>* results = arena.take<PartitionResult<Real>>(partitions);
  Arena counted(nullptr);
  make_space(net, counted);
  const Reduction<Real> reduction(p, adjoint, net, results, partitions);
  run_threads(partitions, [&](int thread, int threads) {
    [[maybe_unused]] const TileSession tiles;
    net.prepare(p, thread, threads, wait_for_threads);
    for (int i = thread; i < partitions; i += threads) {
      Arena own(memory + arena.used() + counted.used() * i);
      auto space = make_space(net, own);
      space.backward.clear();
      results[i] = {space.backward, {}};
      if (keep_for_adjoint(net) == Keep::kValues) {
        run(net, space, results[i], Constant<static_cast<int>(Keep::kValues)>{}, i, partitions);
      } else {
        run(net, space, results[i], Constant<static_cast<int>(Keep::kJets)>{}, i, partitions);
      }
    }
    wait_for_threads();
    if (adjoint.weight[0] != nullptr) reduction.run(thread, threads);
  });
  for (int k = 0; terms != nullptr && k < 3; ++k) {
    double sum = 0;
    for (int i = 0; i < partitions; ++i) sum += results[i].terms[k];
    terms[k] = sum / static_cast<double>(p.batch);
  }
}

// The same with fixed steps, tile by tile: run_tile(net, space, terms, Constant<Vectors>, Constant<keep>, first,
// samples).
template <class Real, class RunTile>
void run_tiles_back(const Problem& p, const Adjoint& adjoint, int kept_steps, bool with_path, double* terms,
                    char* memory, RunTile&& run_tile) {
  const auto make_space = [&](const Network<Real>& net, Arena& own) {
    return AdjointSpace<Real>(p, net, kept_steps, with_path, own);
  };
  run_adjoint<Real>(p, adjoint, terms, memory, make_space,
                    [&](const Network<Real>& net, AdjointSpace<Real>& space, PartitionResult<Real>& result, auto keep,
                        int i, int partitions) {
                      for_each_tile<Real>(p, i, partitions, [&](auto vectors, int64_t first, int samples) {
                        run_tile(net, space, result.terms, vectors, keep, first, samples);
                      });
                    });
}
template <class Real>
size_t tiles_back_bytes(const Problem& p, int kept_steps, bool with_path) {
  return adjoint_bytes<Real>(
      p, [&](const Network<Real>& net, Arena& own) { return AdjointSpace<Real>(p, net, kept_steps, with_path, own); });
}

template <class Real>
size_t backward_bytes(const Problem& p) {
  return tiles_back_bytes<Real>(p, 1, false);
}

template <class Real>
void backward(const Problem& p, const Adjoint& adjoint, char* memory) {
  run_tiles_back<Real>(p, adjoint, 1, false, nullptr, memory,
                       [&](const Network<Real>& net, AdjointSpace<Real>& space, double*, auto vectors, auto keep,
                           int64_t first, int samples) {
                         constexpr Keep kKeep = static_cast<Keep>(decltype(keep)::value);
                         backward_tile<Real, decltype(vectors)::value, kKeep>(p, adjoint, net, space.forward,
                                                                              space.backward, first, samples);
                       });
}

template <class Real>
void evaluate_backward(const Problem& p, const Adjoint& adjoint, char* memory) {
  run_tiles_back<Real>(p, adjoint, 1, false, nullptr, memory,
                       [&](const Network<Real>& net, AdjointSpace<Real>& space, double*, auto vectors, auto keep,
                           int64_t first, int samples) {
                         constexpr Keep kKeep = static_cast<Keep>(decltype(keep)::value);
                         evaluate_backward_tile<Real, decltype(vectors)::value, kKeep>(p, adjoint, net, space.forward,
                                                                                       space.backward, first, samples);
                       });
}

template <class Real>
size_t adaptive_backward_bytes(const Problem& p, const Adaptive& a) {
  return adjoint_bytes<Real>(
      p, [&](const Network<Real>& net, Arena& own) { return AdaptiveAdjointSpace<Real>(p, a, net, own); });
}

template <class Real>
void adaptive_backward(const Problem& p, const Adaptive& a, const Adjoint& adjoint, char* memory) {
  const auto make_space = [&](const Network<Real>& net, Arena& own) {
    return AdaptiveAdjointSpace<Real>(p, a, net, own);
  };
  run_adjoint<Real>(p, adjoint, nullptr, memory, make_space,
                    [&](const Network<Real>& net, AdaptiveAdjointSpace<Real>& space, PartitionResult<Real>&, auto keep,
                        int i, int partitions) {
                      constexpr Keep kKeep = static_cast<Keep>(decltype(keep)::value);
                      const SampleRange rows = samples_of<Real>(p, i, partitions);
                      RowAdjoint<Real, kKeep>(p, a, adjoint, net, space, rows.begin, rows.end).run();
                    });
}

// Steps whose stages the loss keeps: all, unless that takes more than 64 MiB a thread; memory traffic is cheaper than
// the third of the work that recomputing costs, even beyond the caches.
template <class Real>
int kept_steps(const Problem& p) {
  Arena network(nullptr), one(nullptr), two(nullptr);
  const Network<Real> net(p, network, true);
  const Keep keep = keep_for_adjoint(net);
  ForwardSpace<Real>(net, p.tableau.stages, 1, keep, one);
  ForwardSpace<Real>(net, p.tableau.stages, 2, keep, two);
  return (two.used() - one.used()) * p.num_steps <= (size_t{64} << 20) ? p.num_steps : 1;
}

template <class Real>
size_t jko_loss_bytes(const Problem& p) {
  return tiles_back_bytes<Real>(p, kept_steps<Real>(p), true);
}

template <class Real>
void jko_loss(const Problem& p, const JkoLoss& loss, const Adjoint& adjoint, char* memory) {
  const int kept = kept_steps<Real>(p);
  run_tiles_back<Real>(p, adjoint, kept, true, loss.terms, memory,
                       [&](const Network<Real>& net, AdjointSpace<Real>& space, double* terms, auto vectors, auto keep,
                           int64_t first, int samples) {
                         constexpr Keep kKeep = static_cast<Keep>(decltype(keep)::value);
                         jko_loss_tile<Real, decltype(vectors)::value, kKeep>(p, loss, adjoint, net, space.forward,
                                                                              space.backward, kept, space.path, terms,
                                                                              first, samples);
                       });
}

#define JKOFLOW_TEXT_(x) #x
#define JKOFLOW_TEXT(x) JKOFLOW_TEXT_(x)

}  // namespace

extern const CpuKernels kKernels;
const CpuKernels kKernels = {
    JKOFLOW_TEXT(JKOFLOW_ISA),
    [](const Problem& p) { return p.float64 ? forward_bytes<double>(p) : forward_bytes<float>(p); },
    [](const Problem& p) { return p.float64 ? backward_bytes<double>(p) : backward_bytes<float>(p); },
    [](const Problem& p) { return p.float64 ? jko_loss_bytes<double>(p) : jko_loss_bytes<float>(p); },
    [](const Problem& p, char* memory) { p.float64 ? forward<double>(p, memory) : forward<float>(p, memory); },
    [](const Problem& p, const Adjoint& adjoint, char* memory) {
      p.float64 ? backward<double>(p, adjoint, memory) : backward<float>(p, adjoint, memory);
    },
    [](const Problem& p, const JkoLoss& loss, const Adjoint& adjoint, char* memory) {
      p.float64 ? jko_loss<double>(p, loss, adjoint, memory) : jko_loss<float>(p, loss, adjoint, memory);
    },
    [](const Problem& p, char* memory) { p.float64 ? evaluate<double>(p, memory) : evaluate<float>(p, memory); },
    [](const Problem& p, const Adjoint& adjoint, char* memory) {
      p.float64 ? evaluate_backward<double>(p, adjoint, memory) : evaluate_backward<float>(p, adjoint, memory);
    },
    [](const Problem& p) { return p.float64 ? adaptive_bytes<double>(p) : adaptive_bytes<float>(p); },
    [](const Problem& p, const Adaptive& a) {
      return p.float64 ? adaptive_backward_bytes<double>(p, a) : adaptive_backward_bytes<float>(p, a);
    },
    [](const Problem& p, const Adaptive& a, cpu::StepLog* const* logs, char* memory) {
      return p.float64 ? adaptive<double>(p, a, logs, memory) : adaptive<float>(p, a, logs, memory);
    },
    [](const Problem& p, const Adaptive& a, const Adjoint& adjoint, char* memory) {
      p.float64 ? adaptive_backward<double>(p, a, adjoint, memory) : adaptive_backward<float>(p, a, adjoint, memory);
    },
};

}  // namespace jkoflow::JKOFLOW_ISA
