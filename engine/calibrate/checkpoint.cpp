#include "engine/calibrate/checkpoint.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <limits>
#include <sstream>
#include <stdexcept>

namespace headwater {

Checkpoint::Checkpoint(std::string path, std::string key)
    : path_(std::move(path)), key_(std::move(key)) {
  std::ifstream file(path_);
  std::string line;
  if (!std::getline(file, line) || line != key_) return;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    std::vector<double> values;
    for (double value = 0; words >> value;) values.push_back(value);
    lists_[name] = std::move(values);
  }
  resumed_ = !lists_.empty();
}

std::vector<double> Checkpoint::get(const std::string& name) const {
  const auto found = lists_.find(name);
  return found != lists_.end() ? found->second : std::vector<double>{};
}

void Checkpoint::save() const {
  if (path_.empty()) return;
  const std::string fresh = path_ + ".new";
  {
    std::ofstream file(fresh, std::ios::trunc);
    file << key_ << "\n" << std::setprecision(std::numeric_limits<double>::max_digits10);
    for (const auto& [name, values] : lists_) {
      file << name;
      for (const double value : values) file << ' ' << value;
      file << "\n";
    }
    if (!file.flush()) throw std::runtime_error("cannot write " + fresh);
  }
  std::filesystem::rename(fresh, path_);
}

void Checkpoint::remove() const {
  if (!path_.empty()) std::filesystem::remove(path_);
}

}  // namespace headwater
