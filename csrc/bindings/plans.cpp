// Binds the planner of addresses. A request is three numbers (bytes, begin, end) at one place of three lists.
#include <pybind11/stl.h>

#include "base/error.h"
#include "bindings/topics.h"
#include "plan/lifetime_plan.h"

namespace py = pybind11;

namespace memsys {
namespace {

using Integers = std::vector<int64_t>;

std::vector<LifetimeRequest> requests_of(const Integers& bytes, const Integers& begins, const Integers& ends) {
  MEMSYS_EXPECT(bytes.size() == begins.size() && bytes.size() == ends.size(), InputError,
                "requests: the lists of bytes, begins and ends differ in length");
  std::vector<LifetimeRequest> requests;
  for (size_t index = 0; index < bytes.size(); ++index) requests.push_back({bytes[index], begins[index], ends[index]});
  return requests;
}

py::dict plan(const Integers& bytes, const Integers& begins, const Integers& ends, int64_t alignment,
              int64_t work_limit) {
  const std::vector<LifetimeRequest> requests = requests_of(bytes, begins, ends);
  LifetimePlan found;
  {
    const py::gil_scoped_release release;
    found = plan_lifetimes(requests, {.alignment = alignment, .work_limit = work_limit});
  }
  py::dict result;
  result["offsets"] = found.offsets;
  result["peak_bytes"] = found.peak_bytes;
  result["bound_bytes"] = found.bound_bytes;
  result["order"] = found.order;
  result["round_count"] = found.round_count;
  return result;
}

}  // namespace

void bind_plans(py::module_& module) {
  module.def("plan_lifetimes", &plan, py::arg("bytes"), py::arg("begins"), py::arg("ends"), py::arg("alignment"),
             py::arg("work_limit"), "Offsets for requests of known lifetime: offsets, peak_bytes, bound_bytes, order.");
  module.def(
      "live_peak",
      [](const Integers& bytes, const Integers& begins, const Integers& ends, int64_t alignment) {
        return live_peak(requests_of(bytes, begins, ends), alignment);
      },
      py::arg("bytes"), py::arg("begins"), py::arg("ends"), py::arg("alignment"), "The most bytes alive at once.");
  module.def(
      "check_placement",
      [](const Integers& bytes, const Integers& begins, const Integers& ends, const Integers& offsets,
         int64_t alignment) { return check_placement(requests_of(bytes, begins, ends), offsets, alignment); },
      py::arg("bytes"), py::arg("begins"), py::arg("ends"), py::arg("offsets"), py::arg("alignment"),
      "The slab's size; raises RuntimeError if two that are alive at once overlap.");
}

}  // namespace memsys
