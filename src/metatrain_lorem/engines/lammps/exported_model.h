// SPDX-License-Identifier: BSD-3-Clause
//
// An exported model, evaluated for plain arrays. Lengths are in Å; knows nothing of LAMMPS.

#ifndef METATRAIN_LOREM_EXPORTED_MODEL_H
#define METATRAIN_LOREM_EXPORTED_MODEL_H

#include <torch/cuda.h>
#include <torch/script.h>

#include <metatensor/torch.hpp>
#include <metatomic/torch.hpp>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

// The last line of a TorchScript traceback is the model's own message.
inline std::string reason(const std::exception &failure)
{
  const auto *of_torch = dynamic_cast<const c10::Error *>(&failure);
  const std::string text = of_torch ? of_torch->what_without_backtrace() : failure.what();
  const std::string mark = "builtins.";
  const auto start = text.rfind(mark);
  return start == std::string::npos ? text : text.substr(start + mark.size());
}

struct Pairs {
  std::vector<int> samples;       // first and second atom, three cell shifts of each pair
  std::vector<double> vectors;    // from first to second, three components of each pair
};

struct Structure {
  std::vector<int> types;         // as the model knows them
  const double *positions;        // x, y, z of each atom
  double cell[3][3];              // vectors in rows, zero where not periodic
  bool periodic[3];
  std::vector<Pairs> pairs;       // of each neighbor list that the model asks for
  int selected;                   // the first ones, whose energies count
  std::optional<std::array<double, 3>> field;    // electric, V/Å

  bool isolated() const { return !periodic[0] && !periodic[1] && !periodic[2]; }
};

struct Wanted {
  bool energies;    // per atom
  bool strain;      // the derivative by strain
  bool charges;
};

struct Results {
  double energy;
  std::vector<double> energies, charges;          // of the selected atoms, if wanted
  std::vector<double> by_positions, by_strain;    // derivatives of the energy
  std::vector<double> field_forces;    // eV/Å, beside those, on periodic structures in a field
};

class ExportedModel {
  friend class StagedModel;

 public:
  struct NeighborList {
    double cutoff;
    bool full;
  };

  ExportedModel(const std::string &path, const std::optional<std::string> &on_device,
                const std::optional<std::string> &extensions,
                const std::optional<std::string> &variant, int process)
      : module(metatomic_torch::load_atomistic_model(path, extensions))
  {
    capabilities = module.run_method("capabilities")
                       .toCustomClass<metatomic_torch::ModelCapabilitiesHolder>();
    if (!capabilities->outputs().contains("energy") && !variant)
      throw std::runtime_error("the model has no output energy, which forces are made of");
    energy_name = metatomic_torch::pick_output("energy", capabilities->outputs(), variant);

    const auto kind = metatomic_torch::pick_device(capabilities->supported_devices, on_device);
    device = on_device ? torch::Device(*on_device) : torch::Device(kind);
    if (device.is_cuda() && !device.has_index())
      device = torch::Device(torch::kCUDA, process % torch::cuda::device_count());
    dtype = capabilities->dtype() == "float32" ? torch::kFloat32 : torch::kFloat64;
    if (!device.is_cpu()) module.to(device);
    for (auto parameter : module.parameters()) parameter.requires_grad_(false);

    for (const auto &list : module.run_method("requested_neighbor_lists").toListRef())
      options.push_back(list.toCustomClass<metatomic_torch::NeighborListOptionsHolder>());
    // the only input besides the structure that an engine can give is the total charge
    for (const auto &item : module.run_method("requested_inputs", true).toGenericDict()) {
      const auto input = item.value().toCustomClass<metatomic_torch::ModelOutputHolder>();
      const std::string name = item.key().toStringRef();
      if (name != "charge" || input->sample_kind() != "system")
        throw std::runtime_error("the model asks for an input that this style does not give: " +
                                 name + " per " + input->sample_kind());
      takes_charge = true;
    }
  }

  // Infinite if all atoms feel each other.
  double range() const { return capabilities->engine_interaction_range("angstrom"); }

