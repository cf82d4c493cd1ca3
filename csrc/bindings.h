// What the sources of the Python module _C share.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace jkoflow::bindings {

namespace py = pybind11;

void bind_cuda(py::module_& m);  // cuda/bindings.cpp

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

}  // namespace jkoflow::bindings
