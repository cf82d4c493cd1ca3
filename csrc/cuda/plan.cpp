#include "plan.h"

#include <algorithm>
#include <cmath>

#include "adaptive/lane.h"
#include "arena.h"
#include "layout.h"
#include "packing.h"
#include "share.h"

namespace jkoflow::cuda {
namespace {

GradientLayout gradient_layout(const Problem& p, int H) {
  GradientLayout g{};
  g.first_stride = sum_stride(p.input_columns() + 1);
  g.narrow_stride = sum_stride(p.dim);
  const auto take = [&g](int floats) {
    const int offset = g.count;
    g.count += round_up(floats, 8);
    return offset;
  };
  g.first = take(H * g.first_stride);
  g.last = take(H * g.narrow_stride);
  if (p.hidden_layers > 1) g.hidden[0] = take(H * H);
  if (p.hidden_layers > 2 || (p.hidden_layers == 2 && p.divergence == Divergence::kExact)) g.hidden[1] = take(H * H);
  if (p.linear != nullptr) g.linear = take(round_up(p.dim, 16) * g.narrow_stride);
  for (int l = 1; l < p.hidden_layers; ++l) g.bias[l - 1] = take(H);
  g.bias_last = take(p.dim);
  if (p.hidden_layers == 1) g.trace_vector = take(H);
  return g;
}

const float* floats(const void* pointer) { return static_cast<const float*>(pointer); }
float* floats(void* pointer) { return static_cast<float*>(pointer); }

// Numbers and tensors of the problem.
void describe(const Problem& p, Call call, Params& params) {
  const bool evaluate = evaluates(call), adaptive = is_adaptive(task_of(call));
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
  params.evaluate = evaluate;
  params.beta = static_cast<float>(p.beta);
  params.t0 = p.t0;
  params.dt = adaptive ? 1.0 : (p.t1 - p.t0) / p.num_steps;  // with adaptive steps every row has its own
  for (int s = 0; s < p.tableau.stages; ++s) {
    params.b[s] = static_cast<float>(params.dt * p.tableau.b[s]);
    params.c[s] = p.tableau.c[s];
    for (int j = 0; j < s; ++j) params.a[s][j] = static_cast<float>(params.dt * p.tableau.a[s][j]);
  }
  params.x = floats(p.x);
  params.times = evaluate && p.has_time_column() ? floats(p.times) : nullptr;
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
  params.times_grad = params.times != nullptr ? floats(adjoint.times) : nullptr;
  if (params.evaluate) params.path = const_cast<float*>(params.x);  // of a step that starts there
  params.context_grad = params.context_dim > 0 ? floats(adjoint.context) : nullptr;
  params.want_parameters = adjoint.weight[0] != nullptr;
}

void describe(const Request& request, Params& params) {
  static_assert(sizeof(RecordHead) == sizeof(StepRecord));
  static_assert(kMaxSteps == int{RowFailure::kMaxSteps} && kUnderflow == int{RowFailure::kUnderflow} &&
                kNotFinite == int{RowFailure::kNotFinite});
  const Problem& p = request.problem;
  const Adaptive& a = *request.adaptive;
  const RowBuffers& rows = *request.rows;
  Stepping& s = params.stepping;
  s.rtol = a.rtol;
  s.atol = a.atol;
  s.t0 = p.t0;
  s.t1 = p.t1;
  s.direction = p.t1 < p.t0 ? -1.0 : 1.0;
  s.least_step = 1e-15 * std::max(std::fabs(p.t0), std::fabs(p.t1));
  s.max_steps = a.max_steps;
  s.order = a.order;
  s.components = p.dim + (p.divergence == Divergence::kNone ? 0 : 1);
  s.outputs = a.outputs;
  for (int i = 0; i < p.tableau.stages; ++i) {
    s.error[i] = a.error[i];
    for (int j = 0; j < i; ++j) s.a[i][j] = p.tableau.a[i][j];
    for (int k = 0; k < 4; ++k) s.dense[i][k] = a.dense[i][k];
  }
  s.output_times = rows.output_times;
  s.x_outputs = floats(a.x_outputs);
  s.logdet_outputs = floats(a.logdet_outputs);
  s.row_divergence = floats(rows.divergence);
  s.record_begin = reinterpret_cast<const long long*>(rows.record_begin);
  s.records = rows.records;
  s.record_bytes = static_cast<int>(StepRecord::bytes(p));
  s.record_count = rows.record_count;
  s.evaluations = reinterpret_cast<long long*>(a.evaluations);
  s.last_step = reinterpret_cast<long long*>(a.last_step);
  s.outcome = rows.outcome;
  // The adjoint evaluates the last stage, which has no share in the end of its step, only for outputs within.
  if (is_adjoint(task_of(request.call)) && a.outputs == 0) --params.stages;
}

void describe_finish(const Problem& p, const Adjoint& adjoint, const JkoLoss* loss, int H, Plan& plan) {
  FinishParams& f = plan.finish;
  f.gradient = plan.params.gradient;
  f.H = H;
  f.dim = p.dim;
  f.columns = plan.params.columns;
  f.layers = p.hidden_layers;
  f.traced = p.divergence == Divergence::kExact && p.hidden_layers <= 2;
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

int rounds(int count, int at_a_time) { return (count + at_a_time - 1) / at_a_time; }

// Gives each job of `finish` its thread blocks; returns how many there are.
int share_out_finish(FinishParams& f, bool parameters, bool terms) {
  int blocks = 0;
  const auto take = [&](int job, bool wanted, int count) { f.end[job] = blocks += wanted ? count : 0; };
  const auto for_threads = [](int count) { return rounds(count, kSmallThreads); };
  const int features = rounds(f.dim, kFinishColumns), top = f.width[f.layers - 1];
  int numbers = f.dim + (f.linear_grad != nullptr ? f.dim * f.dim : 0);  // of biases and linear term
  for (int l = 0; l < f.layers; ++l) numbers += f.width[l];
  take(kFinishFirst, parameters, rounds(f.width[0], 32) * rounds(f.columns, kFinishColumns));
  take(kFinishLast, parameters, for_threads(32 * top * features));
  for (int l = 1; l < kMaxLayers; ++l) {
    const bool layer = parameters && l < f.layers;
    take(kFinishHidden + l - 1, layer, for_threads(rounds(f.width[l], kFinishRows) * f.width[l - 1]));
  }
  take(kFinishVectors, parameters, for_threads(numbers));
  take(kFinishTerms, terms, 1);
  return blocks;
}

}  // namespace

Plan make_plan(const Request& request, const Choice& choice, const Gpu& gpu, int resident, void* workspace) {
  const Problem& p = request.problem;
  const Adjoint* adjoint = request.adjoint;
  const JkoLoss* loss = request.loss;
  const bool backwards = is_adjoint(choice.kind.task);
  const int H = choice.kind.H;
  Plan plan;
  plan.choice = choice;
  Params& params = plan.params;
  describe(p, request.call, params);
  if (backwards) describe(*adjoint, params);
  if (request.adaptive != nullptr) describe(request, params);
  params.layout = choice.layout;
  params.tile = choice.tile();
  if (p.batch > 0) {
    plan.resident = resident;
    const long long slots = static_cast<long long>(resident) * gpu.multiprocessors;
    const Shares shares = is_adaptive(choice.kind.task) ? share_out_rows(p.batch, slots)
                                                        : share_out(p.batch, slots, choice.tile(), choice.small_tile());
    plan.blocks = shares.blocks;
    params.share = shares.samples;
    params.large_tiles = shares.large_tiles;
    params.small_tiles = shares.small_tiles;
  }

  Arena arena(workspace);
  const int prepare_blocks = pack_weights(p, choice.kind, arena, params.packed, plan.prepare);
  if (plan.blocks > 0) plan.prepare_blocks = prepare_blocks;

  params.layout.records = choice.scratch_floats;
  const long long kept_stages =
      backwards ? static_cast<long long>(loss != nullptr ? p.num_steps : 1) * p.tableau.stages : 0;
  params.scratch_stride = choice.scratch_floats + kept_stages * round_up(choice.tile() * p.dim, 32);
  params.scratch = arena.take<float>(params.scratch_stride * plan.blocks);
  if (loss != nullptr) {
    params.mean = static_cast<float>(1.0 / static_cast<double>(p.batch));
    params.inverse_step_size = static_cast<float>(1.0 / loss->step_size);
    params.terms = arena.take<double>(3LL * plan.blocks);
    params.sample_terms = arena.take<double>(3LL * plan.blocks * choice.tile());
  }
  if (backwards) {
    params.gradient = gradient_layout(p, H);
    describe_finish(p, *adjoint, loss, H, plan);
    plan.finish.block_terms = params.terms;
    if (params.want_parameters) {
      params.partial = arena.take<float>(static_cast<long long>(params.gradient.count) * plan.blocks);
      plan.reduce = {params.partial, arena.take<float>(params.gradient.count), plan.blocks, params.gradient.count};
      plan.reduce_blocks = rounds(plan.reduce.count, kReducedNumbers);
      plan.finish.total = plan.reduce.total;
    }
    plan.finish_blocks = share_out_finish(plan.finish, params.want_parameters, loss != nullptr);
  }
  plan.bytes = arena.bytes();
  return plan;
}

Plan make_plan(const Problem& problem, Call call, const Choice& choice, const Gpu& gpu, int resident) {
  if (!is_adjoint(task_of(call))) return make_plan({call, problem}, choice, gpu, resident, nullptr);
  Adjoint adjoint;
  static float wanted;
  for (int l = 0; l <= problem.hidden_layers; ++l) adjoint.weight[l] = adjoint.bias[l] = &wanted;
  const JkoLoss loss{1.0, nullptr};
  return make_plan({call, problem, &adjoint, call == Call::kJkoLoss ? &loss : nullptr}, choice, gpu, resident, nullptr);
}

}  // namespace jkoflow::cuda
