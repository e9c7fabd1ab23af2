// SPDX-License-Identifier: GPL-2.0-or-later
//
// Communication of a model's stages by LAMMPS and MPI. The licence is that of pair_metatomic.cpp.

#ifndef METATRAIN_LOREM_COMMUNICATION_H
#define METATRAIN_LOREM_COMMUNICATION_H

#include "atom.h"
#include "comm.h"
#include "pair.h"

#include "parallel.h"

#include <mpi.h>

#include <algorithm>
#include <limits>

namespace LAMMPS_NS {

class CommunicatingPair : public Pair, public Communication {
 public:
  explicit CommunicatingPair(LAMMPS *lmp) : Pair(lmp)
  {
    // before pair_style hybrid/overlay, which asks for it once, has its own size of buffers
    if (comm->nprocs > 1) comm_forward = comm_reverse = most_columns;
  }


  bool counts() const override { return atom->nlocal > 0; }

  torch::Tensor exchange(const torch::Tensor &own) override
  {
    const Clock clock("exchange");
    auto all = of_all_atoms(own);
    if (counts()) all.narrow(0, 0, atom->nlocal).copy_(own.detach());
    communicate(all, [this] { comm->forward_comm(this, columns); });
    return counts() ? all.to(own.options()) : own.detach().clone();
  }

  torch::Tensor collect(const torch::Tensor &all) override
  {
    const Clock clock("exchange back");
    auto own = of_all_atoms(all);
    if (counts()) own.copy_(all.detach());
    communicate(own, [this] { comm->reverse_comm(this, columns); });
    return counts() ? own.narrow(0, 0, atom->nlocal).to(all.options()) : torch::zeros_like(all);
  }

  torch::Tensor sum(const torch::Tensor &values) override
  {
    return reduced(counts() ? values : torch::zeros_like(values), MPI_SUM);
  }

  torch::Tensor largest(const torch::Tensor &values) override
  {
    const double least = -std::numeric_limits<double>::infinity();
    return reduced(counts() ? values : torch::full_like(values, least), MPI_MAX);
  }

  int pack_forward_comm(int n, int *atoms, double *buffer, int, int *) override
  {
    for (int i = 0; i < n; i++)
      std::copy_n(rows + columns * atoms[i], columns, buffer + columns * i);
    return n * columns;
  }

  void unpack_forward_comm(int n, int first, double *buffer) override
  {
    std::copy_n(buffer, n * columns, rows + columns * first);
  }

  int pack_reverse_comm(int n, int first, double *buffer) override
  {
    std::copy_n(rows + columns * first, n * columns, buffer);
    return n * columns;
  }

  void unpack_reverse_comm(int n, int *atoms, double *buffer) override
  {
    for (int i = 0; i < n; i++)
      for (int k = 0; k < columns; k++) rows[columns * atoms[i] + k] += buffer[columns * i + k];
  }

 protected:
  // LAMMPS makes its buffers for so many numbers of an atom.
  static constexpr int most_columns = 32;

 private:
  // Zeros, for own atoms and neighbors.
  torch::Tensor of_all_atoms(const torch::Tensor &like) const
  {
    auto shape = like.sizes().vec();
    shape[0] = atom->nlocal + atom->nghost;
    return torch::zeros(shape, torch::kFloat64);
  }

  template <class Function> void communicate(const torch::Tensor &rows_of_atoms, Function function)
  {
    auto values = rows_of_atoms.dim() == 1 ? rows_of_atoms.unsqueeze(1) : rows_of_atoms;
    for (int64_t first = 0; first < values.size(1); first += most_columns) {
      columns = std::min<int64_t>(most_columns, values.size(1) - first);
      auto some = values.narrow(1, first, columns).contiguous();
      rows = some.data_ptr<double>();
      function();
      values.narrow(1, first, columns).copy_(some);
    }
  }

  torch::Tensor reduced(const torch::Tensor &values, MPI_Op operation) const
  {
    const Clock clock(values.numel() < 10000 ? "small sums" : "sums of meshes");
    auto result = values.detach().to(torch::kCPU, false, true).contiguous();
    const bool single = result.scalar_type() == torch::kFloat32;
    const int64_t most = 1 << 28;    // MPI counts by int
    for (int64_t first = 0; first < result.numel(); first += most)
      MPI_Allreduce(MPI_IN_PLACE,
                    static_cast<char *>(result.data_ptr()) + first * result.element_size(),
                    static_cast<int>(std::min(most, result.numel() - first)),
                    single ? MPI_FLOAT : MPI_DOUBLE, operation, world);
    // of one number, which decisions may follow from, all processes must have the same rounding
    if (result.numel() == 1)
      MPI_Bcast(result.data_ptr(), 1, single ? MPI_FLOAT : MPI_DOUBLE, 0, world);
    return result.to(values.device());
  }

  double *rows = nullptr;    // what is exchanged
  int columns = 0;
};

}    // namespace LAMMPS_NS

#endif
