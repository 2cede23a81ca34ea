// KvManager: the only place where pages change hands. Knows tokens and positions, not requests or
// methods. Engine thread only.
//
// Life of a sequence's pages:
//   adopt()    at its start: takes over the longest prefix of the index that its rules can resume
//   reserve()  before a step: pages for the rows to come, copy on write of a shared open page;
//              evicts cached rows as needed; false (and nothing changed) if even that is not enough
//   commit()   after a step: full pages enter the index, pages behind the frontier are dropped
//   fork()     a further sequence over the same pages
//   release()  everything back; what the index knows stays cached until it is evicted
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/tensor.h"
#include "kvcache/kv_pool.h"
#include "kvcache/prefix_index.h"

namespace headwater::kv {

// The pages of one sequence. Made by KvManager, changed by it only.
class SequenceKv {
 public:
  int32_t num_tokens() const { return num_tokens_; }  // committed: K and V are in the pages
  int32_t table_slot() const { return slot_; }

 private:
  friend class KvManager;
  struct GroupPages {
    std::vector<RowId> rows;    // [logical page], kNoRow = dropped
    int32_t frontier_page = 0;  // pages of the window begin here; never moves back
    int32_t num_held = 0;       // rows that are there
  };
  SequenceRules rules_;
  int32_t slot_ = -1;
  int32_t num_tokens_ = 0;
  int32_t published_pages_ = 0;
  int32_t node_ = -1;  // of the index, after published_pages_ pages
  std::vector<GroupPages> groups_;
};

// Pages or records, from -> to; carried out in order, before the step's rows.
struct PageCopy {
  int64_t page_bytes = 0;
  std::vector<PageId> from, to;  // [num_heads]
};

class KvManager {
 public:
  struct Options {
    int64_t arena_bytes = 0;
    int64_t superblock_bytes = int64_t{2} << 20;
    int32_t max_sequences = 1;  // with pages at the same time
    int32_t max_tokens = 0;     // longest sequence
    bool prefix_caching = true;
  };
  KvManager(KvGeometry geometry, const Options& options);

  const KvGeometry& geometry() const { return geometry_; }

  // A slot of the page tables; there are max_sequences of them. num_free_slots() > 0 required.
  SequenceKv create(const SequenceRules& rules);
  int32_t num_free_slots() const { return static_cast<int32_t>(free_slots_.size()); }

  // Longest reusable prefix of tokens, at most max_tokens of them, in whole pages; takes over the
  // pages and returns how many tokens are committed with that. The sequence must be new.
  int32_t adopt(SequenceKv& seq, std::span<const int32_t> tokens, int32_t max_tokens);
  // Pages so that positions [committed, num_tokens) can be written.
  bool reserve(SequenceKv& seq, int32_t num_tokens);
  // tokens: all ids of the sequence up to the committed end. May shrink what is held.
  void commit(SequenceKv& seq, std::span<const int32_t> tokens);
  SequenceKv fork(const SequenceKv& parent);
  void release(SequenceKv& seq);

  // First visible position behind the sinks, for the row at `position` (PageList::window_start).
  int32_t window_start(const SequenceKv& seq, int32_t group, int32_t position) const;
  // KvGeometry::peak_bytes beyond what the sequence holds now.
  int64_t peak_growth_bytes(const SequenceKv& seq, int32_t num_tokens, int32_t max_rows) const;
  // Bytes that could be taken now, everything cached evicted.
  int64_t reclaimable_bytes() const {
    const PoolCounts bytes = pool_.byte_counts();
    return bytes.free + bytes.cached;
  }

  // Copies that reserve() asked for since the last call.
  std::vector<PageCopy> take_copies();

  // Page tables, see paged_kv.h: [slot][group]: [logical page][head slot], then records
  // [block][head slot].
  const int32_t* tables() const { return tables_.as<int32_t>(); }
  int64_t table_bytes() const { return tables_.bytes(); }
  int32_t max_tokens() const { return options_.max_tokens; }
  // For a device with tables of its own, all zeros at first: from now on changes are recorded, and
  // must be taken before every step. No sequence may exist yet.
  void record_table_changes();
  // The present value of every entry written since the last call; an entry may come twice.
  // Valid until the next call.
  std::span<const TableEntry> take_table_changes();
  // Entries from a group's pages to its records; -1: it has none.
  int64_t record_begin(int32_t g) const {
    return group(g).rule.compensate ? max_pages_ * group(g).num_heads : -1;
  }
  int64_t table_begin(int32_t slot, int32_t group) const {
    return slot * table_stride_ + group_table_begin_[static_cast<size_t>(group)];
  }

  int64_t held_bytes(const SequenceKv& seq) const;
  // Tokens of one head of the group, in pages that are there.
  int64_t held_tokens(const SequenceKv& seq, int32_t group) const;
  // Blocks of single heads that left their window into a compensation, ever.
  uint64_t num_folded_blocks() const { return num_folded_blocks_; }
  PoolCounts page_counts() const { return pool_.page_counts(); }
  PoolCounts byte_counts() const { return pool_.byte_counts(); }
  int64_t held_rows(int32_t group) const { return pool_.held_rows(group); }
  // The conservation law, recounted over these sequences (all that exist). Aborts if broken.
  void check(std::span<const SequenceKv* const> sequences) const;

 private:
  const KvGroup& group(int32_t g) const { return geometry_.groups()[static_cast<size_t>(g)]; }
  int32_t* table_entry(const SequenceKv& seq, int32_t g, int32_t page) const {
    return tables_.as<int32_t>() + table_begin(seq.slot_, g) + int64_t{page} * group(g).num_heads;
  }
  int32_t* record_entry(const SequenceKv& seq, int32_t g, int32_t page) const {
    const int64_t block = page * geometry_.page_tokens() / group(g).rule.block_tokens;
    return table_entry(seq, g, 0) + record_begin(g) + block * group(g).num_heads;
  }
  uint64_t index_key(const SequenceRules& rules) const;
  int32_t publishable_tokens(const SequenceKv& seq) const;
  void set_row(SequenceKv& seq, int32_t g, int32_t page, RowId row);
  void move_to_node(SequenceKv& seq, int32_t node);
  void publish(SequenceKv& seq, std::span<const int32_t> tokens);
  void retire(SequenceKv& seq);
  bool make_room(std::span<const RowDemand> demand);
  bool evict_one();
  void forget(int32_t node, int32_t g);

  KvGeometry geometry_;
  Options options_;
  KvPool pool_;
  PrefixIndex index_;
  Buffer tables_;          // entries behind a sequence's last page are never read
  int64_t max_pages_ = 0;  // of a sequence
  std::vector<int64_t> group_table_begin_;
  int64_t table_stride_ = 0;
  std::vector<int32_t> free_slots_;
  std::vector<PageCopy> copies_;
  uint64_t num_folded_blocks_ = 0;
  struct EntryRange {
    int64_t offset = 0;
    int32_t count = 0;
  };
  bool records_changes_ = false;
  std::vector<EntryRange> changed_;  // since the last take_table_changes()
  std::vector<TableEntry> taken_;
};

}  // namespace headwater::kv
