#include "kernels/base/host_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace headwater {

Buffer allocate_host(int64_t bytes) {
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  return {static_cast<std::byte*>(data), bytes, [size](std::byte* p) { ::munmap(p, size); }};
}

}  // namespace headwater
