// Heat map of a model's heads: layers downwards, KV heads across, one number each, the heads that
// keep everything marked. Drawn as text, SVG or PNG.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace headwater::cli {

struct HeadMap {
  std::string title;
  int32_t num_layers = 0;
  int32_t heads_per_layer = 0;
  std::vector<double> values;  // [num_layers, heads_per_layer]
  std::vector<bool> marked;    // likewise
};

// Ten shades by the fourth root of value / highest value, since scores and costs span many powers
// of ten; what is not above 0 has the lowest.
int32_t shade(const HeadMap& map, int32_t layer, int32_t head);

// One line per layer. color: shades by ANSI escapes; otherwise digits. A marked head has a star.
std::string draw_text(const HeadMap& map, bool color);
std::string draw_svg(const HeadMap& map);
std::string draw_png(const HeadMap& map);  // the file's bytes; no labels

}  // namespace headwater::cli
