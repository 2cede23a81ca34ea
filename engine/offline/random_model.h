// A model of a known shape with random weights: right for speed, meaningless for answers. Nothing
// is read from disk; every matrix is a view of the same random bytes, one pool per format.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "engine/model/loaded_model.h"

namespace headwater {

struct ModelShape {
  std::string_view name;
  int32_t num_layers, hidden_dim, ffn_dim, num_heads, num_kv_heads, head_dim, vocab_size;
  bool tied_embedding;
};
std::span<const ModelShape> model_shapes();

// Formats of the matrices, and of the output, by the name of the mixture: "q4_k" has a Q6_K output.
struct WeightMix {
  std::string_view name;
  QuantFormat matrices, output;
};
std::span<const WeightMix> weight_mixes();

struct RandomModel {
  LoadedModel files;  // views into pools
  std::vector<std::vector<std::byte>> pools;
  int64_t read_bytes = 0;  // of weights that one decode step reads: all but the embedding's rows
  int64_t num_matrix_parameters = 0;  // that every token is multiplied with, without the output
  int64_t num_output_parameters = 0;
};
// Throws ConfigError for a name that is not in the tables.
std::unique_ptr<RandomModel> make_random_model(std::string_view shape,
                                               std::string_view weights,
                                               int32_t max_positions);

}  // namespace headwater
