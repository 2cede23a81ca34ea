#include "kernels/linear/linear_cpu.h"

#include <algorithm>

#include "kernels/base/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/linear/linear_cpu.cpp"
#include <hwy/foreach_target.h>

#include "kernels/base/lanes16-inl.h"
#include "kernels/linear/tile_kernels-inl.h"

#if HWY_ONCE
namespace headwater::cpu {
namespace {

HWY_EXPORT(quantize_row);
HWY_EXPORT(run_tiles);

// Activations of one chunk of rows stay in half of a core's second-level cache.
constexpr int64_t kChunkBytes = 512 * 1024;
constexpr int64_t kMinChunkRows = 64;
constexpr int64_t kTasksPerThread = 8;

bool takes_integer_activations(QuantFormat format) {
  return quant_traits(format).block_elements > 1;
}

}  // namespace

ActivationBlock* ActivationScratch::reserve(int64_t blocks) {
  if (static_cast<int64_t>(blocks_.size()) < blocks) blocks_.resize(static_cast<size_t>(blocks));
  return blocks_.data();
}

void linear(const CpuWeight& weight,
            Matrix x,
            Matrix out,
            LinearMode mode,
            ThreadPool& pool,
            ActivationScratch& scratch) {
  const int64_t blocks_per_row = weight.cols / kBlock;
  ActivationBlock* blocks = nullptr;
  if (std::any_of(weight.parts.begin(), weight.parts.end(), [](const PackedPart& part) {
        return takes_integer_activations(part.source.format);
      })) {
    blocks = scratch.reserve(x.rows * blocks_per_row);
    constexpr int64_t kRowsPerTask = 16;
    pool.parallel_for((x.rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
      const int64_t end = std::min((task + 1) * kRowsPerTask, x.rows);
      for (int64_t row = task * kRowsPerTask; row < end; ++row) HWY_DYNAMIC_DISPATCH(quantize_row)
      (x.f32_row(row), blocks_per_row, blocks + row * blocks_per_row);
    });
  }

  const int64_t bytes_per_row = blocks_per_row * static_cast<int64_t>(sizeof(ActivationBlock));
  const int64_t chunk_rows =
      std::max(kMinChunkRows, kChunkBytes / std::max<int64_t>(bytes_per_row, 1));
  const int64_t num_chunks = (x.rows + chunk_rows - 1) / chunk_rows;
  const int64_t wanted_tasks = pool.num_threads() * kTasksPerThread;
  const int64_t task_tiles = std::max<int64_t>(1, weight.num_tiles * num_chunks / wanted_tasks);
  const int64_t chunk_tasks = (weight.num_tiles + task_tiles - 1) / task_tiles;
  pool.parallel_for(num_chunks * chunk_tasks, [&](int64_t task, int) {
    const int64_t first_tile = task % chunk_tasks * task_tiles;
    const int64_t first_row = task / chunk_tasks * chunk_rows;
    for (const PackedPart& part : weight.parts) {
      TileRange range;
      range.part = &part;
      range.first_tile = std::max<int64_t>(first_tile - part.first_tile, 0);
      range.end_tile = std::min(first_tile + task_tiles - part.first_tile, part.num_tiles);
      range.first_row = first_row;
      range.end_row = std::min(first_row + chunk_rows, x.rows);
      if (range.first_tile < range.end_tile)
        HWY_DYNAMIC_DISPATCH(run_tiles)(range, x, blocks, out, mode);
    }
  });
}

}  // namespace headwater::cpu
#endif  // HWY_ONCE
