#include "plan.h"

#include <algorithm>
#include <stdexcept>

#include "layout.h"
#include "share.h"

namespace jkoflow::cuda {
namespace {

constexpr size_t kLeastShared = 99 * 1024;  // that a block may have on every GPU of compute capability 8.0 or newer
constexpr size_t kReservedShared = 1024;    // that CUDA takes of each block's share
constexpr int kThreads = 256;               // of the kernels that prepare and finish

bool with_tangents(const Problem& p) { return p.hidden_layers > 2 || p.divergence == Divergence::kHutchinson; }

// For hidden layers padded to H units.
Kernel main_kernel(int H, const Problem& p, Precision precision, bool adjoint) {
  const bool tangents = with_tangents(p);
  const auto of = [&](auto forward, auto backward) {
    return adjoint ? backward(precision, tangents) : forward(precision, tangents);
  };
  switch (H) {
    case 64:
      return of(forward_kernel_of<64>, backward_kernel_of<64>);
    case 128:
      return of(forward_kernel_of<128>, backward_kernel_of<128>);
    default:
      return of(forward_kernel_of<256>, backward_kernel_of<256>);
  }
}

// Deals out pieces of the workspace; with a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(long long count) {
    char* piece = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(piece);
  }
  size_t bytes() const { return bytes_; }

 private:
  char* base_;
  size_t bytes_ = 0;
};

// The buffers of a block: those that must lie in shared memory, and those that lie there if there is room.
class BlockMemory {
 public:
  int fixed(int floats) {
    const int offset = shared_;
    shared_ += round_up(floats, 32);
    return offset;
  }
  Place flexible(int floats, size_t limit, bool in_partial = false) {
    floats = round_up(floats, 32);
    if ((static_cast<size_t>(shared_) + floats) * sizeof(float) <= limit) {
      shared_ += floats;
      return {shared_ - floats, 1};
    }
    if (in_partial) return {0, 0};
    scratch_ += floats;
    return {scratch_ - floats, 0};
  }
  size_t shared_bytes() const { return shared_ * sizeof(float); }
  int scratch() const { return scratch_; }

 private:
  int shared_ = 0, scratch_ = 0;
};

// A kernel, what it pads hidden layers to, and its buffers.
struct Choice {
  int H = 0;
  Kernel kernel;
  Layout layout{};
  BlockMemory memory;
};

void place_fixed(const Problem& p, bool adjoint, Choice& choice) {
  auto& [H, kernel, layout, memory] = choice;
  memory.fixed(kernel.panels * kernel.tile * H);
  layout.input_stride = round_up(p.input_columns() + 1, 32);
  layout.input = memory.fixed(kernel.tile * layout.input_stride);
  layout.divergence = memory.fixed(kernel.threads / 32 * kernel.tile);
  if (p.divergence == Divergence::kHutchinson) layout.noise = memory.fixed(kernel.tile * layout.input_stride);
  if (!adjoint) return;
  layout.cotangent_stride = round_up(p.dim, 32);
  layout.cotangent = memory.fixed(kernel.tile * layout.cotangent_stride);
  layout.logdet_bar = memory.fixed(kernel.tile);
}

// The kernel whose fixed buffers fit into `limit` bytes of shared memory, or come closest to it. The narrowest one if
// it can be; but wider ones carry fewer samples at a time, so that long inputs take less room.
Choice choose(const Problem& p, Precision precision, bool adjoint, size_t limit) {
  const int width = *std::max_element(p.width, p.width + p.hidden_layers);
  Choice best;
  for (const int H : {64, 128, 256}) {
    if (H < width) continue;
    Choice choice;
    choice.H = H;
    choice.kernel = main_kernel(H, p, precision, adjoint);
    place_fixed(p, adjoint, choice);
    if (best.H == 0 || choice.memory.shared_bytes() < best.memory.shared_bytes()) best = choice;
    if (best.memory.shared_bytes() <= limit) break;
  }
  return best;
}

