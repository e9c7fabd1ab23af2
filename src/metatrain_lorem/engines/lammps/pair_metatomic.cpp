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
#include "input.h"
#include "memory.h"
#include "modify.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pair.h"
#include "update.h"
#include "variable.h"

#include "communication.h"
#include "exported_model.h"
#include "staged_model.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <unordered_map>

namespace LAMMPS_NS {

class PairMetatomic : public CommunicatingPair {
 public:
  explicit PairMetatomic(LAMMPS *lmp);
  ~PairMetatomic() override;
  void settings(int narg, char **arg) override;
  void coeff(int narg, char **arg) override;
  void init_style() override;
  double init_one(int i, int j) override;
  void compute(int eflag, int vflag) override;
  void *extract_peratom(const char *name, int &columns) override;

 private:
  // what the model gets instead of LAMMPS's ghost atoms
  struct Geometry {
    int count;                               // atoms in the model's system
    std::vector<int> owner;                  // atom of the system that each LAMMPS atom stands for
    std::vector<std::array<int, 3>> shift;   // its displacement in cell vectors
  };

  void init_stages();
  void check_exclusions() const;
  void check_field();
  std::optional<std::array<double, 3>> electric_field() const;
  Geometry geometry() const;
  Structure structure(const Geometry &geometry) const;
  Structure any_atom() const;
  Pairs pairs(const ExportedModel::NeighborList &wanted, const Geometry &geometry) const;
  template <class Function> void guarded(const std::string &task, Function function) const;

  std::string path;
  std::unique_ptr<ExportedModel> model;
  std::unique_ptr<StagedModel> staged;    // on several processes, where all atoms feel each other
  double cutoff = 0.0;               // of all neighbor lists, Å
  std::vector<int> model_type;       // of LAMMPS's types, which start at 1

  std::vector<std::string> field;    // three numbers or names of variables, V/Å, or none
  std::vector<double> charges;       // of the local atoms, of the last evaluation if it had any
  bool warned = false;               // about charges in minimizations
};

PairMetatomic::PairMetatomic(LAMMPS *lmp) : CommunicatingPair(lmp)
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
  Clock::report(comm->me);
  if (!allocated) return;
  memory->destroy(setflag);
  memory->destroy(cutsq);
  memory->destroy(cutghost);
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

// The C library returns large arrays to the system and takes them anew in the next step, which
// costs more than half the time of large systems.
static void keep_memory()
{
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

void PairMetatomic::settings(int narg, char **arg)
{
  if (narg < 1) error->all(FLERR, "pair_style metatomic needs an exported model: metatomic FILE.pt");
  path = arg[0];
  bool check_consistency = false, with_field = false;
  field.clear();
  std::optional<double> total_charge;
  std::optional<std::string> on_device, extensions, variant;
  for (int i = 1; i < narg; i += 2) {
    const std::string key = arg[i];
    if (key == "electric_field") {
      if (i + 3 >= narg)
        error->all(FLERR, "pair_style metatomic: electric_field needs three numbers or equal-style "
                          "variables (v_name), in V/Å");
      if (with_field)
        error->all(FLERR, "pair_style metatomic: electric_field is given twice. Give the sum once");
      with_field = true;
      bool zero = true;
      for (int k = 1; k <= 3; k++) {
        const std::string component = arg[i + k];
        const bool number = component.rfind("v_", 0) != 0;
        if (!number || utils::numeric(FLERR, component, false, lmp) != 0.0) zero = false;
      }
      // all is as without a field then
      if (!zero) field.assign(arg + i + 1, arg + i + 4);
      i += 2;
      continue;
    }
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
                        "extensions, check_consistency, total_charge, variant, electric_field", key);
    }
  }

