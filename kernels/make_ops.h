// From a name to an Ops or GradientOps: the one place where devices are chosen.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "kernels/gradient/gradient_ops.h"
#include "kernels/ops.h"

namespace headwater {

// auto: a usable GPU, else the CPU; cuda, cpu, ref. Throws ConfigError: a name that is none of
// these, or what is in the GPU's way. The pool is not owned and must outlive the Ops.
std::unique_ptr<Ops> make_ops(const std::string& device,
                              ThreadPool& pool,
                              const CudaOptions& cuda = {});
// For the device of an Ops, by its name: ref and cpu are the CPU.
std::unique_ptr<GradientOps> make_gradient_ops(std::string_view device, ThreadPool& pool);

}  // namespace headwater