void place_flexible(const Problem& p, bool adjoint, size_t limit, Choice& choice) {
  auto& [H, kernel, layout, memory] = choice;
  const int rows = kernel.tile * p.dim, depth = round_up(p.dim, 8);
  layout.x = memory.flexible(rows, limit);
  layout.stages = memory.flexible(p.tableau.stages * rows, limit);
  int slots = adjoint ? 1 : 0;
  if (with_tangents(p)) {
    const int hutchinson = p.divergence == Divergence::kHutchinson;
    slots = adjoint ? AdjointSlots(p.hidden_layers, hutchinson).count() : p.hidden_layers + 2 * hutchinson;
  }
  if (slots > kMaxSlots) throw std::logic_error("kMaxSlots is too small");
  for (int i = 0; i < slots; ++i) layout.slots[i] = memory.flexible(kernel.tile * H, limit);
  if (!adjoint) return;
  layout.x_bar = memory.flexible(rows, limit);
  layout.context_bar = memory.flexible(kernel.tile * p.context_dim, limit);
  layout.bias_last_sum = memory.flexible(depth, limit, true);
  layout.last_sum = memory.flexible(H * depth, limit, true);
  layout.first_sum = memory.flexible(H * round_up(p.input_columns() + 1, 8), limit, true);
  if (p.linear != nullptr) layout.linear_sum = memory.flexible(round_up(p.dim, 16) * depth, limit, true);
}

GradientLayout gradient_layout(const Problem& p, int H) {
  GradientLayout g{};
  const int depth = round_up(p.dim, 8);
  const auto take = [&g](int floats) {
    const int offset = g.count;
    g.count += round_up(floats, 8);
    return offset;
  };
  g.first = take(H * round_up(p.input_columns() + 1, 8));
  g.last = take(H * depth);
  if (p.hidden_layers > 1) g.hidden[0] = take(H * H);
  if (p.hidden_layers > 2 || (p.hidden_layers == 2 && p.divergence == Divergence::kExact)) g.hidden[1] = take(H * H);
  if (p.linear != nullptr) g.linear = take(round_up(p.dim, 16) * depth);
  for (int l = 1; l < p.hidden_layers; ++l) g.bias[l - 1] = take(H);
  g.bias_last = take(depth);
  if (p.hidden_layers == 1) g.coupling = take(H);
  return g;
}

const float* floats(const void* pointer) { return static_cast<const float*>(pointer); }
float* floats(void* pointer) { return static_cast<float*>(pointer); }

// The packed weights in the workspace, and the jobs that fill them.
class Packing {
 public:
  Packing(const Problem& p, int H, bool adjoint, Precision precision, Arena& arena, Packed& packed,
          PrepareParams& prepare)
      : arena_(arena), prepare_(prepare) {
    const int L = p.hidden_layers, columns = p.input_columns(), top = p.width[L - 1];
    const bool hutchinson = p.divergence == Divergence::kHutchinson;
    prepare.precision = static_cast<int>(precision);
    prepare.dim = p.dim;
    prepare.first_stride = columns;
    prepare.width_last = top;
    prepare.first = floats(p.weight[0]);
    prepare.last = floats(p.weight[L]);

    const int narrow = round_up(p.dim, 8), narrow_rows = round_up(p.dim, 16);
    packed.first = matrix(p.weight[0], p.width[0], columns, columns, 1, H, round_up(columns + 1, 8), p.bias[0]);
    packed.last = matrix(p.weight[L], p.dim, top, top, 1, narrow_rows, H);
    packed.bias_last = vector(p.bias[L], p.dim, narrow_rows);
    if (p.linear != nullptr) packed.linear = matrix(p.linear, p.dim, p.dim, p.dim, 1, narrow_rows, narrow);
    if (adjoint || hutchinson) packed.last_t = matrix(p.weight[L], top, p.dim, 1, top, H, narrow);
    if (adjoint) {
      packed.first_t = matrix(p.weight[0], columns, p.width[0], 1, columns, round_up(columns, 16), H);
      if (p.linear != nullptr) packed.linear_t = matrix(p.linear, p.dim, p.dim, 1, p.dim, narrow_rows, narrow);
    }
    for (int l = 1; l < L; ++l) {
      const int rows = p.width[l], depth = p.width[l - 1];
      packed.bias[l - 1] = vector(p.bias[l], rows, H);
      packed.hidden[l - 1] = matrix(p.weight[l], rows, depth, depth, 1, H, H);
      if (adjoint) packed.hidden_t[l - 1] = matrix(p.weight[l], depth, rows, 1, depth, H, H);
    }
    if (p.divergence != Divergence::kExact || L > 2) return;
    if (L == 1) {
      packed.coupling = vector(nullptr, p.width[0], H);
      last_job().coupling = kCouplingOfOneLayer;
      return;
    }
    packed.coupling = matrix(p.weight[1], p.width[1], p.width[0], p.width[0], 1, H, H);
    last_job().coupling = kCouplingMatrix;
    if (!adjoint) return;
    packed.coupling_t = matrix(p.weight[1], p.width[0], p.width[1], 1, p.width[0], H, H);
    last_job().coupling = kCouplingTransposed;
  }