  std::string energy_unit;
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
  keep_memory();
  guarded("loading " + path + " as an exported model (mtt export writes one)", [&] {
    model = std::make_unique<ExportedModel>(path, on_device, extensions, variant, comm->me);
  });
  if (model->takes_charge && !total_charge)
    error->all(FLERR, "pair_style metatomic: the model {} takes the total charge of the system. "
                      "Give it (pair_style metatomic {} total_charge 0), or build it into the "
                      "model with python -m metatrain_lorem set-charge", path, path);
  if (!model->takes_charge && total_charge)
    error->all(FLERR, "pair_style metatomic: total_charge {} is given, but the model {} takes no "
                      "total charge. Remove the keyword", *total_charge, path);
  model->total_charge = total_charge;
  model->energy_unit = energy_unit;
  model->check_consistency = check_consistency;
  cutoff = 0.0;
  for (const auto &list : model->neighbor_lists()) cutoff = std::max(cutoff, list.cutoff);
  if (comm->me == 0)
    utils::logmesg(lmp, "Model {}: {}, interaction range {} Å; memory is kept between steps\n", path,
                   model->describe(), model->range());
  if (allocated) std::fill_n(&setflag[0][0], (atom->ntypes + 1) * (atom->ntypes + 1), 0);
}

// Atomic number of an element, 0 if there is none of this symbol.
static int atomic_number(const std::string &symbol)
{
  static const std::vector<std::string> symbols = utils::split_words(
      "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
      "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb "
      "Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm "
      "Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og");
  const auto found = std::find(symbols.begin(), symbols.end(), symbol);
  return found == symbols.end() ? 0 : 1 + std::distance(symbols.begin(), found);
}

void PairMetatomic::coeff(int narg, char **arg)
{
  const int ntypes = atom->ntypes;
  if (narg != 2 + ntypes || std::strcmp(arg[0], "*") != 0 || std::strcmp(arg[1], "*") != 0)
    error->all(FLERR, "pair_coeff of metatomic is * * and one atomic number or element for each of "
                      "the {} atom types", ntypes);
  if (!allocated) {
    allocated = 1;
    memory->create(setflag, ntypes + 1, ntypes + 1, "pair:setflag");
    memory->create(cutsq, ntypes + 1, ntypes + 1, "pair:cutsq");
    memory->create(cutghost, ntypes + 1, ntypes + 1, "pair:cutghost");
  }
  model_type.assign(ntypes + 1, 0);
  const auto &known = model->types();
  std::string all_known;
  for (auto type : known) all_known += " " + std::to_string(type);
  for (int type = 1; type <= ntypes; type++) {
    if (utils::is_integer(arg[1 + type]))
      model_type[type] = utils::inumeric(FLERR, arg[1 + type], false, lmp);
    else
      model_type[type] = atomic_number(arg[1 + type]);
    if (model_type[type] == 0 && std::strcmp(arg[1 + type], "0") != 0)
      error->all(FLERR, "pair_coeff: {} is neither an atomic number nor the symbol of an element "
                        "(LAMMPS type {})", arg[1 + type], type);
    if (std::find(known.begin(), known.end(), model_type[type]) == known.end())
      error->all(FLERR, "pair_coeff: the model {} does not know atomic type {} (LAMMPS type {}), "
                        "only{}", path, arg[1 + type], type, all_known);
  }
  for (int i = 1; i <= ntypes; i++)
    for (int j = 1; j <= ntypes; j++) setflag[i][j] = 1;
}

// A pair that is missing while its atoms are there makes wrong energies.
void PairMetatomic::check_exclusions() const
{
  if (neighbor->nex_type || neighbor->nex_group || neighbor->nex_mol || neighbor->includegroup)
    error->all(FLERR, "pair_style metatomic needs the neighbors of all atoms: remove neigh_modify "
                      "exclude and include, and fixes that exclude the atoms of a trial move "
                      "(fix gcmc, fix widom)");
}

void PairMetatomic::check_field()
{
  if (field.empty()) return;
  for (const auto &component : field) {
    if (component.rfind("v_", 0) != 0) continue;
    const int variable = input->variable->find(component.c_str() + 2);
    if (variable < 0 || !input->variable->equalstyle(variable))
      error->all(FLERR, "pair_style metatomic: electric_field {} is no equal-style variable",
                 component);
  }
  if (comm->nprocs > 1)
    error->all(FLERR, "pair_style metatomic: an electric_field needs all atoms on one process");
  const bool isolated = !domain->xperiodic && !domain->yperiodic && !domain->zperiodic;
  const char *needed = isolated ? ExportedModel::polarizability : ExportedModel::born_charge;
  if (!model->has(needed))
    error->all(FLERR, "pair_style metatomic: electric_field is given, but the model {} has no "
                      "output {}: its charges do not answer to a field", path, needed);
  if (!isolated && comm->me == 0)
    error->warning(FLERR, "electric_field: forces on a periodic system are Born charges times the "
                          "field, to first order; its energy and virial do not contain the field");
}

