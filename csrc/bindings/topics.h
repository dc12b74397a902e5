// One function a topic: each adds its classes and functions to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace memsys {

void bind_errors(pybind11::module_& module);
void bind_plans(pybind11::module_& module);
void bind_row_store(pybind11::module_& module);
void bind_rows(pybind11::module_& module);
void bind_runtime(pybind11::module_& module);
void bind_slab(pybind11::module_& module);
void bind_store(pybind11::module_& module);
void bind_system(pybind11::module_& module);
void bind_weights(pybind11::module_& module);

}  // namespace memsys