  long long elements() const { return elements_; }

 private:
  float* matrix(const void* source, int rows, int columns, int row_stride, int column_stride, int padded_rows,
                int depth, const void* bias = nullptr) {
    return add({nullptr, floats(source), floats(bias), rows, columns, row_stride, column_stride, padded_rows, depth,
                kUncoupled});
  }
  float* vector(const void* source, int count, int padded) {
    return add({nullptr, floats(source), nullptr, count, 1, 1, 0, padded, 1, kUncoupled});
  }
  float* add(PackJob job) {
    if (prepare_.count == kMaxPackJobs) throw std::logic_error("kMaxPackJobs is too small");
    const long long count = static_cast<long long>(job.padded_rows) * job.depth;
    job.target = arena_.take<float>(count);
    elements_ = std::max(elements_, count);
    prepare_.jobs[prepare_.count++] = job;
    return job.target;
  }
  PackJob& last_job() { return prepare_.jobs[prepare_.count - 1]; }

  Arena& arena_;
  PrepareParams& prepare_;
  long long elements_ = 0;  // of the largest job
};

// Numbers and tensors of the problem.
void describe(const Problem& p, Params& params) {
  params.batch = p.batch;
  params.dim = p.dim;
  params.context_dim = p.context_dim;
  params.has_time = p.time;
  params.columns = p.input_columns();
  params.first_depth = round_up(params.columns + 1, 8);
  params.layers = p.hidden_layers;
  params.first_width = p.width[0];
  params.top_width = p.width[p.hidden_layers - 1];
  params.num_steps = p.num_steps;
  params.stages = p.tableau.stages;
  params.exact = p.divergence == Divergence::kExact;
  params.hutchinson = p.divergence == Divergence::kHutchinson;
  params.directions = params.hutchinson ? 1 : params.exact && p.hidden_layers > 2 ? p.dim : 0;
  params.activation = static_cast<int>(p.activation);
  params.beta = static_cast<float>(p.beta);
  params.t0 = p.t0;
  params.dt = (p.t1 - p.t0) / p.num_steps;
  const float dt = static_cast<float>(params.dt);
  for (int s = 0; s < p.tableau.stages; ++s) {
    params.b[s] = dt * static_cast<float>(p.tableau.b[s]);
    params.c[s] = p.tableau.c[s];
    for (int j = 0; j < s; ++j) params.a[s][j] = dt * static_cast<float>(p.tableau.a[s][j]);
  }
  params.x = floats(p.x);
  params.context = floats(p.context);
  params.noise = floats(p.noise);
  params.first = floats(p.weight[0]);
  params.last = floats(p.weight[p.hidden_layers]);
  params.x_end = floats(p.x_end);
  params.logdet = floats(p.logdet);
  params.path = floats(p.path);
}

void describe(const Adjoint& adjoint, Params& params) {
  params.x_end_bar = floats(adjoint.x_end);
  params.logdet_bar = floats(adjoint.logdet);
  params.path_bar = floats(adjoint.path);
  params.x_grad = floats(adjoint.x);
  params.context_grad = params.context_dim > 0 ? floats(adjoint.context) : nullptr;
  params.want_parameters = adjoint.weight[0] != nullptr;
}

void describe_finish(const Problem& p, const Adjoint& adjoint, const JkoLoss* loss, int H, Plan& plan) {
  FinishParams& f = plan.finish;
  f.gradient = plan.params.gradient;
  f.H = H;
  f.dim = p.dim;
  f.columns = plan.params.columns;
  f.first_depth = plan.params.first_depth;
  f.layers = p.hidden_layers;
  f.coupled = p.divergence == Divergence::kExact && p.hidden_layers <= 2;
  for (int l = 0; l <= p.hidden_layers; ++l) {
    if (l < p.hidden_layers) f.width[l] = p.width[l];
    f.weight[l] = floats(p.weight[l]);
    f.weight_grad[l] = floats(adjoint.weight[l]);
    f.bias_grad[l] = floats(adjoint.bias[l]);
  }
  f.linear_grad = p.linear == nullptr ? nullptr : floats(adjoint.linear);
  f.blocks = plan.blocks;
  if (loss != nullptr) {
    f.terms = loss->terms;
    f.mean = 1.0 / static_cast<double>(p.batch);
    f.half_inverse_step_size = 0.5 / loss->step_size;
  }
}

int blocks_for(long long threads, int multiprocessors) {
  return static_cast<int>(std::clamp<long long>((threads + kThreads - 1) / kThreads, 1, 8LL * multiprocessors));
}

}  // namespace

