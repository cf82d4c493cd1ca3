#include "call.h"

#include <memory>

#include "tensors.h"

namespace jkoflow::test {
namespace {

template <class Real>
Tensors<double> forward_as(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                           const Options& options) {
  Call<Real> call(c, in, options);
  Problem& p = call.problem;
  p.x_end = call.output("x_end", c.batch * c.dim);
  p.logdet = call.output("logdet", c.batch);
  if (options.path) p.path = call.output("path", (c.num_steps + 1) * c.batch * c.dim);
  if (kernels == nullptr) {
    cpu::forward(p);
  } else {
    call.with_memory(kernels->forward_bytes(p), [&](char* memory) { kernels->forward(p, memory); });
  }
  return call.results();
}

template <class Real>
Tensors<double> backward_as(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                            const Options& options) {
  Call<Real> call(c, in, options);
  Problem& p = call.problem;
  p.path = call.input("path");
  call.adjoint.x_end = call.input("bar x_end");
  call.adjoint.logdet = call.input("bar logdet");
  call.adjoint.path = call.input("bar path");
  call.want_gradients();
  if (kernels == nullptr) {
    cpu::backward(p, call.adjoint);
  } else {
    call.with_memory(kernels->backward_bytes(p), [&](char* memory) { kernels->backward(p, call.adjoint, memory); });
  }
  return call.results();
}

template <class Real>
Tensors<double> jko_loss_as(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, double step_size,
                            const Options& options) {
  Call<Real> call(c, in, options);
  const Buffer terms(alignof(double), 0, 3 * sizeof(double));
  fill_with<double>(options.fill, terms.data(), 3 * sizeof(double));
  JkoLoss loss;
  loss.step_size = step_size;
  loss.terms = reinterpret_cast<double*>(terms.data());
  call.want_gradients();
  if (kernels == nullptr) {
    cpu::jko_loss(call.problem, loss, call.adjoint);
  } else {
    call.with_memory(kernels->jko_loss_bytes(call.problem),
                     [&](char* memory) { kernels->jko_loss(call.problem, loss, call.adjoint, memory); });
  }
  Tensors<double> out = call.results();
  out["terms"].assign(loss.terms, loss.terms + 3);
  return out;
}

template <class Real>
Tensors<double> evaluate_as(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                            const Options& options) {
  Call<Real> call(c, in, options);
  Problem& p = call.as_evaluation();
  p.x_end = call.output("x_end", c.batch * c.dim);
  p.logdet = call.output("logdet", c.batch);
  if (kernels == nullptr) {
    cpu::evaluate(p);
  } else {
    call.with_memory(kernels->forward_bytes(p), [&](char* memory) { kernels->evaluate(p, memory); });
  }
  return call.results();
}

template <class Real>
Tensors<double> evaluate_backward_as(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                                     const Options& options) {
  Call<Real> call(c, in, options);
  Problem& p = call.as_evaluation();
  call.adjoint.x_end = call.input("bar x_end");
  call.adjoint.logdet = call.input("bar logdet");
  call.want_gradients();
  if (options.x && c.time) call.adjoint.times = call.output("grad times", c.batch);
  if (kernels == nullptr) {
    cpu::evaluate_backward(p, call.adjoint);
  } else {
    call.with_memory(kernels->backward_bytes(p),
                     [&](char* memory) { kernels->evaluate_backward(p, call.adjoint, memory); });
  }
  return call.results();
}

// What AdaptiveRun does, with memory and logs of the test's own.
RowFailure run_adaptive(const CpuKernels& kernels, const Problem& p, const Adaptive& a, int64_t record_bytes,
                        char* memory, std::vector<char>& records) {
  std::vector<std::unique_ptr<cpu::StepLog>> owned;
  std::vector<cpu::StepLog*> logs;
  for (int i = 0; i < p.threads; ++i) {
    owned.push_back(std::make_unique<cpu::StepLog>(record_bytes));
    logs.push_back(owned.back().get());
  }
  const RowFailure failure = kernels.adaptive(p, a, logs.data(), memory);
  int64_t count = 0;
  for (const cpu::StepLog* log : logs) {
    const Buffer out(alignof(double), 0, log->bytes());
    log->write(out.data(), count);
    records.insert(records.end(), out.data(), out.data() + log->bytes());
    count += log->count();
  }
  return failure;
}

template <class Real>
Tensors<double> adaptive_as(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                            const Options& options) {
  Call<Real> call(c, in, options);
  Problem& p = call.problem;
  Adaptive a = call.control();
  p.x_end = call.output("x_end", c.batch * c.dim);
  p.logdet = call.output("logdet", c.batch);
  a.x_outputs = call.output("x_outputs", c.outputs() * c.batch * c.dim);
  a.logdet_outputs = call.output("logdet_outputs", c.outputs() * c.batch);
  if (options.evaluations) a.evaluations = call.template output<int64_t>("evaluations", c.batch);
  if (options.records) a.last_step = call.template output<int64_t>("last_step", c.batch);
  std::vector<char> records;
  RowFailure failure;
  if (kernels == nullptr) {
    const cpu::AdaptiveRun run(p, a);
    failure = run.failure();
    records.resize(run.steps() * StepRecord::bytes(p));
    run.write(records.data());
  } else {
    const int64_t record_bytes = StepRecord::bytes(p) - (options.shortened == "log" ? sizeof(double) : 0);
    call.with_memory(kernels->adaptive_bytes(p),
                     [&](char* memory) { failure = run_adaptive(*kernels, p, a, record_bytes, memory, records); });
  }
  Tensors<double> out = call.results();
  if (options.records) call.give_records(records, out);
  out["failure"] = {static_cast<double>(failure.row), static_cast<double>(failure.reason), failure.t, failure.dt};
  return out;
}

template <class Real>
Tensors<double> adaptive_backward_as(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                                     const Options& options) {
  Call<Real> call(c, in, options);
  Problem& p = call.problem;
  Adaptive a = call.control();
  a.last_step = call.template input<int64_t>("last_step");
  a.records = call.records();
  call.adjoint.x_end = call.input("bar x_end");
  call.adjoint.logdet = call.input("bar logdet");
  a.x_outputs = call.input("bar x_outputs");
  a.logdet_outputs = call.input("bar logdet_outputs");
  call.want_gradients();
  if (kernels == nullptr) {
    cpu::adaptive_backward(p, a, call.adjoint);
  } else {
    call.with_memory(kernels->adaptive_backward_bytes(p, a),
                     [&](char* memory) { kernels->adaptive_backward(p, a, call.adjoint, memory); });
  }
  return call.results();
}

template <class Real>
Tensors<double> stagewise_as(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                             const StepOptions& how, const Options& options) {
  Call<Real> call(c, in, options);
  StagewiseStep step;
  step.dt = c.t1 - c.t0;
  step.stages = how.stages;
  step.start_known = how.start_known;
  step.start = {const_cast<void*>(call.problem.x), call.input("x_rest"), call.input("start logdet"),
                call.input("logdet_rest")};
  step.end = {call.output("x_end", c.batch * c.dim), call.output("x_end_rest", c.batch * c.dim),
              call.output("logdet", c.batch), call.output("logdet_end_rest", c.batch)};
  Real* velocity = call.output("velocity", how.stages * c.batch * c.dim);
  Real* divergence = call.output("divergence", how.stages * c.batch);
  if (how.start_known) {
    for (int64_t i = 0; i < c.batch * c.dim; ++i) velocity[i] = static_cast<Real>(in.at("start velocity")[i]);
    for (int64_t i = 0; i < c.batch; ++i) divergence[i] = static_cast<Real>(in.at("start divergence")[i]);
  }
  step.velocity = velocity;
  step.divergence = divergence;
  Adaptive adaptive;
  if (how.stages == tableau(c.method).stages && tableau(c.method).b[how.stages - 1] == 0) {
    adaptive = embedded(c.method);
    adaptive.rtol = c.rtol;
    adaptive.atol = c.atol;
    step.errors = call.template output<double>("errors", c.batch);
  }
  if (kernels == nullptr) {
    cpu::stagewise(call.problem, step, adaptive);
  } else {
    const StagewiseKernels& k = cpu::stagewise_kernels(*kernels);
    call.with_memory(k.forward_bytes(call.problem, step),
                     [&](char* memory) { k.forward(call.problem, step, adaptive, memory); });
  }
  return call.results();
}

template <class Real>
Tensors<double> stagewise_backward_as(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                                      const StepOptions& how, const Options& options) {
  Call<Real> call(c, in, options);
  StagewiseStep step;
  step.dt = c.t1 - c.t0;
  step.stages = how.stages;
  step.start.x = const_cast<void*>(call.problem.x);
  step.velocity = call.input("bar velocity");
  step.divergence = call.input("bar divergence");
  call.adjoint.x_end = call.input("bar x_end");
  call.adjoint.logdet = call.input("bar logdet");
  call.want_gradients();
  if (call.adjoint.context != nullptr) {  // to which the kernels add
    std::memset(call.adjoint.context, 0, sizeof(Real) * static_cast<size_t>(c.batch * c.context_dim));
  }
  if (kernels == nullptr) {
    cpu::stagewise_backward(call.problem, step, call.adjoint);
  } else {
    const StagewiseKernels& k = cpu::stagewise_kernels(*kernels);
    call.with_memory(k.backward_bytes(call.problem, step),
                     [&](char* memory) { k.backward(call.problem, step, call.adjoint, memory); });
  }
  return call.results();
}

}  // namespace

Tensors<double> forward(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, const Options& options) {
  return c.float64 ? forward_as<double>(kernels, c, in, options) : forward_as<float>(kernels, c, in, options);
}

Tensors<double> backward(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, const Options& options) {
  return c.float64 ? backward_as<double>(kernels, c, in, options) : backward_as<float>(kernels, c, in, options);
}

Tensors<double> jko_loss(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, double step_size,
                         const Options& options) {
  return c.float64 ? jko_loss_as<double>(kernels, c, in, step_size, options)
                   : jko_loss_as<float>(kernels, c, in, step_size, options);
}

Tensors<double> evaluate(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, const Options& options) {
  return c.float64 ? evaluate_as<double>(kernels, c, in, options) : evaluate_as<float>(kernels, c, in, options);
}

Tensors<double> evaluate_backward(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                                  const Options& options) {
  return c.float64 ? evaluate_backward_as<double>(kernels, c, in, options)
                   : evaluate_backward_as<float>(kernels, c, in, options);
}

Tensors<double> adaptive(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, const Options& options) {
  return c.float64 ? adaptive_as<double>(kernels, c, in, options) : adaptive_as<float>(kernels, c, in, options);
}

Tensors<double> adaptive_backward(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                                  const Options& options) {
  return c.float64 ? adaptive_backward_as<double>(kernels, c, in, options)
                   : adaptive_backward_as<float>(kernels, c, in, options);
}

Tensors<double> stagewise(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, const StepOptions& step,
                          const Options& options) {
  return c.float64 ? stagewise_as<double>(kernels, c, in, step, options)
                   : stagewise_as<float>(kernels, c, in, step, options);
}

Tensors<double> stagewise_backward(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                                   const StepOptions& step, const Options& options) {
  return c.float64 ? stagewise_backward_as<double>(kernels, c, in, step, options)
                   : stagewise_backward_as<float>(kernels, c, in, step, options);
}

}  // namespace jkoflow::test
