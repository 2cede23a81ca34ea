#include "kernels/make_ops.h"

#include "kernels/base/status.h"

namespace headwater {

std::unique_ptr<Ops> make_ops(const std::string& device,
                              ThreadPool& pool,
                              const CudaOptions& cuda) {
  if (device == "ref") return make_ref_ops(pool);
  if (device == "cpu") return make_cpu_ops(pool);
  if (device == "cuda") return make_cuda_ops(cuda);
  if (device != "auto")
    throw ConfigError("device must be auto, cuda, cpu or ref, got \"" + device + "\"");
  return cuda_obstacle().empty() ? make_cuda_ops(cuda) : make_cpu_ops(pool);
}

std::unique_ptr<GradientOps> make_gradient_ops(std::string_view device, ThreadPool& pool) {
  return device == "cuda" ? make_cuda_gradient_ops() : make_cpu_gradient_ops(pool);
}

}  // namespace headwater
