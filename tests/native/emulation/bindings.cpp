// The Python module _emulation: the CUDA backend on the emulator, for descriptions of jkoflow._C with host pointers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>

#include "../cuda/mma_layout.h"
#include "emulated_runtime.h"
#include "emulator.h"
#include "faulty_kernels.h"
#include "launch.h"

namespace py = pybind11;
using namespace jkoflow;

namespace {

constexpr std::pair<const char*, cuda::Call> kCalls[] = {{"forward", cuda::Call::kForward},
                                                         {"backward", cuda::Call::kBackward},
                                                         {"jko_loss", cuda::Call::kJkoLoss},
                                                         {"evaluate", cuda::Call::kEvaluate},
                                                         {"evaluate_backward", cuda::Call::kEvaluateBackward},
                                                         {"adaptive", cuda::Call::kAdaptive},
                                                         {"adaptive_backward", cuda::Call::kAdaptiveBackward}};

cuda::Launch make_launch(cuda::Precision precision, uintptr_t workspace) {
  cuda::Launch launch;
  launch.precision = precision;
  launch.workspace = reinterpret_cast<void*>(workspace);
  return launch;
}

}  // namespace

PYBIND11_MODULE(_emulation, m) {
  py::module_::import("jkoflow._C");  // its classes are arguments here

  py::enum_<emulator::Order>(m, "Order", py::module_local())  // there are emulations of two architectures
      .value("ascending", emulator::Order::kAscending)
      .value("descending", emulator::Order::kDescending)
      .value("random", emulator::Order::kRandom);

  m.attr("barriers") = static_cast<int>(cuda::Barrier::kCount);
  m.def("configure", &cuda::runtime::configure, py::arg("multiprocessors") = 1, py::arg("shared_bytes") = 227 * 1024);
  m.def(
      "set",
      [](emulator::Order order, bool truncate, bool approximate) {
        emulator::settings().order = order;
        emulator::settings().truncate = truncate;
        emulator::settings().approximate = approximate;
      },
      py::arg("order") = emulator::Order::kAscending, py::arg("truncate") = false, py::arg("approximate") = false);
  m.def("counts", [] {
    const emulator::Counts c = emulator::counts();
    emulator::counts() = {};
    py::dict counts;
    counts["tensor_products"] = c.tensor_products;
    counts["block_barriers"] = c.block_barriers;
    counts["warp_barriers"] = c.warp_barriers;
    counts["shuffles"] = c.shuffles;
    return counts;
  });

  for (const auto& [name, call] : kCalls) {
    m.def((std::string(name) + "_bytes").c_str(), [call = call](const Problem& p, cuda::Precision precision) {
      return cuda::workspace_bytes(p, call, make_launch(precision, 0));
    });
  }
  m.def("forward", [](const Problem& p, cuda::Precision precision, uintptr_t workspace) {
    cuda::forward(p, make_launch(precision, workspace));
  });
  m.def("evaluate", [](const Problem& p, cuda::Precision precision, uintptr_t workspace) {
    cuda::evaluate(p, make_launch(precision, workspace));
  });
  m.def("evaluate_backward",
        [](const Problem& p, const Adjoint& adjoint, cuda::Precision precision, uintptr_t workspace) {
          cuda::evaluate_backward(p, adjoint, make_launch(precision, workspace));
        });
  m.def("adaptive",
        [](const Problem& p, const Adaptive& control, const cuda::RowBuffers& rows, cuda::Precision precision,
           uintptr_t workspace) { cuda::adaptive(p, control, rows, make_launch(precision, workspace)); });
  m.def("adaptive_backward", [](const Problem& p, const Adaptive& control, const cuda::RowBuffers& rows,
                                const Adjoint& adjoint, cuda::Precision precision, uintptr_t workspace) {
    cuda::adaptive_backward(p, control, rows, adjoint, make_launch(precision, workspace));
  });
  m.def("backward", [](const Problem& p, const Adjoint& adjoint, cuda::Precision precision, uintptr_t workspace) {
    cuda::backward(p, adjoint, make_launch(precision, workspace));
  });
  m.def("jko_loss", [](const Problem& p, const JkoLoss& loss, const Adjoint& adjoint, cuda::Precision precision,
                       uintptr_t workspace) { cuda::jko_loss(p, loss, adjoint, make_launch(precision, workspace)); });

  m.def("mma_layout_errors", &mma_layout_errors, "Wrong elements of one tensor product against the documented layout");
  m.def("warp_group_layout_errors", &warp_group_layout_errors, "The same for the product of a warp group");
  m.def("run_faulty", &run_faulty, "Runs a deliberately wrong kernel and returns what it computed");
}
