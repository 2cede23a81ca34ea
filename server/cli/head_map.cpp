#include "server/cli/head_map.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <string_view>

namespace headwater::cli {
namespace {

struct Rgb {
  uint8_t r, g, b;
};

constexpr int32_t kShades = 10;
// Dark blue to yellow, with lightness rising evenly.
constexpr std::array<Rgb, kShades> kColors = {{{24, 26, 62},
                                               {42, 47, 100},
                                               {46, 72, 132},
                                               {40, 100, 148},
                                               {36, 128, 150},
                                               {44, 156, 140},
                                               {84, 182, 116},
                                               {140, 203, 84},
                                               {200, 218, 58},
                                               {250, 230, 60}}};
// The same in the 256 colours of terminals.
constexpr std::array<int32_t, kShades> kAnsi = {17, 18, 24, 30, 31, 37, 72, 113, 148, 226};

bool is_marked(const HeadMap& map, int32_t layer, int32_t head) {
  return map.marked[static_cast<size_t>(layer * map.heads_per_layer + head)];
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') {
      out += "&lt;";
    } else if (c == '&') {
      out += "&amp;";
    } else if (static_cast<unsigned char>(c) >= 0x20) {
      out += c;
    }
  }
  return out;
}

// ---- PNG: its chunks and an uncompressed zlib stream (RFC 2083, RFC 1950, RFC 1951)

void put_u32(std::string& out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 0xFF);
}

uint32_t crc32(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFF;
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0u);
  }
  return ~crc;
}

uint32_t adler32(std::string_view bytes) {
  constexpr uint32_t kModulus = 65521;
  uint32_t a = 1, b = 0;
  for (const char byte : bytes) {
    a = (a + static_cast<unsigned char>(byte)) % kModulus;
    b = (b + a) % kModulus;
  }
  return b << 16 | a;
}

void put_chunk(std::string& out, std::string_view type, std::string_view data) {
  put_u32(out, static_cast<uint32_t>(data.size()));
  const std::string body = std::string(type) + std::string(data);
  out += body;
  put_u32(out, crc32(body));
}

std::string stored_zlib(std::string_view bytes) {
  constexpr size_t kMaxStored = 65535;
  std::string out = "\x78\x01";
  size_t at = 0;
  do {
    const std::string_view part = bytes.substr(at, kMaxStored);
    at += part.size();
    out += at == bytes.size() ? '\1' : '\0';  // the last block?
    for (const uint32_t size :
         {static_cast<uint32_t>(part.size()), ~static_cast<uint32_t>(part.size())}) {
      out += static_cast<char>(size & 0xFF);
      out += static_cast<char>(size >> 8 & 0xFF);
    }
    out += part;
  } while (at < bytes.size());
  put_u32(out, adler32(bytes));
  return out;
}

}  // namespace

int32_t shade(const HeadMap& map, int32_t layer, int32_t head) {
  const double highest = *std::ranges::max_element(map.values);
  const double value = map.values[static_cast<size_t>(layer * map.heads_per_layer + head)];
  if (!(value > 0) || !(highest > 0)) return 0;
  return std::min(kShades - 1, static_cast<int32_t>(kShades * std::pow(value / highest, 0.25)));
}

std::string draw_text(const HeadMap& map, bool color) {
  std::string out = map.title + "\nlayer  KV heads 0.." + std::to_string(map.heads_per_layer - 1) +
                    "   (* keeps everything; fourth-root scale)\n";
  for (int32_t layer = 0; layer < map.num_layers; ++layer) {
    char label[16];
    std::snprintf(label, sizeof(label), "%5d  ", layer);
    out += label;
    for (int32_t head = 0; head < map.heads_per_layer; ++head) {
      const int32_t level = shade(map, layer, head);
      const char mark = is_marked(map, layer, head) ? '*' : ' ';
      if (color) {
        out += "\033[48;5;" + std::to_string(kAnsi[static_cast<size_t>(level)]) + ";38;5;" +
               (level < kShades / 2 ? "231" : "16") + "m " + mark + " \033[0m";
      } else {
        out += static_cast<char>('0' + level);
        out += mark;
        out += ' ';
      }
    }
    while (out.back() == ' ') out.pop_back();
    out += '\n';
  }
  return out;
}

