#include "tests/support/test_device.h"

#include <catch2/catch.hpp>
#include <vector>

#include "kernels/make_ops.h"
#include "tests/support/forwarding_ops.h"
#include "tests/support/skip.h"

namespace headwater::testing {

std::ostream& operator<<(std::ostream& out, const TestDevice& device) {
  return out << device.name << (device.exact ? "" : ", not exact")
             << (device.eager ? ", eager" : "");
}

std::optional<TestDevice> each_device() {
  std::vector<TestDevice> devices = {{"ref"}, {"cpu"}};
  if (device_option() == "cuda") {
    if (const std::string obstacle = cuda_obstacle(); !obstacle.empty()) {
      skip(obstacle);
      return std::nullopt;
    }
    devices = {{"cuda"}, {"cuda", true, true}, {"cuda", false}};
  }
  return GENERATE_COPY(from_range(devices));
}

std::unique_ptr<Ops> make_ops(const TestDevice& device, ThreadPool& pool) {
  std::unique_ptr<Ops> ops =
      headwater::make_ops(device.name, pool, {.deterministic = device.exact});
  if (device.eager) ops = std::make_unique<EagerOps>(std::move(ops));
  return ops;
}

}  // namespace headwater::testing
