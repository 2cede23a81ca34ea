// PrefillPacer: how many prefill rows may ride on a step in which streams decode, so that their
// gap between tokens stays under `stretch` times the gap without prefill. Learns both costs from
// the steps that ran. It moves work between steps only: no result depends on it.
#pragma once

#include <cstdint>
#include <vector>

namespace headwater {

class PrefillPacer {
 public:
  PrefillPacer(double stretch, int32_t max_decodes, int32_t max_rows);

  // Prefill rows for a step with this many decodes; max_rows when nobody decodes.
  int32_t rows(int32_t num_decodes) const;
  void observe(int32_t num_decodes, int32_t num_prefill_rows, double seconds);

 private:
  static constexpr int32_t kMinRows = 8;
  // Seconds of a step of that many decodes alone: seen, or from the nearest smaller count seen.
  double decode_seconds(int32_t num_decodes) const;

  double stretch_;
  int32_t max_rows_;
  std::vector<double> decode_seconds_;  // [num_decodes]; 0 = never seen
  double row_seconds_ = 0;              // of one more prefill row; 0 = never seen
};

}  // namespace headwater
