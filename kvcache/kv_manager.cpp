#include "kvcache/kv_manager.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/host_buffer.h"

namespace headwater::kv {

KvManager::KvManager(KvGeometry geometry, const Options& options)
    : geometry_(std::move(geometry)),
      options_(options),
      pool_(geometry_, options.arena_bytes, options.superblock_bytes),
      index_(geometry_.page_tokens(), geometry_.num_groups()) {
  max_pages_ = geometry_.pages_for(options.max_tokens);
  for (const KvGroup& g : geometry_.groups()) {
    group_table_begin_.push_back(table_stride_);
    table_stride_ += max_pages_ * g.num_heads;
    if (g.rule.compensate)
      table_stride_ += (options.max_tokens / g.rule.block_tokens + 1) * g.num_heads;
  }
  tables_ = allocate_host(table_stride_ * options.max_sequences * int64_t{sizeof(int32_t)});
  for (int32_t slot = options.max_sequences; slot-- > 0;) free_slots_.push_back(slot);
}

SequenceKv KvManager::create(const SequenceRules& rules) {
  HW_CHECK(!free_slots_.empty(), "a free table slot");
  SequenceKv seq;
  seq.rules_ = rules;
  seq.rules_.share_prefix = rules.share_prefix && options_.prefix_caching;
  seq.slot_ = free_slots_.back();
  free_slots_.pop_back();
  seq.groups_.resize(static_cast<size_t>(geometry_.num_groups()));
  if (seq.rules_.share_prefix) move_to_node(seq, index_.root(index_key(rules)));
  return seq;
}

int32_t KvManager::window_start(const SequenceKv& seq, int32_t g, int32_t position) const {
  if (seq.rules_.dense || position < seq.rules_.faithful_tokens)
    return group(g).rule.layer_start(position);
  return group(g).rule.window_start(position, seq.rules_.kept_tokens);
}

// Faithful prompts hold the same K and V as dense sequences; streaming ones do not, and theirs
// depend on how much is kept.
uint64_t KvManager::index_key(const SequenceRules& rules) const {
  const uint64_t space = static_cast<uint64_t>(rules.key_space) << 32;
  if (rules.dense || rules.faithful_tokens > 0) return space;
  return space + uint64_t{1} + static_cast<uint64_t>(rules.kept_tokens);
}

// Tokens whose K and V do not depend on where this sequence's prompt ended.
int32_t KvManager::publishable_tokens(const SequenceKv& seq) const {
  return seq.rules_.faithful_tokens > 0 ? std::min(seq.num_tokens_, seq.rules_.faithful_tokens)
                                        : seq.num_tokens_;
}

void KvManager::move_to_node(SequenceKv& seq, int32_t node) {
  index_.pin(node);
  if (seq.node_ >= 0) index_.unpin(seq.node_);
  seq.node_ = node;
}

void KvManager::set_row(SequenceKv& seq, int32_t g, int32_t page, RowId row) {
  auto& pages = seq.groups_[static_cast<size_t>(g)];
  auto& rows = pages.rows;
  if (static_cast<size_t>(page) >= rows.size()) rows.resize(static_cast<size_t>(page) + 1, kNoRow);
  RowId& held = rows[static_cast<size_t>(page)];
  pages.num_held += (row != kNoRow) - (held != kNoRow);
  held = row;
  const auto fill = [&](int32_t* entry, std::span<const PageId> ids) {
    if (row == kNoRow) {
      std::fill_n(entry, group(g).num_heads, kNoPage);
    } else {
      std::ranges::copy(ids, entry);
    }
    if (records_changes_) changed_.push_back({entry - tables_.as<int32_t>(), group(g).num_heads});
  };
  fill(table_entry(seq, g, page), row == kNoRow ? std::span<const PageId>{} : pool_.pages(g, row));
  if (group(g).has_record(page))
    fill(record_entry(seq, g, page),
         row == kNoRow ? std::span<const PageId>{} : pool_.records(g, row));
}

int32_t KvManager::adopt(SequenceKv& seq, std::span<const int32_t> tokens, int32_t max_tokens) {
  HW_CHECK(seq.num_tokens_ == 0, "adopt() comes first");
  if (!seq.rules_.share_prefix) return 0;
  const auto page_tokens = static_cast<size_t>(geometry_.page_tokens());
  // Behind a faithful prompt K and V are this sequence's own.
  if (seq.rules_.faithful_tokens > 0) max_tokens = std::min(max_tokens, seq.rules_.faithful_tokens);
  const auto limit = std::min(tokens.size(), static_cast<size_t>(std::max(max_tokens, 0)));
  std::vector<int32_t> path;  // nodes of pages 0, 1, ...
  for (size_t end = page_tokens; end <= limit; end += page_tokens) {
    const int32_t node = index_.find_child(path.empty() ? seq.node_ : path.back(),
                                           tokens.subspan(end - page_tokens, page_tokens));
    if (node < 0) break;
    path.push_back(node);
  }
  // Pages below p that the index lacks for group g: all, and those that stay whatever the window.
  struct Missing {
    int32_t all = 0, permanent = 0;
  };
  std::vector<std::vector<Missing>> missing(static_cast<size_t>(geometry_.num_groups()));
  constexpr int32_t kBehindAll = std::numeric_limits<int32_t>::max();
  for (int32_t g = 0; g < geometry_.num_groups(); ++g) {
    auto& counts = missing[static_cast<size_t>(g)];
    counts.push_back({});
    for (size_t page = 0; page < path.size(); ++page) {
      Missing count = counts.back();
      if (index_.row(path[page], g) == kNoRow) {
        ++count.all;
        count.permanent += geometry_.keeps_page(g, static_cast<int32_t>(page), kBehindAll);
      }
      counts.push_back(count);
    }
  }
  const auto resumable = [&](int32_t pages) {
    for (int32_t g = 0; g < geometry_.num_groups(); ++g) {
      const auto& counts = missing[static_cast<size_t>(g)];
      const int32_t start = window_start(seq, g, pages * geometry_.page_tokens());
      const int32_t window = std::min(start / geometry_.page_tokens(), pages);
      const Missing& before = counts[static_cast<size_t>(window)];
      if (before.permanent > 0 || counts[static_cast<size_t>(pages)].all > before.all) return false;
    }
    return true;
  };
  auto pages = static_cast<int32_t>(path.size());
  while (pages > 0 && !resumable(pages)) --pages;
  if (pages == 0) return 0;

  seq.num_tokens_ = pages * geometry_.page_tokens();
  seq.published_pages_ = pages;
  move_to_node(seq, path[static_cast<size_t>(pages) - 1]);
  for (int32_t g = 0; g < geometry_.num_groups(); ++g) {
    const int32_t start = window_start(seq, g, seq.num_tokens_);
    for (int32_t page = 0; page < pages; ++page) {
      const RowId row = index_.row(path[static_cast<size_t>(page)], g);
      const bool keep = geometry_.keeps_page(g, page, start);
      if (keep) pool_.add_reader(g, row);
      set_row(seq, g, page, keep ? row : kNoRow);
    }
    seq.groups_[static_cast<size_t>(g)].frontier_page = start / geometry_.page_tokens();
  }
  return seq.num_tokens_;
}

bool KvManager::reserve(SequenceKv& seq, int32_t num_tokens) {
  HW_CHECK(num_tokens <= options_.max_tokens, "a sequence longer than its table", num_tokens);
  const int32_t pages = geometry_.pages_for(num_tokens);
  const int32_t open_page = seq.num_tokens_ / geometry_.page_tokens();
  std::vector<RowDemand> needed(static_cast<size_t>(geometry_.num_groups()));
  const auto shared_open_row = [&](int32_t g) {
    const auto& rows = seq.groups_[static_cast<size_t>(g)].rows;
    if (static_cast<size_t>(open_page) >= rows.size()) return kNoRow;
    const RowId row = rows[static_cast<size_t>(open_page)];
    return row != kNoRow && pool_.readers(g, row) > 1 ? row : kNoRow;
  };
  bool nothing = true;
  for (int32_t g = 0; g < geometry_.num_groups(); ++g) {
    const auto have = static_cast<int32_t>(seq.groups_[static_cast<size_t>(g)].rows.size());
    RowDemand& need = needed[static_cast<size_t>(g)];
    const auto add = [&](int32_t page) {
      ++need.rows;
      need.records += group(g).has_record(page);
    };
    for (int32_t page = have; page < pages; ++page) add(page);
    if (shared_open_row(g) != kNoRow) add(open_page);
    nothing = nothing && need.rows == 0;
  }
  if (nothing) return true;
  if (!make_room(needed)) return false;
  const auto allocate = [&](int32_t g, int32_t first_page, int32_t num_pages) {
    std::vector<RowId> rows = pool_.allocate(g, num_pages);
    for (int32_t i = 0; i < num_pages; ++i)
      if (group(g).has_record(first_page + i)) pool_.add_records(g, rows[static_cast<size_t>(i)]);
    return rows;
  };
  for (int32_t g = 0; g < geometry_.num_groups(); ++g) {
    if (const RowId shared = shared_open_row(g); shared != kNoRow) {
      const RowId own = allocate(g, open_page, 1)[0];
      const auto copy =
          [&](int64_t bytes, std::span<const PageId> from, std::span<const PageId> to) {
            copies_.push_back({bytes, {from.begin(), from.end()}, {to.begin(), to.end()}});
          };
      copy(group(g).page.page_bytes(), pool_.pages(g, shared), pool_.pages(g, own));
      if (group(g).has_record(open_page))
        copy(record_bytes(group(g).page), pool_.records(g, shared), pool_.records(g, own));
      pool_.drop_reader(g, shared);
      set_row(seq, g, open_page, own);
    }
    const auto have = static_cast<int32_t>(seq.groups_[static_cast<size_t>(g)].rows.size());
    const std::vector<RowId> rows = allocate(g, have, std::max(0, pages - have));
    for (int32_t page = have; page < pages; ++page)
      set_row(seq, g, page, rows[static_cast<size_t>(page - have)]);
  }
  return true;
}

void KvManager::commit(SequenceKv& seq, std::span<const int32_t> tokens) {
  HW_CHECK(static_cast<int32_t>(tokens.size()) >= seq.num_tokens_, "committed tokens shrink");
  seq.num_tokens_ = static_cast<int32_t>(tokens.size());
  if (seq.rules_.share_prefix) publish(seq, tokens);
  retire(seq);
}

void KvManager::publish(SequenceKv& seq, std::span<const int32_t> tokens) {
  const int32_t page_tokens = geometry_.page_tokens();
  const int32_t full_pages = publishable_tokens(seq) / page_tokens;
  for (; seq.published_pages_ < full_pages; ++seq.published_pages_) {
    const int32_t page = seq.published_pages_;
    const auto ids = tokens.subspan(static_cast<size_t>(page) * static_cast<size_t>(page_tokens),
                                    static_cast<size_t>(page_tokens));
    int32_t child = index_.find_child(seq.node_, ids);
    if (child < 0) child = index_.add_child(seq.node_, ids);
    for (int32_t g = 0; g < geometry_.num_groups(); ++g) {
      const RowId own = seq.groups_[static_cast<size_t>(g)].rows[static_cast<size_t>(page)];
      const RowId published = index_.row(child, g);
      if (own == kNoRow || own == published) continue;
      if (published == kNoRow) {
        index_.set_row(child, g, own);
        pool_.set_node(g, own, child);
      } else {  // somebody else computed the same page first: one copy is enough
        pool_.add_reader(g, published);
        set_row(seq, g, page, published);
        pool_.drop_reader(g, own);
      }
    }
    move_to_node(seq, child);
  }
}

void KvManager::retire(SequenceKv& seq) {
  for (int32_t g = 0; g < geometry_.num_groups(); ++g) {
    auto& pages = seq.groups_[static_cast<size_t>(g)];
    const int32_t start = window_start(seq, g, seq.num_tokens_);
    const int32_t frontier = start / geometry_.page_tokens();
    for (int32_t page = pages.frontier_page; page < frontier; ++page) {
      const RowId row = pages.rows[static_cast<size_t>(page)];
      if (row == kNoRow || geometry_.keeps_page(g, page, start)) continue;
      set_row(seq, g, page, kNoRow);
      pool_.drop_reader(g, row);
    }
    if (group(g).rule.compensate && frontier > pages.frontier_page)
      num_folded_blocks_ +=
          static_cast<uint64_t>((frontier - pages.frontier_page) * geometry_.page_tokens() /
                                group(g).rule.block_tokens * group(g).num_heads);
    pages.frontier_page = std::max(pages.frontier_page, frontier);
  }
}

SequenceKv KvManager::fork(const SequenceKv& parent) {
  SequenceKv child = create(parent.rules_);
  child.num_tokens_ = parent.num_tokens_;
  child.published_pages_ = parent.published_pages_;
  if (parent.node_ >= 0) move_to_node(child, parent.node_);
  const int32_t pages = geometry_.pages_for(parent.num_tokens_);
  for (int32_t g = 0; g < geometry_.num_groups(); ++g) {
    const auto& from = parent.groups_[static_cast<size_t>(g)];
    for (int32_t page = 0; page < pages; ++page) {
      const RowId row = from.rows[static_cast<size_t>(page)];
      if (row != kNoRow) pool_.add_reader(g, row);
      set_row(child, g, page, row);
    }
    child.groups_[static_cast<size_t>(g)].frontier_page = from.frontier_page;
  }
  return child;
}

void KvManager::release(SequenceKv& seq) {
  if (seq.slot_ < 0) return;
  for (int32_t g = 0; g < geometry_.num_groups(); ++g) {
    const auto& rows = seq.groups_[static_cast<size_t>(g)].rows;
    // Last page first: leaves of the index are then the first to be evicted.
    for (auto page = static_cast<int32_t>(rows.size()); page-- > 0;) {
      const RowId row = rows[static_cast<size_t>(page)];
      if (row == kNoRow) continue;
      set_row(seq, g, page, kNoRow);
      pool_.drop_reader(g, row);
    }
  }
  free_slots_.push_back(seq.slot_);
  if (seq.node_ >= 0) index_.unpin(seq.node_);
  seq = {};
}

bool KvManager::make_room(std::span<const RowDemand> demand) {
  while (!pool_.fits(demand))
    if (!evict_one()) return false;
  return true;
}

void KvManager::forget(int32_t node, int32_t g) {
  const RowId row = index_.row(node, g);
  if (row == kNoRow) return;
  index_.set_row(node, g, kNoRow);
  pool_.set_node(g, row, -1);
}

// The least recently used cached row goes: of a group that keeps all only at a leaf (the prefix
// must stay whole), of a window group anywhere.
bool KvManager::evict_one() {
  for (const auto& entry : pool_.cached_rows()) {
    const RowRef ref = entry.second;  // a copy: forgetting the row takes the entry away
    const int32_t node = pool_.node(ref.group, ref.row);
    if (group(ref.group).rule.keeps_all() && index_.has_children(node)) continue;
    forget(node, ref.group);
    if (group(ref.group).rule.keeps_all())
      for (int32_t g = 0; g < geometry_.num_groups(); ++g) forget(node, g);
    index_.prune(node);
    return true;
  }
  return false;
}

int64_t KvManager::peak_growth_bytes(const SequenceKv& seq,
                                     int32_t num_tokens,
                                     int32_t max_rows) const {
  if (num_tokens <= seq.num_tokens_) return 0;
  const int64_t peak = geometry_.peak_bytes(num_tokens, seq.rules_, max_rows);
  return std::max<int64_t>(0, peak - held_bytes(seq));
}

void KvManager::record_table_changes() {
  HW_CHECK(num_free_slots() == options_.max_sequences, "sequences exist already");
  records_changes_ = true;
}

std::span<const TableEntry> KvManager::take_table_changes() {
  taken_.clear();
  for (const EntryRange& range : changed_)
    for (int64_t offset = range.offset; offset < range.offset + range.count; ++offset)
      taken_.push_back({offset, tables()[offset]});
  changed_.clear();
  return taken_;
}

std::vector<PageCopy> KvManager::take_copies() { return std::exchange(copies_, {}); }

int64_t KvManager::held_bytes(const SequenceKv& seq) const {
  int64_t bytes = 0;
  for (int32_t g = 0; g < geometry_.num_groups() && seq.slot_ >= 0; ++g) {
    const auto& rows = seq.groups_[static_cast<size_t>(g)].rows;
    for (size_t page = 0; page < rows.size(); ++page)
      if (rows[page] != kNoRow) bytes += group(g).row_bytes(static_cast<int32_t>(page));
  }
  return bytes;
}

int64_t KvManager::held_tokens(const SequenceKv& seq, int32_t g) const {
  if (seq.slot_ < 0) return 0;
  const auto& pages = seq.groups_[static_cast<size_t>(g)];
  const int64_t page_tokens = geometry_.page_tokens();
  // The pages behind the last token are there, and empty.
  return pages.num_held * page_tokens - (std::ssize(pages.rows) * page_tokens - seq.num_tokens_);
}

}  // namespace headwater::kv