std::string draw_svg(const HeadMap& map) {
  constexpr int32_t kCell = 18, kLeft = 52, kTop = 46;
  const int32_t width = std::max(kLeft + map.heads_per_layer * kCell + 12, 420);
  const int32_t height = kTop + map.num_layers * kCell + 30;
  std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + std::to_string(width) +
                    "\" height=\"" + std::to_string(height) +
                    "\" font-family=\"sans-serif\" font-size=\"11\">\n"
                    "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
  const auto text = [&](int32_t x, int32_t y, std::string_view anchor, std::string_view words) {
    out += "<text x=\"" + std::to_string(x) + "\" y=\"" + std::to_string(y) + "\" text-anchor=\"" +
           std::string(anchor) + "\">" + escaped(words) + "</text>\n";
  };
  text(8, 16, "start", map.title);
  text(8, kTop - 6, "start", "layer");
  for (int32_t head = 0; head < map.heads_per_layer; ++head)
    text(kLeft + head * kCell + kCell / 2, kTop - 6, "middle", std::to_string(head));
  for (int32_t layer = 0; layer < map.num_layers; ++layer) {
    text(kLeft - 8, kTop + layer * kCell + 13, "end", std::to_string(layer));
    for (int32_t head = 0; head < map.heads_per_layer; ++head) {
      const Rgb color = kColors[static_cast<size_t>(shade(map, layer, head))];
      const bool mark = is_marked(map, layer, head);
      char cell[400];
      std::snprintf(cell,
                    sizeof(cell),
                    "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"#%02x%02x%02x\"%s>"
                    "<title>layer %d, KV head %d: %.6g%s</title></rect>\n",
                    kLeft + head * kCell + 1,
                    kTop + layer * kCell + 1,
                    kCell - 2,
                    kCell - 2,
                    color.r,
                    color.g,
                    color.b,
                    mark ? " stroke=\"#d02020\" stroke-width=\"2.5\"" : "",
                    layer,
                    head,
                    map.values[static_cast<size_t>(layer * map.heads_per_layer + head)],
                    mark ? ", keeps everything" : "");
      out += cell;
    }
  }
  text(
      8, height - 10, "start", "red frame: keeps everything; fourth-root scale, hover for numbers");
  return out + "</svg>\n";
}

std::string draw_png(const HeadMap& map) {
  constexpr int32_t kCell = 16, kFrame = 2;
  constexpr Rgb kMark = {208, 32, 32}, kGap = {255, 255, 255};
  const int32_t width = map.heads_per_layer * kCell;
  const int32_t height = map.num_layers * kCell;
  std::string rows;
  for (int32_t y = 0; y < height; ++y) {
    rows += '\0';  // no filter
    for (int32_t x = 0; x < width; ++x) {
      const int32_t edge =
          std::min({x % kCell, y % kCell, kCell - 1 - x % kCell, kCell - 1 - y % kCell});
      Rgb color = kColors[static_cast<size_t>(shade(map, y / kCell, x / kCell))];
      if (edge == 0) {
        color = kGap;
      } else if (edge <= kFrame && is_marked(map, y / kCell, x / kCell)) {
        color = kMark;
      }
      rows += {static_cast<char>(color.r), static_cast<char>(color.g), static_cast<char>(color.b)};
    }
  }
  std::string header;
  put_u32(header, static_cast<uint32_t>(width));
  put_u32(header, static_cast<uint32_t>(height));
  header += {8, 2, 0, 0, 0};  // bits, RGB, deflate, filters, no interlace
  std::string out = "\x89PNG\r\n\x1a\n";
  put_chunk(out, "IHDR", header);
  put_chunk(out, "IDAT", stored_zlib(rows));
  put_chunk(out, "IEND", "");
  return out;
}

}  // namespace headwater::cli
