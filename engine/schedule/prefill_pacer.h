// PrefillPacer: how many prefill rows may ride on a step in which streams decode, so that their
// gap between tokens stays under `stretch` times the gap without prefill. Learns from the steps
// that ran what decodes cost, what any prefill adds (a GPU's step without a graph), and what each
// row adds; steps in which nobody decodes teach nothing (the first ones compile and allocate).
// Where the part that any prefill adds breaks the stretch alone, few rows would only make more such
// steps: then rows may cost as much again. It moves work between steps only: no result depends on
// it.
#pragma once

#include <cstdint>
#include <vector>

namespace headwater {

class PrefillPacer {
 public:
  PrefillPacer(double stretch, int32_t max_decodes, int32_t max_rows);

  // Prefill rows for a step with this many decodes; max_rows when nobody decodes, 0 where it is
  // still to be found out what decodes alone take.
  int32_t rows(int32_t num_decodes) const;
  void observe(int32_t num_decodes, int32_t num_prefill_rows, double seconds);

 private:
  static constexpr int32_t kMinRows = 8;
  // Seconds of a step of that many decodes alone: seen, or from the nearest smaller count seen.
  double decode_seconds(int32_t num_decodes) const;

  double stretch_;
  int32_t max_rows_;
  std::vector<double> decode_seconds_;  // [num_decodes]; 0 = never seen
  // Of steps with prefill: sums over rows and seconds beside the decodes. The latest weigh most,
  // and by the errors that count, relative to the rows: one step of many says no more than one of
  // few.
  struct {
    double weight = 0, rows = 0, seconds = 0, rows_rows = 0, rows_seconds = 0;
    int32_t latest = 0;  // rows
  } seen_;
};

}  // namespace headwater
