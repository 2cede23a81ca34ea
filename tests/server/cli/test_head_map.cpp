// Heat maps: shades, marks, and files that readers of the formats accept.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdint>

#include "server/cli/head_map.h"

using namespace headwater::cli;  // NOLINT: test

namespace {

HeadMap sample() {
  HeadMap map{"a <model> & more", 2, 3, {0, 0.0001, 0.0625, 1, -0.5, 0.4096}, {}};
  map.marked = {false, false, false, true, false, true};
  return map;
}

uint32_t u32(const std::string& bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(bytes.at(at + i));
  return value;
}

}  // namespace

TEST_CASE("Head map: text has a digit per head and a star per full head", "[cli][unit]") {
  const std::string text = draw_text(sample(), false);
  CHECK(text.find("    0  0  1  5\n") != std::string::npos);
  CHECK(text.find("    1  9* 0  8*\n") != std::string::npos);
  const std::string color = draw_text(sample(), true);
  CHECK(std::ranges::count(color, '*') == 1 + 2);  // the legend's too
  CHECK(color.find("\033[48;5;226;38;5;16m * \033[0m") != std::string::npos);
}

TEST_CASE("Head map: nothing above zero is all of the lowest shade", "[cli][unit]") {
  HeadMap map = sample();
  map.values.assign(6, 0.0);
  for (int32_t i = 0; i < 6; ++i) CHECK(shade(map, i / 3, i % 3) == 0);
}

TEST_CASE("Head map: SVG escapes its title and frames full heads", "[cli][unit]") {
  const std::string svg = draw_svg(sample());
  CHECK(svg.find("a &lt;model> &amp; more") != std::string::npos);
  size_t frames = 0;
  for (size_t at = 0; (at = svg.find("stroke=\"#d02020\"", at)) != std::string::npos; ++at)
    ++frames;
  CHECK(frames == 2);
  CHECK(svg.find("layer 1, KV head 2: 0.4096, keeps everything") != std::string::npos);
}

TEST_CASE("Head map: PNG holds the pixels", "[cli][unit]") {
  const std::string png = draw_png(sample());
  REQUIRE(png.substr(0, 8) == "\x89PNG\r\n\x1a\n");
  REQUIRE(u32(png, 8) == 13);
  const uint32_t width = u32(png, 16), height = u32(png, 20);
  REQUIRE(width == 48);
  REQUIRE(height == 32);
  const uint32_t data = u32(png, 33);
  REQUIRE(png.substr(37, 4) == "IDAT");
  // zlib header, one stored block (the image is below 64 KiB), Adler-32.
  REQUIRE(png.substr(41, 3) == std::string("\x78\x01\x01", 3));
  const auto size = static_cast<uint32_t>(static_cast<unsigned char>(png[44]) |
                                          static_cast<unsigned char>(png[45]) << 8);
  REQUIRE(size == height * (1 + 3 * width));
  REQUIRE(data == 2 + 5 + size + 4);
  const auto pixel = [&](uint32_t x, uint32_t y) {
    return png.substr(48 + y * (1 + 3 * width) + 1 + 3 * x, 3);
  };
  CHECK(pixel(0, 0) == "\xff\xff\xff");
  CHECK(pixel(1, 17) == "\xd0\x20\x20");  // layer 1, head 0 is framed
  CHECK(pixel(8, 24) == "\xfa\xe6\x3c");  // and the highest
  CHECK(pixel(40, 8) != pixel(8, 8));
  // The end as every PNG has it, its check sum included.
  CHECK(png.substr(png.size() - 12) == std::string("\0\0\0\0IEND\xae\x42\x60\x82", 12));
}

TEST_CASE("Head map: PNG of a large model takes several blocks", "[cli][unit]") {
  HeadMap map{"large", 80, 64, std::vector<double>(80 * 64, 0.5), std::vector<bool>(80 * 64)};
  const std::string png = draw_png(map);
  const uint32_t data = u32(png, 33);
  size_t at = 43, total = 0;
  bool last = false;
  while (!last) {
    last = png.at(at) == 1;
    const size_t size = static_cast<unsigned char>(png[at + 1]) |
                        static_cast<size_t>(static_cast<unsigned char>(png[at + 2])) << 8;
    total += size;
    at += 5 + size;
  }
  CHECK(total == size_t{80 * 16} * (1 + 3 * 64 * 16));
  CHECK(at + 4 == 41 + data);
}