  std::vector<NeighborList> neighbor_lists() const
  {
    std::vector<NeighborList> result;
    for (const auto &list : options)
      result.push_back({list->engine_cutoff("angstrom"), list->full_list()});
    return result;
  }

  const std::vector<int64_t> &types() const { return capabilities->atomic_types; }
  bool has_charges() const { return has("charge"); }
  bool has(const char *output) const { return capabilities->outputs().contains(output); }

  std::string describe() const
  {
    const std::string threads = std::to_string(at::get_num_threads()) + " thread(s)";
    return capabilities->dtype() + " on " + device.str() + (device.is_cpu() ? ", " + threads : "");
  }

  Results evaluate(const Structure &structure, const Wanted &wanted) const
  {
    const int64_t count = structure.types.size();
    auto positions = numbers(structure.positions, {count, 3}).requires_grad_(true);
    auto strain = torch::eye(3, torch::dtype(dtype).device(device)).requires_grad_(wanted.strain);

    torch::Dict<std::string, metatomic_torch::ModelOutput> requested;
    requested.insert(energy_name, output(energy_unit, wanted.energies ? "atom" : "system"));
    if (wanted.charges) requested.insert("charge", output("e", "atom"));
    const bool first_order = structure.field && !structure.isolated();
    if (first_order) requested.insert(born_charge, output("e", "atom"));
    torch::optional<metatensor_torch::Labels> selected;
    if (structure.selected < count) {
      auto atoms = torch::zeros({structure.selected, 2}, torch::kInt32);
      atoms.select(1, 1).copy_(torch::arange(structure.selected, torch::kInt32));
      selected = labels({"system", "atom"}, atoms);
    }
    auto evaluation = torch::make_intrusive<metatomic_torch::ModelEvaluationOptionsHolder>(
        "angstrom", requested, selected);
    const auto cell = numbers(&structure.cell[0][0], {3, 3});
    const std::vector<metatomic_torch::System> systems = {
        system(structure, positions.matmul(strain), cell.matmul(strain), 1.0)};
    auto method = module.get_method("forward");
    const auto outputs = method({systems, evaluation, check_consistency}).toGenericDict();

    Results results;
    const auto energy = block(outputs.at(energy_name))->values().sum();
    results.energy = energy.item<double>();
    torch::autograd::variable_list variables = {positions}, gradients(2);
    if (wanted.strain) variables.push_back(strain);
    // a lone atom's energy depends on no position
    if (energy.requires_grad())
      gradients = torch::autograd::grad({energy}, variables, {}, torch::nullopt, false, true);
    results.by_positions = values(gradients[0], 3 * count);
    if (wanted.strain) results.by_strain = values(gradients[1], 9);
    if (wanted.energies) results.energies = of_atoms(outputs.at(energy_name), structure.selected);
    if (wanted.charges) results.charges = of_atoms(outputs.at("charge"), structure.selected);
    if (first_order) {
      const auto born = block(outputs.at(born_charge))->values().detach().squeeze(-1);
      const auto forces = born.matmul(numbers(structure.field->data(), {3}).to(born.dtype()));
      results.field_forces = values(forces, 3 * count);
    }
    return results;
  }

  // The first index of Born charges is the displacement's.
  static constexpr const char *born_charge = "mtt::born_effective_charge";
  static constexpr const char *polarizability = "mtt::polarizability";

  std::string energy_unit;
  bool check_consistency = false;
  bool takes_charge = false;
  std::optional<double> total_charge;

 private:
  using Labels = metatensor_torch::LabelsHolder;
  using Block = metatensor_torch::TensorBlockHolder;
  using Map = metatensor_torch::TensorMapHolder;

  torch::Tensor numbers(const double *data, torch::IntArrayRef shape) const
  {
    return torch::from_blob(const_cast<double *>(data), shape, torch::kFloat64)
        .to(torch::dtype(dtype).device(device), false, true);
  }

  metatensor_torch::Labels labels(const std::vector<std::string> &names,
                                  const torch::Tensor &entries) const
  {
    return torch::make_intrusive<Labels>(names, entries.to(device), metatensor::assume_unique{});
  }

