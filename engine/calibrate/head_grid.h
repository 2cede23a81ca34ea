// HeadGrid: one number per KV head, [num_layers, num_kv_heads]: scores, costs, what to draw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace headwater {

struct HeadGrid {
  int32_t num_layers = 0;
  int32_t num_kv_heads = 0;
  std::vector<double> values;

  HeadGrid() = default;
  HeadGrid(int32_t layers, int32_t kv_heads)
      : num_layers(layers),
        num_kv_heads(kv_heads),
        values(static_cast<size_t>(layers) * static_cast<size_t>(kv_heads)) {}
  int32_t num_heads() const { return num_layers * num_kv_heads; }
  double& at(int32_t layer, int32_t kv_head) {
    return values[static_cast<size_t>(layer * num_kv_heads + kv_head)];
  }
};

}  // namespace headwater
