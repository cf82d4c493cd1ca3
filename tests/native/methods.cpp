// The numbers of Runge-Kutta methods, as jkoflow/ops/tableau.py and embedded.py have them.
#include <stdexcept>

#include "case.h"

namespace jkoflow::test {
namespace {

using Row = std::vector<double>;
using Rows = std::vector<Row>;

Tableau make(const Rows& a, const Row& b) {
  Tableau t;
  t.stages = static_cast<int>(b.size());
  for (size_t i = 0; i < b.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      t.a[i][j] = a[i][j];
      t.c[i] += a[i][j];
    }
    t.b[i] = b[i];
  }
  return t;
}

// A method with an error estimate; its b is the last row of a.
struct Embedded {
  int order;
  Rows a;
  Row error;
  Rows dense;
};

const Embedded kBosh3 = {
    3,
    {{}, {1.0 / 2}, {0, 3.0 / 4}, {2.0 / 9, 1.0 / 3, 4.0 / 9}},
    {5.0 / 72, -1.0 / 12, -1.0 / 9, 1.0 / 8},
    {{1, -4.0 / 3, 5.0 / 9}, {0, 1, -2.0 / 3}, {0, 4.0 / 3, -8.0 / 9}, {0, -1, 1}},
};

const Embedded kDopri5 = {
    5,
    {{},
     {1.0 / 5},
     {3.0 / 40, 9.0 / 40},
     {44.0 / 45, -56.0 / 15, 32.0 / 9},
     {19372.0 / 6561, -25360.0 / 2187, 64448.0 / 6561, -212.0 / 729},
     {9017.0 / 3168, -355.0 / 33, 46732.0 / 5247, 49.0 / 176, -5103.0 / 18656},
     {35.0 / 384, 0, 500.0 / 1113, 125.0 / 192, -2187.0 / 6784, 11.0 / 84}},
    {-71.0 / 57600, 0, 71.0 / 16695, -71.0 / 1920, 17253.0 / 339200, -22.0 / 525, 1.0 / 40},
    {{1, -8048581381.0 / 2820520608, 8663915743.0 / 2820520608, -12715105075.0 / 11282082432},
     {0, 0, 0, 0},
     {0, 131558114200.0 / 32700410799, -68118460800.0 / 10900136933, 87487479700.0 / 32700410799},
     {0, -1754552775.0 / 470086768, 14199869525.0 / 1410260304, -10690763975.0 / 1880347072},
     {0, 127303824393.0 / 49829197408, -318862633887.0 / 49829197408, 701980252875.0 / 199316789632},
     {0, -282668133.0 / 205662961, 2019193451.0 / 616988883, -1453857185.0 / 822651844},
     {0, 40617522.0 / 29380423, -110615467.0 / 29380423, 69997945.0 / 29380423}},
};

const Embedded kTsit5 = {
    5,
    {{},
     {0.161},
     {-0.008480655492356989, 0.335480655492357},
     {2.8971530571054935, -6.359448489975075, 4.3622954328695815},
     {5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525},
     {5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383},
     {0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774}},
    {0.00178001105222577714, 0.0008164344596567469, -0.007880878010261995, 0.1447110071732629, -0.5823571654525552,
     0.45808210592918697, -1.0 / 66},
    {{1, -2.763706197274826, 2.9132554618219126, -1.0530884977290216},
     {0, 0.13169999999999998, -0.2234, 0.1017},
     {0, 3.9302962368947516, -5.941033872131505, 2.490627285651253},
     {0, -12.411077166933676, 30.33818863028232, -16.548102889244902},
     {0, 37.50931341651104, -88.1789048947664, 47.37952196281928},
     {0, -27.896526289197286, 65.09189467479366, -34.87065786149661},
     {0, 1.5, -4.0, 2.5}},
};

const Embedded* find_embedded(const std::string& method) {
  return method == "bosh3" ? &kBosh3 : method == "dopri5" ? &kDopri5 : method == "tsit5" ? &kTsit5 : nullptr;
}

}  // namespace

const std::vector<std::string>& methods() {
  static const std::vector<std::string> names = {"euler", "midpoint", "heun", "rk4", "rk4_classic", "dense"};
  return names;
}

const std::vector<std::string>& embedded_methods() {
  static const std::vector<std::string> names = {"bosh3", "dopri5", "tsit5"};
  return names;
}

Tableau tableau(const std::string& method) {
  if (method == "euler") return make({{}}, {1});
  if (method == "midpoint") return make({{}, {0.5}}, {0, 1});
  if (method == "heun") return make({{}, {1}}, {0.5, 0.5});
  if (method == "rk4") return make({{}, {1.0 / 3}, {-1.0 / 3, 1}, {1, -1, 1}}, {0.125, 0.375, 0.375, 0.125});
  if (method == "rk4_classic") return make({{}, {0.5}, {0, 0.5}, {0, 0, 1}}, {1.0 / 6, 1.0 / 3, 1.0 / 3, 1.0 / 6});
  if (method == "dense") return make({{}, {0.3}, {-0.2, 0.7}, {0.4, 0.25, 0.15}}, {0.2, 0.35, -0.1, 0.55});
  if (const Embedded* found = find_embedded(method)) {
    Row b = found->a.back();
    b.push_back(0);
    return make(found->a, b);
  }
  throw std::invalid_argument("no method " + method);
}

Adaptive embedded(const std::string& method) {
  const Embedded* found = find_embedded(method);
  if (found == nullptr) throw std::invalid_argument(method + " has no error estimate");
  Adaptive a;
  a.order = found->order;
  for (size_t s = 0; s < found->error.size(); ++s) {
    a.error[s] = found->error[s];
    for (size_t k = 0; k < found->dense[s].size(); ++k) a.dense[s][k] = found->dense[s][k];
  }
  return a;
}

}  // namespace jkoflow::test
