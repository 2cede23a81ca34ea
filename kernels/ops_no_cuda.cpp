// In place of ops_cuda.cpp and gradient/gradient_ops_cuda.cpp where there is no CUDA toolkit.
#include "kernels/base/status.h"
#include "kernels/gradient/gradient_ops.h"
#include "kernels/ops.h"

namespace headwater {

std::string cuda_obstacle() { return "built without CUDA (HEADWATER_CUDA)"; }

std::unique_ptr<Ops> make_cuda_ops(const CudaOptions&) {
  throw ConfigError("device cuda: " + cuda_obstacle());
}
std::unique_ptr<GradientOps> make_cuda_gradient_ops() {
  throw ConfigError("device cuda: " + cuda_obstacle());
}

}  // namespace headwater
