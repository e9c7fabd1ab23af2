// SPDX-License-Identifier: GPL-2.0-or-later
//
// pair_style metatomic for LAMMPS: energies, forces, virial and charges of an exported model.
//
// The licence differs from the rest of this package because this file is compiled against the
// headers of LAMMPS, which are under the GPL. LAMMPS loads the result as a plugin.

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pair.h"
#include "update.h"

#include <torch/cuda.h>
#include <torch/script.h>

#include <metatensor/torch.hpp>
#include <metatomic/torch.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <unordered_map>

using metatensor_torch::LabelsHolder;
using metatensor_torch::TensorBlockHolder;
using metatensor_torch::TensorMapHolder;
using metatomic_torch::ModelOutput;
using metatomic_torch::ModelOutputHolder;

namespace LAMMPS_NS {

class PairMetatomic : public Pair {
 public:
  explicit PairMetatomic(LAMMPS *lmp);
  ~PairMetatomic() override;
  void settings(int narg, char **arg) override;
  void coeff(int narg, char **arg) override;
  void init_style() override;
  double init_one(int i, int j) override;
  void compute(int eflag, int vflag) override;
  void *extract(const char *name, int &dimension) override;
  void *extract_peratom(const char *name, int &columns) override;

 private:
  // what the model gets instead of LAMMPS's ghost atoms
  struct Geometry {
    int count;                               // atoms in the model's system
    std::vector<int> owner;                  // atom of the system that each LAMMPS atom stands for
    std::vector<std::array<int, 3>> shift;   // its displacement in cell vectors
  };

  void load(const std::optional<std::string> &device, const std::optional<std::string> &extensions,
            const std::optional<std::string> &variant);
  void check_inputs();
  Geometry geometry() const;
  metatomic_torch::System system(const Geometry &geometry, const torch::Tensor &positions,
                                 const torch::Tensor &strain) const;
  metatensor_torch::TensorBlock pairs(const metatomic_torch::NeighborListOptions &options,
                                      const Geometry &geometry) const;
  metatensor_torch::TensorMap charge_map() const;
  torch::Tensor per_atom(const c10::IValue &output) const;
  template <class Function> void guarded(const std::string &task, Function function) const;
  torch::TensorOptions numbers() const { return torch::dtype(dtype).device(device); }
  torch::TensorOptions integers() const { return torch::dtype(torch::kInt32).device(device); }

  std::string path, energy_name;
  std::unique_ptr<metatensor_torch::Module> model;
  metatomic_torch::ModelCapabilities capabilities;
  std::vector<metatomic_torch::NeighborListOptions> lists;
  torch::Device device = torch::kCPU;
  torch::ScalarType dtype = torch::kFloat64;
  std::string energy_unit;
  double cutoff = 0.0;               // of all neighbour lists, Å
  double range = 0.0;                // beyond which atoms do not feel each other, Å
  bool check_consistency = false;
  std::optional<double> total_charge;
  std::vector<int> model_type;       // of LAMMPS's types, which start at 1

