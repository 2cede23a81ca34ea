#include "server/http/sse_writer.h"

#include <charconv>

namespace headwater::http {

std::string SseWriter::event(std::string_view data) const {
  std::string payload("data: ");
  payload += data;
  payload += "\n\n";
  return framed(payload);
}

std::string SseWriter::ping() const { return framed(": ping\n\n"); }

std::string SseWriter::end() const { return chunked_ ? "0\r\n\r\n" : ""; }

std::string SseWriter::framed(std::string_view payload) const {
  if (!chunked_) return std::string(payload);
  char size[16];
  const auto [end, error] = std::to_chars(size, size + sizeof size, payload.size(), 16);
  std::string out(size, end);
  out += "\r\n";
  out += payload;
  out += "\r\n";
  return out;
}

}  // namespace headwater::http
