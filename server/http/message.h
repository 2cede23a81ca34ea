// HttpRequest, HttpReply: what handlers see of HTTP. Plain values.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace headwater::http {

struct HttpRequest {
  std::string method;  // "GET"; HEAD arrives as GET
  std::string path;    // percent-decoded, without the query
  std::string body;
  std::string authorization;
  std::string request_id;  // the client's x-request-id, or one made for it
};

struct HttpReply {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers = {};
};

}  // namespace headwater::http
