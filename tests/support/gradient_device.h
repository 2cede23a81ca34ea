// The GradientOps that one test body runs on. On the test's thread.
#pragma once

#include <memory>

#include "kernels/gradient/gradient_ops.h"
#include "tests/support/skip.h"

namespace headwater::testing {

// The GPU's, or nothing, after skip(), where this build or machine has none.
inline std::unique_ptr<GradientOps> cuda_gradient_ops_or_skip() {
  if (const std::string obstacle = cuda_obstacle(); !obstacle.empty()) {
    skip(obstacle);
    return nullptr;
  }
  return make_cuda_gradient_ops();
}

// The CPU's; of a program started with --device cuda the GPU's instead. The pool is not owned.
inline std::unique_ptr<GradientOps> gradient_ops(ThreadPool& pool) {
  return device_option() == "cuda" ? cuda_gradient_ops_or_skip() : make_cpu_gradient_ops(pool);
}

}  // namespace headwater::testing
