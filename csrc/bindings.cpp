// The Python module _C: pointers and sizes in, error text out. Neither includes nor links torch, so that one build
// serves every version of it; jkoflow/ops/native.py owns the tensors and checks the shapes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#ifdef JKOFLOW_HAVE_CUDA
#include "cuda/launch.h"
#endif

namespace py = pybind11;

namespace {

using jkoflow::Adjoint;
using jkoflow::JkoLoss;
using jkoflow::Problem;

// Addresses cross the border as integers; 0 is null.
template <class Class, class Pointer>
void address(py::class_<Class>& cls, const char* name, Pointer Class::* member) {
  cls.def_property(
      name, [member](const Class& c) { return reinterpret_cast<uintptr_t>(c.*member); },
      [member](Class& c, uintptr_t value) { c.*member = reinterpret_cast<Pointer>(value); });
}

template <class Class, class Pointer, size_t N>
void addresses(py::class_<Class>& cls, const char* name, Pointer (Class::*member)[N]) {
  cls.def_property(
      name,
      [member](const Class& c) {
        std::vector<uintptr_t> values;
        for (const Pointer p : c.*member) values.push_back(reinterpret_cast<uintptr_t>(p));
        return values;
      },
      [member, name](Class& c, const std::vector<uintptr_t>& values) {
        if (values.size() > N) {
          throw py::value_error(std::string(name) + " takes at most " + std::to_string(N) + " addresses");
        }
        for (size_t i = 0; i < N; ++i)
          (c.*member)[i] = i < values.size() ? reinterpret_cast<Pointer>(values[i]) : nullptr;
      });
}

jkoflow::Tableau make_tableau(const std::vector<std::vector<double>>& a, const std::vector<double>& b,
                              const std::vector<double>& c) {
  jkoflow::Tableau t;
  if (b.size() > jkoflow::kMaxStages || a.size() != b.size() || c.size() != b.size()) {
    throw py::value_error("a tableau has up to " + std::to_string(jkoflow::kMaxStages) + " stages");
  }
  t.stages = static_cast<int>(b.size());
  for (size_t i = 0; i < b.size(); ++i) {
    if (a[i].size() != i) throw py::value_error("row i of a tableau has i entries");
    for (size_t j = 0; j < i; ++j) t.a[i][j] = a[i][j];
    t.b[i] = b[i];
    t.c[i] = c[i];
  }
  return t;
}

#ifdef JKOFLOW_HAVE_CUDA
void bind_cuda(py::module_& m) {
  namespace cuda = jkoflow::cuda;
  using Unlocked = py::call_guard<py::gil_scoped_release>;

  py::enum_<cuda::Precision>(m, "Precision")
      .value("fp32", cuda::Precision::kFp32)
      .value("tf32x3", cuda::Precision::kTf32x3)
      .value("tf32", cuda::Precision::kTf32);

  py::class_<cuda::Launch> launch(m, "CudaLaunch");
  launch.def(py::init<>())
      .def_readwrite("device", &cuda::Launch::device)
      .def_readwrite("precision", &cuda::Launch::precision);
  address(launch, "stream", &cuda::Launch::stream);
  address(launch, "workspace", &cuda::Launch::workspace);

  m.def("cuda_device_count", &cuda::device_count, Unlocked());
  m.def("cuda_device_problem", &cuda::device_problem, Unlocked(), "Why no CUDA device can be used; empty if one can");
  m.def("cuda_unsupported", &cuda::unsupported, Unlocked(), "Completes 'the CUDA kernels ...'; empty if they can");
  m.def("cuda_forward_bytes", &cuda::forward_bytes, Unlocked());
  m.def("cuda_backward_bytes", &cuda::backward_bytes, Unlocked());
  m.def("cuda_jko_loss_bytes", &cuda::jko_loss_bytes, Unlocked());
  m.def("cuda_forward", &cuda::forward, Unlocked());
  m.def("cuda_backward", &cuda::backward, Unlocked());
  m.def("cuda_jko_loss", &cuda::jko_loss, Unlocked());
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of jkoflow";
  m.attr("max_hidden_layers") = jkoflow::kMaxHidden;
  m.attr("has_openmp") = jkoflow::cpu::has_openmp();

  py::enum_<jkoflow::ActivationKind>(m, "ActivationKind")
      .value("tanh", jkoflow::ActivationKind::kTanh)
      .value("softplus", jkoflow::ActivationKind::kSoftplus)
      .value("silu", jkoflow::ActivationKind::kSilu);

  py::enum_<jkoflow::Divergence>(m, "Divergence")
      .value("none", jkoflow::Divergence::kNone)
      .value("exact", jkoflow::Divergence::kExact)
      .value("hutchinson", jkoflow::Divergence::kHutchinson);

  py::class_<jkoflow::Tableau>(m, "Tableau").def(py::init(&make_tableau), py::arg("a"), py::arg("b"), py::arg("c"));

  py::class_<Problem> problem(m, "Problem");
  problem.def(py::init<>())
      .def(py::init<const Problem&>())
      .def_readwrite("float64", &Problem::float64)
      .def_readwrite("batch", &Problem::batch)
      .def_readwrite("dim", &Problem::dim)
      .def_readwrite("context_dim", &Problem::context_dim)
      .def_readwrite("time", &Problem::time)
      .def_readwrite("divergence", &Problem::divergence)
      .def_readwrite("activation", &Problem::activation)
      .def_readwrite("beta", &Problem::beta)
      .def_readwrite("t0", &Problem::t0)
      .def_readwrite("t1", &Problem::t1)
      .def_readwrite("num_steps", &Problem::num_steps)
      .def_readwrite("tableau", &Problem::tableau)
      .def_readwrite("threads", &Problem::threads)
      .def_readwrite("split", &Problem::split)
      .def_property(
          "hidden", [](const Problem& p) { return std::vector<int>(p.width, p.width + p.hidden_layers); },
          [](Problem& p, const std::vector<int>& widths) {
            if (widths.empty() || widths.size() > jkoflow::kMaxHidden) {
              throw py::value_error("hidden takes 1 to " + std::to_string(jkoflow::kMaxHidden) + " widths");
            }
            p.hidden_layers = static_cast<int>(widths.size());
            for (size_t i = 0; i < widths.size(); ++i) p.width[i] = widths[i];
          });
  address(problem, "x", &Problem::x);
  address(problem, "context", &Problem::context);
  address(problem, "noise", &Problem::noise);
  addresses(problem, "weights", &Problem::weight);
  addresses(problem, "biases", &Problem::bias);
  address(problem, "linear", &Problem::linear);
  address(problem, "x_end", &Problem::x_end);
  address(problem, "logdet", &Problem::logdet);
  address(problem, "path", &Problem::path);

  py::class_<Adjoint> adjoint(m, "Adjoint");
  adjoint.def(py::init<>());
  address(adjoint, "x_end", &Adjoint::x_end);
  address(adjoint, "logdet", &Adjoint::logdet);
  address(adjoint, "path", &Adjoint::path);
  address(adjoint, "x", &Adjoint::x);
  address(adjoint, "context", &Adjoint::context);
  addresses(adjoint, "weights", &Adjoint::weight);
  addresses(adjoint, "biases", &Adjoint::bias);
  address(adjoint, "linear", &Adjoint::linear);

  py::class_<JkoLoss> loss(m, "JkoLoss");
  loss.def(py::init<>()).def_readwrite("step_size", &JkoLoss::step_size);
  address(loss, "terms", &JkoLoss::terms);

  m.def("cpu_isas", &jkoflow::cpu::available_isas, "Instruction sets that this build and processor share, best first");
  m.def("cpu_split_problem", &jkoflow::cpu::split_problem, "Why Problem.split cannot be had, or an empty text");
  m.def("cpu_isa", [] { return jkoflow::cpu::kernels().isa; }, "The instruction set in use");
  m.def("cpu_forward", &jkoflow::cpu::forward, py::call_guard<py::gil_scoped_release>());
  m.def("cpu_backward", &jkoflow::cpu::backward, py::call_guard<py::gil_scoped_release>());
  m.def("cpu_jko_loss", &jkoflow::cpu::jko_loss, py::call_guard<py::gil_scoped_release>());

#ifdef JKOFLOW_HAVE_CUDA
  m.attr("has_cuda") = true;
  m.attr("cuda_architectures") = JKOFLOW_CUDA_ARCHITECTURES;
  bind_cuda(m);
#else
  m.attr("has_cuda") = false;
#endif
}