std::string unsupported(const Problem& p, Precision precision) {
  const auto text = [](long long n) { return std::to_string(n); };
  if (p.float64) return "compute in float32, x is float64";
  if (p.hidden_layers < 1 || p.hidden_layers > kMaxLayers) {
    return "have 1 to " + text(kMaxLayers) + " hidden layers, the velocity has " + text(p.hidden_layers);
  }
  for (int l = 0; l < p.hidden_layers; ++l) {
    if (p.width[l] > 256) return "have hidden layers of up to 256 units, the velocity has one of " + text(p.width[l]);
  }
  if (p.dim > 128) return "take up to 128 features, x has " + text(p.dim);
  if (p.tableau.stages > kMaxTableau) {
    return "know methods of up to " + text(kMaxTableau) + " stages, this one has " + text(p.tableau.stages);
  }
  const auto least = [&](bool adjoint) { return choose(p, precision, adjoint, kLeastShared).memory.shared_bytes(); };
  const size_t most = std::max(least(false), least(true));
  if (most > kLeastShared) {
    return "have " + text(kLeastShared) + " bytes of shared memory, " + text(p.context_dim) +
           " context variables would take it to " + text(static_cast<long long>(most));
  }
  return "";
}

Plan make_plan(const Problem& p, const Adjoint* adjoint, const JkoLoss* loss, const Launch& launch) {
  const std::string reason = unsupported(p, launch.precision);
  if (!reason.empty()) throw std::runtime_error("the CUDA kernels " + reason);
  const runtime::Device device = runtime::device_limits();
  const bool backwards = adjoint != nullptr;
  Plan plan;
  Params& params = plan.params;
  describe(p, params);
  if (backwards) describe(*adjoint, params);

  Choice choice = choose(p, launch.precision, backwards, device.shared_per_block);
  const auto& [H, kernel, layout, memory] = choice;
  size_t limit = std::min(device.shared_per_block, device.shared_per_multiprocessor / kernel.blocks - kReservedShared);
  if (memory.shared_bytes() > limit) limit = device.shared_per_block;
  place_flexible(p, backwards, limit, choice);
  plan.kernel = kernel;
  params.layout = layout;
  plan.shared_bytes = memory.shared_bytes();
  params.tile = kernel.tile;
  if (p.batch > 0) {
    const int resident = runtime::blocks_per_multiprocessor(kernel, plan.shared_bytes) * device.multiprocessors;
    const Shares shares = share_out(p.batch, resident, kernel.tile, kernel.small_tile);
    plan.blocks = shares.blocks;
    params.share = shares.samples;
    params.large_tiles = shares.large_tiles;
    params.small_tiles = shares.small_tiles;
  }

  Arena arena(launch.workspace);
  const Packing packing(p, H, backwards, launch.precision, arena, params.packed, plan.prepare);
  plan.prepare_blocks = blocks_for(packing.elements(), device.multiprocessors);

  params.layout.records = memory.scratch();
  const long long kept_stages =
      backwards ? static_cast<long long>(loss != nullptr ? p.num_steps : 1) * p.tableau.stages : 0;
  params.scratch_stride = memory.scratch() + kept_stages * round_up(plan.kernel.tile * p.dim, 32);
  params.scratch = arena.take<float>(params.scratch_stride * plan.blocks);
  if (loss != nullptr) {
    params.mean = static_cast<float>(1.0 / static_cast<double>(p.batch));
    params.inverse_step_size = static_cast<float>(1.0 / loss->step_size);
    params.terms = arena.take<double>(3LL * plan.blocks);
    params.sample_terms = arena.take<double>(3LL * plan.blocks * plan.kernel.tile);
  }
  if (backwards) {
    params.gradient = gradient_layout(p, H);
    describe_finish(p, *adjoint, loss, H, plan);
    plan.finish.block_terms = params.terms;
    if (params.want_parameters) {
      params.partial = arena.take<float>(static_cast<long long>(params.gradient.count) * plan.blocks);
      plan.reduce = {params.partial, arena.take<float>(params.gradient.count), plan.blocks, params.gradient.count};
      plan.finish.total = plan.reduce.total;
    }
    if (params.want_parameters || loss != nullptr) {
      plan.finish_blocks =
          params.want_parameters ? blocks_for(static_cast<long long>(H) * H, device.multiprocessors) : 1;
    }
  }
  plan.bytes = arena.bytes();
  return plan;
}

}  // namespace jkoflow::cuda
