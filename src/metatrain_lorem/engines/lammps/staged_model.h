// SPDX-License-Identifier: BSD-3-Clause
//
// An exported model, evaluated by several processes in stages (stages.py). Knows nothing of LAMMPS.

#ifndef METATRAIN_LOREM_STAGED_MODEL_H
#define METATRAIN_LOREM_STAGED_MODEL_H

#include "conjugate_gradients.h"
#include "exported_model.h"
#include "parallel.h"

// Part of a structure: its own atoms are the selected ones. Energies and derivatives are shares of
// the process in the sum over all; a process without atoms may have one in the derivative by strain.
class StagedModel {
 public:
  explicit StagedModel(ExportedModel &model) : model(model)
  {
    if (!model.module.hasattr("module"))
      throw std::runtime_error("it has no stages");
    stages = model.module.attr("module").toModule();
    if (!stages.find_method("stage_support"))
      throw std::runtime_error(
          "it has no stages, between which processes could communicate. A model of this package "
          "that was exported by an older version has them after another mtt export; models with "
          "uncertainties (LLPR) and those of other packages have none");
    const auto support = stages.run_method("stage_support").toTuple()->elements();
    equilibration = support[0].toBool();
    long_range = support[1].toBool();
    // models exported before have two
    equilibrates_last = support.size() > 2 && support[2].toBool();
  }

  Results evaluate(const Structure &structure, const Wanted &wanted,
                   Communication &communication) const
  {
    const double length = metatomic_torch::unit_conversion_factor(
        "angstrom", model.capabilities->length_unit());
    const int64_t count = structure.types.size(), own = structure.selected;
    const auto positions = model.numbers(structure.positions, {count, 3}).requires_grad_(true);
    const auto strain = torch::eye(3, positions.options()).requires_grad_(wanted.strain);
    const auto cell = model.numbers(&structure.cell[0][0], {3, 3});
    Tape tape(communication);
    // metatomic's system is not taken apart by the tape
    const auto positioned = tape.cut(length * positions.matmul(strain)).toTensor();
    const auto strained = tape.cut(length * cell.matmul(strain)).toTensor();
    const auto system = model.system(structure, positioned, strained, length);

    const auto begin = tape.run(method("stage_sums"), {system, own}).toTuple()->elements();
    const auto extents = communication.largest(begin[1].toTensor());
    const auto sums = tape.sum(begin[0].toTensor());
    auto part = tape.run(method("stage_local"), {system, own, sums, extents});
    std::optional<ChargeSolver> solver;
    torch::Tensor chi, q;
    size_t before = 0;
    const auto equilibrate = [&] {
      const auto results =
          tape.run(method("stage_operator"), {system, part, sums}).toTuple()->elements();
      chi = results[1].toTensor();
      solver.emplace(stages, results[0], part, sums[0].item<double>(), communication);
      before = tape.size();
      q = solver->charges(chi.detach()).requires_grad_(true);
      const auto products = solver->product(tape, q);
      part = tape.run(method("stage_equilibrated"),
                      {part, chi, q, products, solver->own_total(q)});
    };
    const auto add_potentials = [&] {
      const auto results = tape.run(method("stage_charges"), {part}).toTuple()->elements();
      const auto charges = results[0].toTensor();
      const auto sizes = communication.largest(results[2].toTensor());
      const auto on_mesh =
          tape.run(method("stage_spread"), {part, charges, sizes}).toTuple()->elements();
      const auto mesh = on_mesh[1].toTensor();
      // each process transforms some of the channels
      auto rows = tape.scatter(mesh);
      if (rows.size(0) > 0) rows = tape.run(method("stage_filter"), {part, rows}).toTensor();
      part = tape.run(method("stage_potentials"),
                      {part, tape.exchange(charges), tape.sum(results[1].toTensor()), on_mesh[0],
                       tape.gather(rows, mesh.size(0)), sizes});
    };
    if (equilibration && !equilibrates_last) equilibrate();
    if (long_range) add_potentials();
    if (equilibration && equilibrates_last) equilibrate();
    torch::Dict<std::string, metatomic_torch::ModelOutput> requested;
    requested.insert(model.energy_name, ExportedModel::output("", "atom"));
    if (wanted.charges) requested.insert("charge", ExportedModel::output("", "atom"));
    std::optional<Clock> clock("stage_outputs");
    const auto outputs =
        method("stage_outputs")({system, own, requested, part}).toGenericDict();

    Results results{};
    const double unit = metatomic_torch::unit_conversion_factor(
        model.capabilities->outputs().at(model.energy_name)->unit(), model.energy_unit);
    const auto energies = unit * ExportedModel::block(outputs.at(model.energy_name))->values();
    const bool counts = communication.counts();
    if (counts && energies.requires_grad()) energies.sum().backward();
    clock.reset();
    if (solver) {
      // the charges respond: with lambda = -1/A dE/dq on zero sum and the residual r = A q + chi of
      // the charges, the energy lacks the derivative of lambda r at these charges
      tape.backward(before);
      const auto gradient = q.grad().defined() ? q.grad() : torch::zeros_like(q);
      const auto lambda = solver->response(gradient);
      const auto products = solver->product(tape, q.detach());
      if (counts) Tape::accumulate(products, lambda);
      if (counts && chi.requires_grad()) Tape::accumulate(chi, lambda);
      tape.backward(before);
    }
    tape.backward();
    if (wanted.strain) results.by_strain = ExportedModel::values(strain.grad(), 9);
    if (!counts) return results;
    results.by_positions = ExportedModel::values(positions.grad(), 3 * count);
    results.energy = energies.sum().item<double>();
    if (wanted.energies) results.energies = ExportedModel::values(energies, own);
    if (wanted.charges) results.charges = model.of_atoms(outputs.at("charge"), own);
    return results;
  }

 private:
  torch::jit::Method method(const std::string &name) const { return stages.get_method(name); }

  ExportedModel &model;
  torch::jit::Module stages;
  bool equilibration, long_range, equilibrates_last;
};

#endif
