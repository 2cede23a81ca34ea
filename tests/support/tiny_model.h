// A tiny llama with random weights and a byte-level vocabulary: every part of the engine runs on
// it in milliseconds. The same options give the same bytes everywhere.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/model/loaded_model.h"

namespace headwater::testing {

struct TinyModelOptions {
  uint64_t seed = 1;
  int32_t num_layers = 2;
  int32_t hidden_dim = 64;
  int32_t num_heads = 4;
  int32_t num_kv_heads = 2;
  int32_t head_dim = 32;
  int32_t ffn_dim = 128;
  int32_t max_positions = 4096;
  float rope_base = 10000.0f;
  QuantFormat format = QuantFormat::kF32;            // matrices; a row must be whole blocks
  QuantFormat embedding_format = QuantFormat::kF32;  // embedding and output
  bool tied_embedding = false;
  bool attention_bias = false;
  bool rope_divisors = false;  // a rope_freqs tensor
};

// Ids of the vocabulary: 0..255 are the bytes, then these, then tokens of two letters.
constexpr int32_t kTinyBos = 256;
constexpr int32_t kTinyEos = 257;
constexpr int32_t kTinyImStart = 258;
constexpr int32_t kTinyImEnd = 259;
constexpr int32_t kTinyPad = 260;
constexpr int32_t kTinyVocabSize = 300;

class GgufWriter;
void add_tiny_vocabulary(GgufWriter& file);  // tokenizer.* keys

std::string tiny_gguf(const TinyModelOptions& options = {});  // the file's bytes
void write_tiny_gguf(const std::string& path, const TinyModelOptions& options = {});
// Through load_model; no file stays behind.
std::unique_ptr<LoadedModel> make_tiny_model(const TinyModelOptions& options = {});

}  // namespace headwater::testing