  std::vector<double> charges;       // of the local atoms
  int charge_flag = 0;               // set by `fix pair … charge 1` on the steps it needs
  bool triggered = false;            // the next reader of charges sets charge_flag
  bool always_charges = false;       // a reader that sets no flag exists
  bool charges_fresh = false;        // the last evaluation had charges
};

PairMetatomic::PairMetatomic(LAMMPS *lmp) : Pair(lmp)
{
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  single_enable = 0;
  no_virial_fdotr_compute = 1;    // the virial is a derivative by strain
  centroidstressflag = CENTROID_NOTAVAIL;
}

PairMetatomic::~PairMetatomic()
{
  if (!allocated) return;
  memory->destroy(setflag);
  memory->destroy(cutsq);
  memory->destroy(cutghost);
}

// The last line of a TorchScript traceback is the model's own message.
static std::string reason(const std::exception &failure)
{
  const auto *of_torch = dynamic_cast<const c10::Error *>(&failure);
  const std::string text = of_torch ? of_torch->what_without_backtrace() : failure.what();
  const auto start = text.rfind("builtins.");
  return start == std::string::npos ? text : text.substr(start + std::strlen("builtins."));
}

template <class Function>
void PairMetatomic::guarded(const std::string &task, Function function) const
{
  std::string failure;
  try {
    function();
  } catch (const LAMMPSException &) {
    throw;
  } catch (const std::exception &exception) {
    failure = reason(exception);
  }
  if (!failure.empty()) error->one(FLERR, "pair_style metatomic, {}: {}", task, failure);
}

void PairMetatomic::settings(int narg, char **arg)
{
  if (narg < 1) error->all(FLERR, "pair_style metatomic needs an exported model: metatomic FILE.pt");
  path = arg[0];
  check_consistency = false;
  total_charge.reset();
  std::optional<std::string> on_device, extensions, variant;
  for (int i = 1; i < narg; i += 2) {
    const std::string key = arg[i];
    if (i + 1 == narg) error->all(FLERR, "pair_style metatomic: keyword {} lacks its value", key);
    const std::string value = arg[i + 1];
    if (key == "device") {
      on_device = value;
    } else if (key == "extensions") {
      extensions = value;
    } else if (key == "check_consistency") {
      check_consistency = utils::logical(FLERR, value, false, lmp);
    } else if (key == "total_charge") {
      total_charge = utils::numeric(FLERR, value, false, lmp);
    } else if (key == "variant") {
      variant = value;
    } else {
      error->all(FLERR, "pair_style metatomic: unknown keyword {}; this style knows device, "
                        "extensions, check_consistency, total_charge, variant", key);
    }
  }

  if (std::strcmp(update->unit_style, "metal") == 0) {
    energy_unit = "eV";
  } else if (std::strcmp(update->unit_style, "real") == 0) {
    energy_unit = "kcal/mol";
  } else {
    error->all(FLERR, "pair_style metatomic runs in units metal or real, not {}",
               update->unit_style);
  }
  if (!platform::file_is_readable(path))
    error->all(FLERR, "pair_style metatomic: there is no readable file {}", path);
  guarded("loading " + path, [&] { load(on_device, extensions, variant); });
  check_inputs();
  if (comm->me == 0)
    utils::logmesg(lmp, "Model {}: {}, interaction range {} Å, on {}\n", path,
                   capabilities->dtype(), range, device.str());
  if (allocated) std::fill_n(&setflag[0][0], (atom->ntypes + 1) * (atom->ntypes + 1), 0);
}

void PairMetatomic::load(const std::optional<std::string> &on_device,
                         const std::optional<std::string> &extensions,
                         const std::optional<std::string> &variant)
{
  model = std::make_unique<metatensor_torch::Module>(
      metatomic_torch::load_atomistic_model(path, extensions));
  capabilities = model->run_method("capabilities")
                     .toCustomClass<metatomic_torch::ModelCapabilitiesHolder>();
  if (!capabilities->outputs().contains("energy") && !variant)
    throw std::runtime_error("the model has no output energy, which forces are made of");
  energy_name = metatomic_torch::pick_output("energy", capabilities->outputs(), variant);

  const auto kind = metatomic_torch::pick_device(capabilities->supported_devices, on_device);
  device = on_device ? torch::Device(*on_device) : torch::Device(kind);
  if (device.is_cuda() && !device.has_index())
    device = torch::Device(torch::kCUDA, comm->me % torch::cuda::device_count());
  dtype = capabilities->dtype() == "float32" ? torch::kFloat32 : torch::kFloat64;
  if (!device.is_cpu()) model->to(device);
  for (auto parameter : model->parameters()) parameter.requires_grad_(false);

  range = capabilities->engine_interaction_range("angstrom");
  lists.clear();
  cutoff = 0.0;
  for (const auto &requested : model->run_method("requested_neighbor_lists").toListRef()) {
    lists.push_back(requested.toCustomClass<metatomic_torch::NeighborListOptionsHolder>());
    cutoff = std::max(cutoff, lists.back()->engine_cutoff("angstrom"));
  }
}

// The only input besides the structure that LAMMPS can give is the total charge.
void PairMetatomic::check_inputs()
{
  bool takes_charge = false;
  std::string unknown;
  guarded("asking " + path + " for its inputs", [&] {
    for (const auto &item : model->run_method("requested_inputs", true).toGenericDict()) {
      const auto input = item.value().toCustomClass<ModelOutputHolder>();
      if (item.key().toStringRef() == "charge" && input->sample_kind() == "system")
        takes_charge = true;
      else
        unknown = item.key().toStringRef() + " per " + input->sample_kind();
    }
  });
  if (!unknown.empty())
    error->all(FLERR, "pair_style metatomic: the model {} asks for an input, {}, that this style "
                      "does not give", path, unknown);
  if (takes_charge && !total_charge)
    error->all(FLERR, "pair_style metatomic: the model {} takes the total charge of the system. "
                      "Give it (pair_style metatomic {} total_charge 0), or build it into the "
                      "model with python -m metatrain_lorem set-charge", path, path);
  if (!takes_charge && total_charge)
    error->all(FLERR, "pair_style metatomic: total_charge {} is given, but the model {} takes no "
                      "total charge. Remove the keyword", *total_charge, path);
}

void PairMetatomic::coeff(int narg, char **arg)
{
  const int ntypes = atom->ntypes;
  if (narg != 2 + ntypes || std::strcmp(arg[0], "*") != 0 || std::strcmp(arg[1], "*") != 0)
    error->all(FLERR, "pair_coeff of metatomic is * * and one atomic number for each of the {} "
                      "atom types", ntypes);
  if (!allocated) {
    allocated = 1;
    memory->create(setflag, ntypes + 1, ntypes + 1, "pair:setflag");
    memory->create(cutsq, ntypes + 1, ntypes + 1, "pair:cutsq");
    memory->create(cutghost, ntypes + 1, ntypes + 1, "pair:cutghost");
  }
  model_type.assign(ntypes + 1, 0);
  const auto &known = capabilities->atomic_types;
  std::string all_known;
  for (auto type : known) all_known += " " + std::to_string(type);
  for (int type = 1; type <= ntypes; type++) {
    model_type[type] = utils::inumeric(FLERR, arg[1 + type], false, lmp);
    if (std::find(known.begin(), known.end(), model_type[type]) == known.end())
      error->all(FLERR, "pair_coeff: the model {} does not know atomic type {} (LAMMPS type {}), "
                        "only{}", path, arg[1 + type], type, all_known);
  }
  for (int i = 1; i <= ntypes; i++)
    for (int j = 1; j <= ntypes; j++) setflag[i][j] = 1;
}

void PairMetatomic::init_style()
{
  if (domain->dimension != 3) error->all(FLERR, "pair_style metatomic needs dimension 3");
  if (!atom->tag_enable) error->all(FLERR, "pair_style metatomic needs atom IDs (atom_modify id yes)");
  if (neighbor->nex_type || neighbor->nex_group || neighbor->nex_mol || neighbor->includegroup)
    error->all(FLERR, "pair_style metatomic needs the neighbors of all atoms: remove "
                      "neigh_modify exclude and include");
  for (int k = 1; k < 4; k++)
    if (atom->nbonds > 0 && force->special_lj[k] == 0.0 && force->special_coul[k] == 0.0)
      error->all(FLERR, "pair_style metatomic needs the neighbors that bonds take away: "
                        "special_bonds lj/coul 1 1 1");
  int flags = NeighConst::REQ_FULL;
  ghostneigh = 0;
  if (comm->nprocs > 1) {
    if (!(range >= 0.0 && std::isfinite(range)))
      error->all(FLERR, "pair_style metatomic: the interaction range of the model {} is infinite, "
                        "so that atoms can't be divided among {} MPI processes. Run it on one, "
                        "with threads (OMP_NUM_THREADS) or on a GPU", path, comm->nprocs);
    if (!force->newton_pair)
      error->all(FLERR, "pair_style metatomic on several MPI processes needs newton on");
    // atoms of other processes within the range, and their neighbors if these pass messages
    comm->cutghostuser = std::max(comm->cutghostuser, range + neighbor->skin);
    if (range > cutoff) {
      flags |= NeighConst::REQ_GHOST;
      ghostneigh = 1;
    }
  }
  neighbor->add_request(this, flags);
}

double PairMetatomic::init_one(int i, int j)
{
  if (setflag[i][j] == 0) error->all(FLERR, "pair_coeff of metatomic is not set: pair_coeff * * Z1 Z2 …");
  cutghost[i][j] = cutghost[j][i] = cutoff;
  return cutoff;
}

// On one process, ghosts are images of its own atoms; on several, they are atoms of the system.
PairMetatomic::Geometry PairMetatomic::geometry() const
{
  const int nall = atom->nlocal + atom->nghost;
  Geometry result{atom->nlocal, std::vector<int>(nall), {}};
  result.shift.assign(nall, {0, 0, 0});
  for (int i = 0; i < nall; i++) result.owner[i] = i;
  if (comm->nprocs > 1) {
    result.count = nall;
    return result;
  }
  std::unordered_map<tagint, int> local(2 * atom->nlocal);
  for (int i = 0; i < atom->nlocal; i++) local[atom->tag[i]] = i;
  const double *inverse = domain->h_inv;
  for (int j = atom->nlocal; j < nall; j++) {
    const int i = result.owner[j] = local.at(atom->tag[j]);
    const double dx = atom->x[j][0] - atom->x[i][0];
    const double dy = atom->x[j][1] - atom->x[i][1];
    const double dz = atom->x[j][2] - atom->x[i][2];
    const double fractional[3] = {inverse[0] * dx + inverse[5] * dy + inverse[4] * dz,
                                  inverse[1] * dy + inverse[3] * dz, inverse[2] * dz};
    for (int k = 0; k < 3; k++) result.shift[j][k] = std::lround(fractional[k]);
  }
  return result;
}

metatomic_torch::System PairMetatomic::system(const Geometry &geometry,
                                              const torch::Tensor &positions,
                                              const torch::Tensor &strain) const
{
  auto types = torch::empty({geometry.count}, torch::kInt32);
  for (int i = 0; i < geometry.count; i++)
    types.data_ptr<int>()[i] = model_type[atom->type[i]];
  // of directions that are not periodic, and of a part of the atoms, there is no cell
  double vectors[3][3] = {{domain->xprd, 0.0, 0.0},
                          {domain->xy, domain->yprd, 0.0},
                          {domain->xz, domain->yz, domain->zprd}};
  bool periodic[3];
  for (int k = 0; k < 3; k++) {
    periodic[k] = domain->periodicity[k] && comm->nprocs == 1;
    if (!periodic[k]) std::fill_n(vectors[k], 3, 0.0);
  }
  auto cell = torch::from_blob(vectors, {3, 3}, torch::kFloat64).to(numbers(), false, true);
  auto pbc = torch::from_blob(periodic, {3}, torch::kBool).to(device, torch::kBool, false, true);
  auto result = torch::make_intrusive<metatomic_torch::SystemHolder>(
      types.to(device), positions.matmul(strain), cell.matmul(strain), pbc);
  for (const auto &options : lists) {
    auto neighbors = pairs(options, geometry);
    metatomic_torch::register_autograd_neighbors(result, neighbors, check_consistency);
    result->add_neighbor_list(options, neighbors);
  }
  if (total_charge) result->add_data("charge", charge_map());
  return result;
}

metatensor_torch::TensorBlock PairMetatomic::pairs(
    const metatomic_torch::NeighborListOptions &options, const Geometry &geometry) const
{
  const double longest = std::pow(options->engine_cutoff("angstrom"), 2);
  const auto &shift = geometry.shift;
  std::vector<int> samples;
  std::vector<double> vectors;
  for (int n = 0; n < list->inum + (ghostneigh ? list->gnum : 0); n++) {
    const int i = list->ilist[n];
    const double *x = atom->x[i];
    for (int m = 0; m < list->numneigh[i]; m++) {
      const int image = list->firstneigh[i][m] & NEIGHMASK;
      const double *y = atom->x[image];
      const double d[3] = {y[0] - x[0], y[1] - x[1], y[2] - x[2]};
      if (d[0] * d[0] + d[1] * d[1] + d[2] * d[2] >= longest) continue;
      const int j = geometry.owner[image];
      const auto &s = shift[image];
      // a half list has each pair once: i before j, an atom and its image along positive shifts
      if (!options->full_list() && (i > j || (i == j && s < std::array<int, 3>{0, 0, 0}))) continue;
      samples.insert(samples.end(), {i, j, s[0], s[1], s[2]});
      vectors.insert(vectors.end(), d, d + 3);
    }
  }
  const auto count = static_cast<int64_t>(vectors.size() / 3);
  static const std::vector<std::string> names = {"first_atom", "second_atom", "cell_shift_a",
                                                 "cell_shift_b", "cell_shift_c"};
  auto labels = torch::make_intrusive<LabelsHolder>(
      names, torch::from_blob(samples.data(), {count, 5}, torch::kInt32).to(integers(), false, true),
      metatensor::assume_unique{});
  return torch::make_intrusive<TensorBlockHolder>(
      torch::from_blob(vectors.data(), {count, 3, 1}, torch::kFloat64).to(numbers(), false, true),
      labels, std::vector<metatensor_torch::Labels>{LabelsHolder::create({"xyz"}, {{0}, {1}, {2}})->to(device)},
      LabelsHolder::create({"distance"}, {{0}})->to(device));
}

metatensor_torch::TensorMap PairMetatomic::charge_map() const
{
  auto block = torch::make_intrusive<TensorBlockHolder>(
      torch::full({1, 1}, *total_charge, numbers()),
      LabelsHolder::create({"system"}, {{0}})->to(device), std::vector<metatensor_torch::Labels>{},
      LabelsHolder::create({"charge"}, {{0}})->to(device));
  return torch::make_intrusive<TensorMapHolder>(
      LabelsHolder::single()->to(device), std::vector<metatensor_torch::TensorBlock>{block});
}

// One value for each local atom, in LAMMPS's order.
torch::Tensor PairMetatomic::per_atom(const c10::IValue &output) const
{
  const auto map = output.toCustomClass<TensorMapHolder>();
  const auto block = TensorMapHolder::block_by_id(map, 0);
  auto result = torch::zeros({atom->nlocal}, torch::kFloat64);
  const auto atoms = block->samples()->column("atom").to(torch::kCPU, torch::kInt64);
  const auto values = block->values().detach().flatten().to(torch::kCPU, torch::kFloat64);
  return result.index_copy_(0, atoms, values);
}

void PairMetatomic::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  if (vflag_atom)
    error->all(FLERR, "pair_style metatomic has no stress per atom: a model gives the virial of "
                      "the whole system. Remove compute stress/atom");
  if (list->listskip)
    error->all(FLERR, "pair_style metatomic needs all pairs of atoms: use pair_style "
                      "hybrid/overlay, not hybrid");
  const bool with_charges = always_charges || charge_flag;
  charges_fresh = with_charges;
  if (atom->nlocal == 0) return;

