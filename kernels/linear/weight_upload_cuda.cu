#include "kernels/linear/weight_upload_cuda.cuh"
#include "kernels/quant/layout_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSlotBytes = int64_t{32} << 20;

// Block (row, part of it), two bytes a thread: segments are of even offset and size.
__global__ void lay_out_kernel(const uint8_t* file,
                               uint8_t* to,
                               Planes planes,
                               int32_t block_bytes,
                               int64_t blocks,
                               int64_t row_bytes) {
  const int64_t row = blockIdx.x;
  const int64_t i = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * 2;
  if (i >= blocks * block_bytes) return;
  const int64_t block = i / block_bytes;
  const auto byte = static_cast<int32_t>(i % block_bytes);
  for (int p = 0; p < planes.count; ++p) {
    const Segment s = planes.segments[p];
    if (byte < s.offset || byte >= s.offset + s.bytes) continue;
    *reinterpret_cast<uint16_t*>(to + row * row_bytes + plane_offset(planes, p, blocks) +
                                 block * s.stride() + (byte - s.offset)) =
        *reinterpret_cast<const uint16_t*>(file + row * blocks * block_bytes + i);
  }
}

}  // namespace

WeightUpload::WeightUpload(const Stream& stream)
    : stream_(stream),
      slots_(allocate_pinned(kSlots * kSlotBytes)),
      blocks_(allocate_device(kSlotBytes, stream)),
      ring_(slots_.data(), kSlots, kSlotBytes, readers_) {}

WeightUpload::~WeightUpload() { (void)cudaStreamSynchronize(stream_.get()); }

void WeightUpload::upload(const WeightView& view, uint8_t* to, int64_t to_row_bytes) {
  const Planes planes = planes_of(view.format);
  const QuantTraits& traits = quant_traits(view.format);
  const int64_t file_row = row_bytes(view.format, view.cols);
  const auto copy = [&](void* target, int64_t pitch, const RowRing::Block& block) {
    HW_CUDA(cudaMemcpy2DAsync(target,
                              static_cast<size_t>(pitch),
                              block.data,
                              static_cast<size_t>(file_row),
                              static_cast<size_t>(file_row),
                              static_cast<size_t>(block.num_rows),
                              cudaMemcpyHostToDevice,
                              stream_.get()));
    read_[static_cast<size_t>(block.slot)].record(stream_);
  };
  const auto send = [&](const RowRing::Block& block) {
    uint8_t* rows = to + block.first_row * to_row_bytes;
    if (planes.count == 1) return copy(rows, to_row_bytes, block);
    copy(blocks_.data(), file_row, block);
    lay_out_kernel<<<dim3(static_cast<unsigned>(block.num_rows),
                          static_cast<unsigned>((file_row / 2 + kThreads - 1) / kThreads)),
                     kThreads,
                     0,
                     stream_.get()>>>(blocks_.as<uint8_t>(),
                                      rows,
                                      planes,
                                      traits.block_bytes,
                                      view.cols / traits.block_elements,
                                      to_row_bytes);
    HW_CUDA_LAUNCHED();
  };
  ring_.upload(
      static_cast<const std::byte*>(view.data),
      file_row,
      view.rows,
      [&](int32_t slot) { read_[static_cast<size_t>(slot)].wait(); },
      send);
}

}  // namespace headwater::cuda
