// Scores rows with a flow that `jkoflow export RUN --format aoti --out flow.pt2` wrote, by LibTorch alone:
//
//     serve flow.pt2 < rows.csv
//
// The first line of the table names its columns, which are found by name. Prints the log-density of every row, in nats.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, by);) {
    if (!part.empty() && part.back() == '\r') part.pop_back();
    parts.push_back(part);
  }
  return parts;
}

// Values of some columns of a table, as a tensor (rows, columns).
at::Tensor columns_of(const std::vector<std::vector<double>>& table, const std::vector<std::string>& header,
                      const std::vector<std::string>& names) {
  at::Tensor found = at::empty({static_cast<int64_t>(table.size()), static_cast<int64_t>(names.size())}, at::kDouble);
  auto values = found.accessor<double, 2>();
  for (size_t column = 0; column < names.size(); ++column) {
    const auto place = std::find(header.begin(), header.end(), names[column]);
    if (place == header.end()) throw std::runtime_error("the table lacks the column " + names[column]);
    for (size_t row = 0; row < table.size(); ++row) values[row][column] = table[row][place - header.begin()];
  }
  return found;
}

void score(const std::string& path) {
  torch::inductor::AOTIModelPackageLoader flow(path);
  auto about = flow.get_metadata();
  if (about["function"] != "log_prob")
    throw std::runtime_error(path + " computes " + about["function"] + ", not log_prob");

  std::string line;
  if (!std::getline(std::cin, line)) throw std::runtime_error("the table is empty; its first line names its columns");
  const auto header = split(line, ',');
  std::vector<std::vector<double>> table;
  while (std::getline(std::cin, line)) {
    if (line.empty() || line == "\r") continue;
    std::vector<double> row;
    for (const auto& cell : split(line, ',')) row.push_back(std::stod(cell));
    if (row.size() != header.size())
      throw std::runtime_error("row " + std::to_string(table.size()) + " has " + std::to_string(row.size()) + " cells");
    table.push_back(std::move(row));
  }

  const auto type = about["dtype"] == "float64" ? at::kDouble : at::kFloat;
  std::vector<at::Tensor> inputs{columns_of(table, header, split(about["columns"], '\n')).to(type)};
  const auto context = split(about["context"], '\n');
  if (!context.empty()) inputs.push_back(columns_of(table, header, context).to(type));

  const at::Tensor log_prob = flow.run(inputs)[0].to(at::kDouble).contiguous();
  for (int64_t row = 0; row < log_prob.size(0); ++row) std::printf("%.17g\n", log_prob.data_ptr<double>()[row]);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: serve FLOW.pt2 < rows.csv\n";
    return 2;
  }
  try {
    const c10::InferenceMode no_gradients;
    score(arguments[1]);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
}