  static metatomic_torch::ModelOutput output(const std::string &unit, const char *sample_kind)
  {
    return torch::make_intrusive<metatomic_torch::ModelOutputHolder>(
        "", unit, sample_kind, std::vector<std::string>{}, "");
  }

  static metatensor_torch::TensorBlock block(const c10::IValue &output)
  {
    return Map::block_by_id(output.toCustomClass<Map>(), 0);
  }

  static std::vector<double> values(const torch::Tensor &tensor, int64_t count)
  {
    if (!tensor.defined()) return std::vector<double>(count, 0.0);
    const auto copy = tensor.detach().to(torch::kCPU, torch::kFloat64).contiguous();
    return {copy.data_ptr<double>(), copy.data_ptr<double>() + count};
  }

  static std::vector<double> of_atoms(const c10::IValue &output, int count)
  {
    const auto given = block(output);
    const auto atoms = given->samples()->column("atom").to(torch::kInt64);
    const auto ordered = torch::zeros({count}, given->values().options());
    return values(ordered.index_copy(0, atoms, given->values().detach().flatten()), count);
  }

  // Lengths in a unit that is a multiple of Å, but for those of the structure.
  metatomic_torch::System system(const Structure &structure, const torch::Tensor &positions,
                                 const torch::Tensor &cell, double length) const
  {
    auto types = torch::tensor(structure.types, torch::kInt32).to(device);
    auto periodic = torch::zeros({3}, torch::kBool);
    std::copy_n(structure.periodic, 3, periodic.data_ptr<bool>());
    auto result = torch::make_intrusive<metatomic_torch::SystemHolder>(
        types, positions, cell, periodic.to(device));
    for (size_t i = 0; i < options.size(); i++) {
      auto neighbors = pair_block(structure.pairs[i], length);
      metatomic_torch::register_autograd_neighbors(result, neighbors, check_consistency);
      result->add_neighbor_list(options[i], neighbors);
    }
    if (total_charge) result->add_data("charge", charge_map());
    if (structure.field && structure.isolated())
      result->add_data("mtt::electric_field", field_map(*structure.field));
    return result;
  }

  metatensor_torch::TensorMap field_map(const std::array<double, 3> &field) const
  {
    auto block = torch::make_intrusive<Block>(
        numbers(field.data(), {1, 3, 1}), Labels::range("system", 1)->to(device),
        std::vector<metatensor_torch::Labels>{Labels::range("xyz", 3)->to(device)},
        Labels::range("electric_field", 1)->to(device));
    return torch::make_intrusive<Map>(Labels::single()->to(device),
                                      std::vector<metatensor_torch::TensorBlock>{block});
  }

  metatensor_torch::TensorBlock pair_block(const Pairs &pairs, double length) const
  {
    const int64_t count = pairs.vectors.size() / 3;
    auto samples = torch::from_blob(const_cast<int *>(pairs.samples.data()), {count, 5},
                                    torch::kInt32).clone();
    return torch::make_intrusive<Block>(
        length * numbers(pairs.vectors.data(), {count, 3, 1}),
        labels({"first_atom", "second_atom", "cell_shift_a", "cell_shift_b", "cell_shift_c"},
               samples),
        std::vector<metatensor_torch::Labels>{Labels::range("xyz", 3)->to(device)},
        Labels::range("distance", 1)->to(device));
  }

  metatensor_torch::TensorMap charge_map() const
  {
    auto block = torch::make_intrusive<Block>(
        numbers(&*total_charge, {1, 1}), Labels::range("system", 1)->to(device),
        std::vector<metatensor_torch::Labels>{}, Labels::range("charge", 1)->to(device));
    return torch::make_intrusive<Map>(Labels::single()->to(device),
                                      std::vector<metatensor_torch::TensorBlock>{block});
  }

  metatensor_torch::Module module;
  metatomic_torch::ModelCapabilities capabilities;
  std::vector<metatomic_torch::NeighborListOptions> options;
  std::string energy_name;
  torch::Device device = torch::kCPU;
  torch::ScalarType dtype = torch::kFloat64;
};

#endif
