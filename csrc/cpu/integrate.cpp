// Whole integrations on one instruction set, with their adjoint and the fused loss.
#include "kernels.h"
#include "reduction.h"
#include "steps.h"

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

template <class Real>
void forward(const Problem& p, char* memory) {
  Arena arena(memory);
  const Network<Real> net(p, arena, false);
  const int partitions = partition_count<Real>(p);
  Arena counted(nullptr);
  ForwardSpace<Real>(net, p.tableau.stages, 1, Keep::kNothing, counted);
  run_threads(partitions, [&](int thread, int threads) {
    [[maybe_unused]] const TileSession tiles;
    net.prepare(p, thread, threads, wait_for_threads);
    for (int i = thread; i < partitions; i += threads) {
      Arena own(memory + arena.used() + counted.used() * i);
      const ForwardSpace<Real> space(net, p.tableau.stages, 1, Keep::kNothing, own);
      for_each_tile<Real>(p, i, partitions, [&](auto vectors, int64_t first, int samples) {
        forward_tile<Real, decltype(vectors)::value>(p, net, space, first, samples);
      });
    }
  });
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

// Memory and threads of the adjoint and of the loss, which differ in what they do with a tile.
template <class Real>
size_t adjoint_bytes(const Problem& p, int kept_steps, bool with_path) {
  Arena network(nullptr), space(nullptr);
  const Network<Real> net(p, network, true);
  AdjointSpace<Real>(p, net, kept_steps, with_path, space);
  const size_t partitions = partition_count<Real>(p);
  network.take<PartitionResult<Real>>(partitions);
  return network.used() + space.used() * partitions;
}

// run_tile(net, space, terms, Constant<Vectors>, Constant<keep>, first, samples) treats each tile.
template <class Real, class RunTile>
void run_adjoint(const Problem& p, const Adjoint& adjoint, int kept_steps, bool with_path, double* terms, char* memory,
                 RunTile&& run_tile) {
  Arena arena(memory);
  const Network<Real> net(p, arena, true);
  const int partitions = partition_count<Real>(p);
  PartitionResult<Real>* results = arena.take<PartitionResult<Real>>(partitions);
  Arena counted(nullptr);
  AdjointSpace<Real>(p, net, kept_steps, with_path, counted);
  const Reduction<Real> reduction(p, adjoint, net, results, partitions);
  run_threads(partitions, [&](int thread, int threads) {
    [[maybe_unused]] const TileSession tiles;
    net.prepare(p, thread, threads, wait_for_threads);
    for (int i = thread; i < partitions; i += threads) {
      Arena own(memory + arena.used() + counted.used() * i);
      AdjointSpace<Real> space(p, net, kept_steps, with_path, own);
      space.backward.clear();
      results[i] = {space.backward, {}};
      for_each_tile<Real>(p, i, partitions, [&](auto vectors, int64_t first, int samples) {
        const auto run = [&](auto keep) { run_tile(net, space, results[i].terms, vectors, keep, first, samples); };
        if (keep_for_adjoint(net) == Keep::kValues) {
          run(Constant<static_cast<int>(Keep::kValues)>{});
        } else {
          run(Constant<static_cast<int>(Keep::kJets)>{});
        }
      });
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

template <class Real>
size_t backward_bytes(const Problem& p) {
  return adjoint_bytes<Real>(p, 1, false);
}

template <class Real>
void backward(const Problem& p, const Adjoint& adjoint, char* memory) {
  run_adjoint<Real>(p, adjoint, 1, false, nullptr, memory,
                    [&](const Network<Real>& net, AdjointSpace<Real>& space, double*, auto vectors, auto keep,
                        int64_t first, int samples) {
                      constexpr Keep kKeep = static_cast<Keep>(decltype(keep)::value);
                      backward_tile<Real, decltype(vectors)::value, kKeep>(p, adjoint, net, space.forward,
                                                                           space.backward, first, samples);
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
  return adjoint_bytes<Real>(p, kept_steps<Real>(p), true);
}

template <class Real>
void jko_loss(const Problem& p, const JkoLoss& loss, const Adjoint& adjoint, char* memory) {
  const int kept = kept_steps<Real>(p);
  run_adjoint<Real>(p, adjoint, kept, true, loss.terms, memory,
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
};

}  // namespace jkoflow::JKOFLOW_ISA