  guarded("evaluating " + path, [&] {
    const Geometry geometry = this->geometry();
    auto positions = torch::from_blob(atom->x[0], {geometry.count, 3}, torch::kFloat64)
                         .to(numbers(), false, true)
                         .requires_grad_(true);
    auto strain = torch::eye(3, numbers()).requires_grad_(vflag_global);
    torch::Dict<std::string, ModelOutput> requested;
    requested.insert(energy_name, torch::make_intrusive<ModelOutputHolder>(
                                      "", energy_unit, eflag_atom ? "atom" : "system",
                                      std::vector<std::string>{}, ""));
    if (with_charges)
      requested.insert("charge", torch::make_intrusive<ModelOutputHolder>(
                                     "", "e", "atom", std::vector<std::string>{}, ""));
    torch::optional<metatensor_torch::Labels> selected;
    if (geometry.count > atom->nlocal) {
      auto atoms = torch::zeros({atom->nlocal, 2}, torch::kInt32);
      atoms.select(1, 1).copy_(torch::arange(atom->nlocal, torch::kInt32));
      selected = torch::make_intrusive<LabelsHolder>(
          std::vector<std::string>{"system", "atom"}, atoms.to(device), metatensor::assume_unique{});
    }
    auto options = torch::make_intrusive<metatomic_torch::ModelEvaluationOptionsHolder>(
        "angstrom", requested, selected);
    const auto systems = std::vector<metatomic_torch::System>{system(geometry, positions, strain)};
    const auto outputs = model->forward({systems, options, check_consistency}).toGenericDict();

    const auto energies = outputs.at(energy_name).toCustomClass<TensorMapHolder>();
    const auto energy = TensorMapHolder::block_by_id(energies, 0)->values().sum();
    torch::autograd::variable_list gradients(2);
    if (energy.requires_grad()) {
      torch::autograd::variable_list variables{positions};
      if (vflag_global) variables.push_back(strain);
      gradients = torch::autograd::grad({energy}, variables, {}, torch::nullopt, false, true);
    }
    if (gradients[0].defined()) {
      const auto gradient = gradients[0].to(torch::kCPU, torch::kFloat64).contiguous();
      const double *values = gradient.data_ptr<double>();
      for (int i = 0; i < 3 * geometry.count; i++) atom->f[0][i] -= values[i];
    }
    if (vflag_global && gradients[1].defined()) {
      const auto by_strain = gradients[1].to(torch::kCPU, torch::kFloat64).contiguous();
      const auto w = by_strain.accessor<double, 2>();
      for (int k = 0; k < 3; k++) virial[k] -= w[k][k];
      virial[3] -= 0.5 * (w[0][1] + w[1][0]);
      virial[4] -= 0.5 * (w[0][2] + w[2][0]);
      virial[5] -= 0.5 * (w[1][2] + w[2][1]);
    }
    if (eflag_global) eng_vdwl += energy.item<double>();
    if (eflag_atom) {
      const auto of_atoms = per_atom(outputs.at(energy_name));
      for (int i = 0; i < atom->nlocal; i++) eatom[i] += of_atoms.data_ptr<double>()[i];
    }
    if (with_charges) {
      const auto of_atoms = per_atom(outputs.at("charge"));
      charges.assign(of_atoms.data_ptr<double>(), of_atoms.data_ptr<double>() + atom->nlocal);
    }
  });
}

