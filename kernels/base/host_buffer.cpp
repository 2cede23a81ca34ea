#include "kernels/base/host_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>

namespace headwater {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

// Large buffers begin on a huge page and ask for them: pages of KV are read in random order, and
// weights are streamed, both with fewer TLB misses.
Buffer allocate_host(int64_t bytes) {
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  const size_t slack = size >= 2 * kHugePage ? kHugePage : 0;
  void* data =
      ::mmap(nullptr, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  auto* begin = static_cast<std::byte*>(data);
  if (slack > 0) {
    begin += (kHugePage - reinterpret_cast<uintptr_t>(data) % kHugePage) % kHugePage;
    ::madvise(begin, size, MADV_HUGEPAGE);  // a hint: refused where the system has none
  }
  return {begin, bytes, [data, size, slack](std::byte*) { ::munmap(data, size + slack); }};
}

}  // namespace headwater