std::optional<std::array<double, 3>> PairMetatomic::electric_field() const
{
  if (field.empty()) return std::nullopt;
  std::array<double, 3> result;
  for (int k = 0; k < 3; k++) {
    if (field[k].rfind("v_", 0) == 0)
      result[k] = input->variable->compute_equal(input->variable->find(field[k].c_str() + 2));
    else
      result[k] = utils::numeric(FLERR, field[k], false, lmp);
  }
  return result;
}

void PairMetatomic::init_style()
{
  if (domain->dimension != 3) error->all(FLERR, "pair_style metatomic needs dimension 3");
  if (!atom->tag_enable) error->all(FLERR, "pair_style metatomic needs atom IDs (atom_modify id yes)");
  check_exclusions();
  for (int k = 1; k < 4; k++)
    if (atom->nbonds > 0 && force->special_lj[k] == 0.0 && force->special_coul[k] == 0.0)
      error->all(FLERR, "pair_style metatomic needs the neighbors that bonds take away: "
                        "special_bonds lj/coul 1 1 1");
  if (comm->me == 0 && !modify->get_fix_by_style("^efield").empty())
    error->warning(FLERR, "fix efield acts on the charges q of LAMMPS's atoms, which pair_style "
                          "metatomic neither reads nor sets, not on the charges of the model: the "
                          "model does not feel the field. Its own is pair_style metatomic … "
                          "electric_field Ex Ey Ez");
  check_field();
  Clock::report(comm->me);
  warned = false;
  int flags = NeighConst::REQ_FULL;
  ghostneigh = 0;
  staged.reset();
  const double range = model->range();
  const bool infinite = !(range >= 0.0 && std::isfinite(range));
  if (comm->nprocs > 1) {
    if (!force->newton_pair)
      error->all(FLERR, "pair_style metatomic on several MPI processes needs newton on");
    if (infinite) init_stages();
  }
  if (comm->nprocs > 1 && !infinite) {
    // atoms of other processes within the range, and their neighbors if these pass messages
    comm->cutghostuser = std::max(comm->cutghostuser, range + neighbor->skin);
    if (range > cutoff) {
      flags |= NeighConst::REQ_GHOST;
      ghostneigh = 1;
    }
  }
  neighbor->add_request(this, flags);
}

void PairMetatomic::init_stages()
{
  std::string failure;
  try {
    staged = std::make_unique<StagedModel>(*model);
  } catch (const std::exception &exception) {
    failure = reason(exception);
  }
  if (!domain->xperiodic && !domain->yperiodic && !domain->zperiodic)
    failure = "the system is not periodic";
  if (!failure.empty())
    error->all(FLERR, "pair_style metatomic: the interaction range of the model {} is infinite, and "
                      "its atoms can't be divided among {} MPI processes: {}. Run it on one, with "
                      "threads (OMP_NUM_THREADS) or on a GPU", path, comm->nprocs, failure);
}

