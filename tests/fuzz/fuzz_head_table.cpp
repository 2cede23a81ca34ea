// Any bytes as a head table, in every format: what is accepted becomes rules, and is written and
// read again.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "engine/attention/head_table.h"
#include "engine/attention/head_table_published.h"
#include "kernels/base/check.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

HeadTableModel fuzz_model() {
  HeadTableModel model;
  model.num_layers = 2;
  model.num_heads = 4;
  model.num_kv_heads = 2;
  model.head_dim = 32;
  model.max_positions = 4096;
  model.fingerprint = "0123456789abcdef";
  return model;
}

const kv::RetentionRule kCompressed{.sink_tokens = 4, .recent_tokens = 16};

// The geometry aborts on rules that no cache can follow.
void use(const HeadTable& table) {
  const kv::KvGeometry geometry(
      2, 2, retention_rules(table, kCompressed), {DType::kF32, 32, 16, 0});
  for (const int64_t tokens : {1, 100, 5000})
    HW_CHECK(geometry.bytes_for(tokens, false) > 0, "bytes", tokens);
}

// What is accepted is written, and what was written is accepted.
void round_trip(const HeadTable& table) {
  // Objects come back sorted by name; from then on the text is the same.
  const HeadTable again = parse_head_table(write_head_table(table), "again", fuzz_model());
  HW_CHECK(retention_rules(again, kCompressed) == retention_rules(table, kCompressed), "rules");
  HW_CHECK(again.ranking == table.ranking && again.scores == table.scores, "what is stored");
  const std::string text = write_head_table(again);
  HW_CHECK(write_head_table(parse_head_table(text, "text", fuzz_model())) == text, "text");
}

template <typename Read>
void attempt(Read&& read) {
  std::optional<HeadTable> table;
  try {
    table = read();
    retention_rules(*table, {}, 0.5);
  } catch (const ConfigError&) {  // of the ranking: the table itself may be sound
  }
  if (!table) return;
  use(*table);
  round_trip(*table);
}

}  // namespace
}  // namespace headwater

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace headwater;  // NOLINT: entry point
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  attempt([&] { return parse_head_table(text, "fuzz", fuzz_model()); });
  attempt([&] { return parse_duo_table(text, "fuzz", fuzz_model(), 0.5); });
  return 0;
}
