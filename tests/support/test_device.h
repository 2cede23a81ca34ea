// The devices that one test body runs on. On the test's thread.
#pragma once

#include <memory>
#include <optional>
#include <ostream>
#include <string>

#include "kernels/ops.h"

namespace headwater::testing {

struct TestDevice {
  std::string name;    // of make_ops
  bool exact = true;   // placement means nothing, to the bit (CudaOptions::deterministic)
  bool eager = false;  // a step's operations run one by one, none is recorded
};
std::ostream& operator<<(std::ostream& out, const TestDevice& device);

// A Catch generator: ref and cpu; of a program started with --device cuda the GPU instead, exact
// and not, graphs replayed and not. Nothing, after skip(), where that machine has no usable GPU.
std::optional<TestDevice> each_device();

// The pool is not owned.
std::unique_ptr<Ops> make_ops(const TestDevice& device, ThreadPool& pool);

}  // namespace headwater::testing