double PairMetatomic::init_one(int i, int j)
{
  if (setflag[i][j] == 0) error->all(FLERR, "pair_coeff of metatomic is not set: pair_coeff * * Na Cl …");
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

Structure PairMetatomic::structure(const Geometry &geometry) const
{
  // of directions that are not periodic, and of a part of the atoms, there is no cell
  Structure result{{}, atom->nlocal > 0 ? atom->x[0] : nullptr,
                   {{domain->xprd, 0.0, 0.0},
                    {domain->xy, domain->yprd, 0.0},
                    {domain->xz, domain->yz, domain->zprd}},
                   {}, {}, atom->nlocal, electric_field()};
  for (int i = 0; i < geometry.count; i++) result.types.push_back(model_type[atom->type[i]]);
  for (int k = 0; k < 3; k++) {
    result.periodic[k] = domain->periodicity[k] && (comm->nprocs == 1 || staged);
    if (!result.periodic[k]) std::fill_n(result.cell[k], 3, 0.0);
  }
  for (const auto &list : model->neighbor_lists()) result.pairs.push_back(pairs(list, geometry));
  return result;
}

// What a process without atoms evaluates, to take part in the communication.
Structure PairMetatomic::any_atom() const
{
  static const double origin[3] = {0.0, 0.0, 0.0};
  Structure result = structure({0, {}, {}});
  result.types = {static_cast<int>(model->types().front())};
  result.positions = origin;
  result.selected = 1;
  return result;
}

Pairs PairMetatomic::pairs(const ExportedModel::NeighborList &wanted,
                           const Geometry &geometry) const
{
  Pairs result;
  for (int n = 0; n < list->inum + (ghostneigh ? list->gnum : 0); n++) {
    const int i = list->ilist[n];
    const double *x = atom->x[i];
    for (int m = 0; m < list->numneigh[i]; m++) {
      const int image = list->firstneigh[i][m] & NEIGHMASK;
      const double *y = atom->x[image];
      const double d[3] = {y[0] - x[0], y[1] - x[1], y[2] - x[2]};
      const double squared = d[0] * d[0] + d[1] * d[1] + d[2] * d[2];
      if (squared >= wanted.cutoff * wanted.cutoff) continue;
      const int j = geometry.owner[image];
      const auto &s = geometry.shift[image];
      // a half list has each pair once: i before j, an atom and its image along positive shifts
      if (!wanted.full && (i > j || (i == j && s < std::array<int, 3>{0, 0, 0}))) continue;
      result.samples.insert(result.samples.end(), {i, j, s[0], s[1], s[2]});
      result.vectors.insert(result.vectors.end(), d, d + 3);
    }
  }
  return result;
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
  const bool with_charges = model->has_charges() && !modify->get_fix_by_style("^pair$").empty();
  if (with_charges && update->whichflag == 2 && !warned) {
    warned = true;
    if (comm->me == 0)
      error->warning(FLERR, "in a minimization fix pair keeps the charges of the first evaluation "
                            "of each step, not of the structure it ends with. For these define the "
                            "fix after it, and use run 0");
  }
  check_exclusions();    // once more: fixes make exclusions in their init, which comes later
  charges.clear();
  if (atom->nlocal == 0 && !staged) return;

  Results results;
  guarded("evaluating " + path, [&] {
    const Wanted wanted{eflag_atom != 0, vflag_global != 0, with_charges};
    if (!staged) results = model->evaluate(structure(geometry()), wanted);
    else if (counts()) results = staged->evaluate(structure(geometry()), wanted, *this);
    else results = staged->evaluate(any_atom(), wanted, *this);
  });
  for (size_t i = 0; i < results.by_positions.size(); i++)
    atom->f[0][i] -= results.by_positions[i];
  for (size_t i = 0; i < results.field_forces.size(); i++)
    atom->f[0][i] += force->qe2f * results.field_forces[i];
  if (eflag_global) eng_vdwl += results.energy;
  for (size_t i = 0; i < results.energies.size(); i++) eatom[i] += results.energies[i];
  if (vflag_global) {
    const auto &w = results.by_strain;
    for (int k = 0; k < 3; k++) virial[k] -= w[4 * k];
    virial[3] -= 0.5 * (w[1] + w[3]);
    virial[4] -= 0.5 * (w[2] + w[6]);
    virial[5] -= 0.5 * (w[5] + w[7]);
  }
  if (with_charges) charges = results.charges;
}

// `fix pair` calls this once when it is defined, and then on the steps that it works on.
void *PairMetatomic::extract_peratom(const char *name, int &columns)
{
  if (std::strcmp(name, "charge") != 0) return nullptr;
  if (!model->has_charges())
    error->all(FLERR, "fix pair asks for charges, but the model {} has no output charge", path);
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
