// Everything counted again from the sequences, for tests and debugging.
#include <algorithm>

#include "kernels/base/check.h"
#include "kvcache/kv_manager.h"

namespace headwater::kv {

void KvManager::check(std::span<const SequenceKv* const> sequences) const {
  pool_.check();
  int32_t slots = 0;
  std::vector<std::vector<int32_t>> readers(static_cast<size_t>(geometry_.num_groups()));
  for (const SequenceKv* seq : sequences) {
    if (seq->slot_ < 0) continue;
    ++slots;
    for (int32_t g = 0; g < geometry_.num_groups(); ++g) {
      auto& counts = readers[static_cast<size_t>(g)];
      const auto& rows = seq->groups_[static_cast<size_t>(g)].rows;
      for (size_t page = 0; page < rows.size(); ++page) {
        const auto page_idx = static_cast<int32_t>(page);
        const bool has_record = group(g).has_record(page_idx);
        const int32_t* pages = table_entry(*seq, g, page_idx);
        const int32_t* records = has_record ? record_entry(*seq, g, page_idx) : nullptr;
        if (rows[page] == kNoRow) {
          HW_CHECK(*pages == kNoPage, "a dropped page is still in the table", page);
          HW_CHECK(!has_record || *records == kNoPage, "a dropped record is in the table", page);
          continue;
        }
        const auto holds = [&](const int32_t* entry, std::span<const PageId> ids) {
          return std::equal(ids.begin(), ids.end(), entry);
        };
        HW_CHECK(holds(pages, pool_.pages(g, rows[page])), "table and pages differ at", page);
        HW_CHECK(pool_.records(g, rows[page]).empty() != has_record, "records of page", page);
        HW_CHECK(!has_record || holds(records, pool_.records(g, rows[page])),
                 "table and records differ at",
                 page);
        if (counts.size() <= static_cast<size_t>(rows[page]))
          counts.resize(static_cast<size_t>(rows[page]) + 1, 0);
        ++counts[static_cast<size_t>(rows[page])];
      }
    }
  }
  HW_CHECK(slots + num_free_slots() == options_.max_sequences, "table slots", slots);
  for (int32_t g = 0; g < geometry_.num_groups(); ++g) {
    int64_t held = 0;
    const auto& counts = readers[static_cast<size_t>(g)];
    for (size_t row = 0; row < counts.size(); ++row) {
      if (counts[row] == 0) continue;
      ++held;
      HW_CHECK(pool_.readers(g, static_cast<RowId>(row)) == counts[row], "readers of row", row);
    }
    HW_CHECK(held == pool_.held_rows(g), "held rows of group", g, held);
  }
}

}  // namespace headwater::kv
