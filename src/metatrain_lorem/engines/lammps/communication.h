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

  torch::Tensor scatter(const torch::Tensor &values) override
  {
    const Clock clock("scatter of meshes");
    const auto counted = counts() ? values : torch::zeros_like(values);
    const auto all = counted.detach().to(torch::kCPU).contiguous();
    const Shares shares(all, values.size(0), comm->nprocs);
    auto some = shares.rows(all, comm->me);
    MPI_Reduce_scatter(all.data_ptr(), some.data_ptr(), shares.counts.data(), type(all), MPI_SUM,
                       world);
    return some.to(values.device());
  }

  torch::Tensor gather(const torch::Tensor &values, int64_t rows) override
  {
    const Clock clock("gather of meshes");
    const auto some = values.detach().to(torch::kCPU).contiguous();
    const Shares shares(some, rows, comm->nprocs);
    auto all = shares.rows(some, -1);
    MPI_Allgatherv(some.data_ptr(), shares.counts[comm->me], type(some), all.data_ptr(),
                   shares.counts.data(), shares.starts.data(), type(some), world);
    return all.to(values.device());
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
  // Rows of an array that are divided among processes.
  struct Shares {
    Shares(const torch::Tensor &like, int64_t rows, int processes) : total(rows), size(1)
    {
      for (int64_t d = 1; d < like.dim(); d++) size *= like.size(d);
      if (rows * size > std::numeric_limits<int>::max())
        throw std::runtime_error("a mesh of " + std::to_string(rows * size) +
                                 " numbers is too large for MPI. Choose a lower accuracy");
      for (int64_t p = 0; p < processes; p++) {
        starts.push_back(rows * p / processes * size);
        counts.push_back(rows * (p + 1) / processes * size - starts.back());
      }
    }

    // Those of a process, or all.
    torch::Tensor rows(const torch::Tensor &like, int process) const
    {
      auto shape = like.sizes().vec();
      shape[0] = process < 0 ? total : counts[process] / size;
      return torch::empty(shape, like.options());
    }

    int64_t total, size;
    std::vector<int> counts, starts;
  };

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

  static MPI_Datatype type(const torch::Tensor &values)
  {
    return values.scalar_type() == torch::kFloat32 ? MPI_FLOAT : MPI_DOUBLE;
  }

  torch::Tensor reduced(const torch::Tensor &values, MPI_Op operation) const
  {
    const Clock clock(values.numel() < 10000 ? "small sums" : "sums of meshes");
    auto result = values.detach().to(torch::kCPU, false, true).contiguous();
    const int64_t most = 1 << 28;    // MPI counts by int
    for (int64_t first = 0; first < result.numel(); first += most)
      MPI_Allreduce(MPI_IN_PLACE,
                    static_cast<char *>(result.data_ptr()) + first * result.element_size(),
                    static_cast<int>(std::min(most, result.numel() - first)),
                    type(result), operation, world);
    // of one number, which decisions may follow from, all processes must have the same rounding
    if (result.numel() == 1)
      MPI_Bcast(result.data_ptr(), 1, type(result), 0, world);
    return result.to(values.device());
  }

  double *rows = nullptr;    // what is exchanged
  int columns = 0;
};

}    // namespace LAMMPS_NS

#endif
