// SPDX-License-Identifier: BSD-3-Clause
//
// Charges of a model by conjugate gradients, where several processes share the atoms: the algorithm
// of electrostatics/equilibration/iterative.py, with products that are stages of the model.

#ifndef METATRAIN_LOREM_CONJUGATE_GRADIENTS_H
#define METATRAIN_LOREM_CONJUGATE_GRADIENTS_H

#include "parallel.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

// Vectors hold the own atoms of the process, numbers and means are those of all.
class ChargeSolver {
 public:
  // rows: of the own atoms of the matrix A, atoms: number of all
  ChargeSolver(const torch::jit::Module &stages, torch::IValue rows, const torch::IValue &part,
               double atoms, Communication &communication)
      : stages(stages), rows(std::move(rows)), atoms(atoms), communication(communication)
  {
    const auto limits = method("stage_limits")({part}).toTuple()->elements();
    total_charge = limits[0].toDouble();
    tolerance = limits[1].toDouble();
    max_iterations = limits[2].toInt();
  }

  // A times charges, with derivatives
  torch::Tensor product(Tape &tape, const torch::Tensor &v) const
  {
    const auto sums = tape.run(method("stage_product_spread"), {rows, v}).toTuple()->elements();
    const auto all = tape.exchange(v);
    return tape
        .run(method("stage_product"),
             {rows, all, tape.sum(sums[0].toTensor()), tape.sum(sums[1].toTensor())})
        .toTensor();
  }

  // Charges that electronegativities lead to, and what those of the own atoms must sum to when
  // the rounding error of the total charge is removed.
  torch::Tensor charges(const torch::Tensor &chi) const { return solve(chi, total_charge, ""); }

  torch::Tensor own_total(const torch::Tensor &q) const
  {
    const auto own = q.detach().to(torch::kFloat64).sum();
    const double missing = total_charge - sum(own);
    return (own + missing * q.size(0) / atoms).unsqueeze(0);
  }

  // Change of the charges when b is added to the electronegativities. In derivatives b is often
  // uniform up to noise, since the energy of the charges is stationary.
  torch::Tensor response(const torch::Tensor &b) const
  {
    torch::NoGradGuard no_gradients;
    if (norm(without_mean(b)) <= tolerance * norm(b)) return torch::zeros_like(b);
    return solve(b, 0.0, " (response of the charges)");
  }

 private:
  torch::jit::Method method(const std::string &name) const { return stages.get_method(name); }

  double sum(const torch::Tensor &x) const
  {
    return communication.sum(x.sum().to(torch::kFloat64).reshape({1})).item<double>();
  }

  double dot(const torch::Tensor &x, const torch::Tensor &y) const { return sum(x * y); }
  double norm(const torch::Tensor &x) const { return std::sqrt(dot(x, x)); }

  torch::Tensor without_mean(const torch::Tensor &x) const
  {
    const auto projected = x - sum(x) / atoms;
    // once more: the rounding error of a large mean may exceed all that is left
    return projected - sum(projected) / atoms;
  }

  torch::Tensor product(const torch::Tensor &v) const
  {
    const auto sums = method("stage_product_spread")({rows, v}).toTuple()->elements();
    const auto all = communication.exchange(v);
    return method("stage_product")({rows, all, communication.sum(sums[0].toTensor()),
                                    communication.sum(sums[1].toTensor())})
        .toTensor();
  }

  torch::Tensor precondition(const torch::Tensor &v, bool kerker) const
  {
    if (!kerker) return method("stage_jacobi")({rows, v}).toTensor();
    const auto values = method("stage_precondition_spread")({rows, v}).toTensor();
    return method("stage_precondition")({rows, v, communication.sum(values)}).toTensor();
  }

  torch::Tensor solve(torch::Tensor b, double total, const std::string &what) const
  {
    torch::NoGradGuard no_gradients;
    const Clock clock("conjugate gradients");
    b = without_mean(b);
    const auto ones = torch::ones_like(b);
    auto q = ones * (total / atoms);
    auto r = -without_mean(b + product(q));
    const double scale = std::max({norm(b), norm(r), 1e-30});
    bool kerker = true;
    auto preconditioned_ones = precondition(ones, kerker);
    double sum_of_ones = sum(preconditioned_ones), rz = 1.0, residual = norm(r) / scale;
    auto p = torch::zeros_like(b);
    for (int64_t iteration = 0; !(residual <= tolerance); iteration++) {
      if (iteration >= max_iterations)
        throw std::runtime_error(
            "charge equilibration did not converge" + what + ": after " +
            std::to_string(iteration) + " iterations the relative residual is " +
            std::to_string(residual) + ", the tolerance " + std::to_string(tolerance) +
            ". Look for atoms that are too close or far from anything the model was trained on");
      auto z = precondition(r, kerker);
      z = z - preconditioned_ones * (sum(z) / sum_of_ones);
      const double new_rz = dot(r, z);
      p = z + p * (new_rz / rz);
      rz = new_rz;
      const auto ap = without_mean(product(p));
      const double curvature = dot(p, ap);
      // both vanish when there is nothing left to do
      const double step = curvature > 0.0 ? rz / curvature : 0.0;
      q = q + step * p;
      r = r - step * ap;
      residual = norm(r) / scale;
      if (kerker && !(rz > 0.0) && !(residual <= tolerance)) {
        kerker = false;
        preconditioned_ones = precondition(ones, kerker);
        sum_of_ones = sum(preconditioned_ones);
        p = torch::zeros_like(b);
        rz = 1.0;
      }
    }
    return q;
  }

  const torch::jit::Module &stages;
  torch::IValue rows;
  double atoms, total_charge, tolerance;
  int64_t max_iterations;
  Communication &communication;
};

#endif