// `fix pair` asks for this when its flag is 1.
void *PairMetatomic::extract(const char *name, int &dimension)
{
  if (std::strcmp(name, "charge_flag") != 0) return nullptr;
  dimension = 0;
  triggered = true;
  return &charge_flag;
}

// `fix pair` calls this once when it is defined, and then on the steps that it works on.
void *PairMetatomic::extract_peratom(const char *name, int &columns)
{
  if (std::strcmp(name, "charge") != 0) return nullptr;
  if (!capabilities->outputs().contains("charge"))
    error->all(FLERR, "the model {} has no output charge", path);
  if (!triggered && !charge_flag) always_charges = true;
  triggered = false;
  if (!charges_fresh) charges.clear();
  charges.resize(std::max(atom->nmax, 1), std::numeric_limits<double>::quiet_NaN());
  columns = 0;
  return charges.data();
}

}    // namespace LAMMPS_NS

// The members that LAMMPS's documentation lists (Writing plugins); the header is not installed.
struct Plugin {
  const char *version, *style, *name, *info, *author;
  LAMMPS_NS::Pair *(*creator)(LAMMPS_NS::LAMMPS *);
  void *handle;
};

extern "C" void lammpsplugin_init(void *lammps, void *handle, void *registration)
{
  auto *lmp = static_cast<LAMMPS_NS::LAMMPS *>(lammps);
  if (lmp->num_ver != BUILT_FOR_LAMMPS)
    lmp->error->all(FLERR, "the plugin of pair_style metatomic was built for LAMMPS {}, this is {}: "
                    "run python -m metatrain_lorem build-lammps-plugin", BUILT_FOR_LAMMPS, lmp->num_ver);
  Plugin plugin{lmp->version, "pair", "metatomic", "exported models of metatomic",
                "The metatrain-lorem developers",
                [](LAMMPS_NS::LAMMPS *lmp) -> LAMMPS_NS::Pair * {
                  return new LAMMPS_NS::PairMetatomic(lmp);
                },
                handle};
  reinterpret_cast<void (*)(Plugin *, void *)>(registration)(&plugin, lammps);
}
