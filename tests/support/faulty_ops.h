// A device that breaks on a test's word, and how devices break.
#pragma once

#include <atomic>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "kernels/base/status.h"
#include "tests/support/forwarding_ops.h"

namespace headwater::testing {

struct Fault {
  std::function<void(Ops&)> strike;  // throws CudaError
  std::string words;                 // of its message
};

// The device that cannot give what it is asked for: really on a GPU, by word of mouth elsewhere.
inline Fault out_of_memory(const std::string& device) {
  if (device == "cuda")
    return {[](Ops& ops) { ops.allocate(int64_t{1} << 50); }, "cannot allocate 1125899906842624"};
  return {[](Ops&) { throw CudaError("cannot allocate"); }, "cannot allocate"};
}

// A kernel that reads what is not there. Nothing of this process reaches the GPU once it has run.
inline Fault killed_context() {
  return {[](Ops& ops) {
            void* const page_zero = reinterpret_cast<void*>(uintptr_t{256});
            ops.softcap({page_zero, DType::kF32, 1, 64, 64}, 1.0f);
          },
          "illegal memory access"};
}

// Shared by the test's thread, which lights it, and the device's.
struct Fuse {
  static constexpr int64_t kUnlit = std::numeric_limits<int64_t>::max();
  Fault fault;
  std::atomic<int64_t> calls_left = kUnlit;  // then every call strikes
};

class FaultyOps final : public ForwardingOps {
 public:
  FaultyOps(std::unique_ptr<Ops> ops, std::shared_ptr<Fuse> fuse)
      : ForwardingOps(std::move(ops)), fuse_(std::move(fuse)) {}

 protected:
  Ops& inner() const override {
    Ops& ops = ForwardingOps::inner();
    if (fuse_->calls_left != Fuse::kUnlit && fuse_->calls_left.fetch_sub(1) <= 0)
      fuse_->fault.strike(ops);
    return ops;
  }

 private:
  std::shared_ptr<Fuse> fuse_;
};

}  // namespace headwater::testing
