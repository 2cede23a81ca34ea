// HeadTable: per head a retention class, as data. Read from a file, checked against the model,
// never edited at run time. Native format (every other field is refused):
//
//   {"format": "headwater.head_table/1",
//    "method": "razor",                          head_table_methods()
//    "model": {"name": "...", "num_layers": 8, "num_kv_heads": 4, "head_dim": 64,
//              "fingerprint": "16 hex digits"},  name and fingerprint may be absent
//    "granularity": "kv_head",                   or "query_head"; absent: kv_head
//    "classes": {"short": {"sinks": 4, "recent": 64}},          optional
//    "heads": [["full", "compressed", "short", "full"], ...],   one row per layer
//    "ranking": [[3, 0], [0, 1], ...],           [layer, head], most important first; optional
//    "scores": {"induction": [[0.1, ...], ...]}, one finite number per head; optional
//    "calibration": {"tokens": 10001}}           how it was made: numbers and texts; optional
//
// Two classes are always known: "full" keeps everything, "compressed" is the policy's own rule. A
// class may have the fields sinks, recent, growth (0 to 1), growth_offset, block, shard {stride,
// phase} and compensate: RetentionRule (kvcache/kv_geometry.h), with recent the least recent(N).
//
// Published files load too: a DuoAttention folder or its full_attention_heads.tsv, and MoA's JSON
// of alphas and betas (head_table_published.h).
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "engine/model/loaded_model.h"
#include "kvcache/kv_geometry.h"

namespace headwater {

// What a table is checked against.
struct HeadTableModel {
  std::string name;
  int32_t num_layers = 0;
  int32_t num_heads = 0;  // query heads of a layer; 0 = layers differ
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t max_positions = 0;
  std::string fingerprint;
};
// Throws LoadError where layers differ in KV heads or head size.
HeadTableModel head_table_model(const LoadedModel& model);

enum class Granularity : uint8_t { kKvHead, kQueryHead };

struct HeadClass {
  std::string name;
  kv::RetentionRule rule;
};

struct HeadTable {
  static constexpr int32_t kFull = 0;
  static constexpr int32_t kCompressed = 1;
  static constexpr int32_t kFirstNamed = 2;  // classes[i] is class kFirstNamed + i
  using Note = std::variant<double, std::string>;

  std::string method;
  HeadTableModel model;
  Granularity granularity = Granularity::kKvHead;
  std::vector<HeadClass> classes;
  std::vector<int32_t> heads;    // [num_layers, heads_per_layer()] class
  std::vector<int32_t> ranking;  // layer * heads_per_layer() + head, most important first
  std::map<std::string, std::vector<double>> scores;  // [num_layers, heads_per_layer()]
  std::vector<std::pair<std::string, Note>> calibration;
  std::vector<std::string> remarks;  // about a published file, for the operator; not written

  int32_t heads_per_layer() const {
    return granularity == Granularity::kKvHead ? model.num_kv_heads : model.num_heads;
  }
};

constexpr int64_t kMaxHeadTableBytes = int64_t{64} << 20;
std::span<const std::string_view> head_table_methods();

// All throw ConfigError: what is wrong, where, what was expected. name is for messages.
HeadTable parse_head_table(std::string_view json,
                           const std::string& name,
                           const HeadTableModel& model);
// For which model, by which method: of a native table, unchecked; empty texts where it says
// nothing.
struct HeadTableLabel {
  std::string method, fingerprint;
};
HeadTableLabel head_table_label(std::string_view json, const std::string& name);
// A file or folder of any format above. duo_sparsity: the share of heads of a published
// DuoAttention table that do not keep everything.
HeadTable load_head_table(const std::string& path,
                          const HeadTableModel& model,
                          double duo_sparsity = 0.5);

// The table in the native format, one line per layer.
std::string write_head_table(const HeadTable& table);

// One rule per [layer, KV head]. compressed: the rule of that class. ratio >= 0 re-decides which
// heads keep everything: the first ceil(ratio * heads) of the ranking; ConfigError if the ranking
// is shorter. Query heads fold to their KV head by maximum: the rule that keeps most tokens at
// max_positions.
std::vector<kv::RetentionRule> retention_rules(const HeadTable& table,
                                               const kv::RetentionRule& compressed,
                                               double ratio = -1);

}  // namespace headwater
