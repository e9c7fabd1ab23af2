// SPDX-License-Identifier: BSD-3-Clause
//
// Derivatives of an evaluation that several processes share. Knows nothing of LAMMPS or MPI.

#ifndef METATRAIN_LOREM_PARALLEL_H
#define METATRAIN_LOREM_PARALLEL_H

#include <torch/csrc/autograd/autograd.h>
#include <torch/script.h>

#include "clock.h"

#include <functional>
#include <string>
#include <vector>

// What the engine does between the stages of a model, on all processes in the same order. A process
// without atoms of its own evaluates one that counts for nothing.
class Communication {
 public:
  virtual bool counts() const = 0;    // false for a process without atoms
  // from numbers or rows of own atoms to those of own atoms and neighbors, and its transpose
  virtual torch::Tensor exchange(const torch::Tensor &own) = 0;
  virtual torch::Tensor collect(const torch::Tensor &all) = 0;
  // over all processes
  virtual torch::Tensor sum(const torch::Tensor &values) = 0;
  virtual torch::Tensor largest(const torch::Tensor &values) = 0;
  // from all rows on every process to some rows, perhaps none, of their sum on each; from some rows
  // on each to all on every process
  virtual torch::Tensor scatter(const torch::Tensor &values) = 0;
  virtual torch::Tensor gather(const torch::Tensor &values, int64_t rows) = 0;

 protected:
  ~Communication() = default;
};

// Stages and communication in the order in which they ran, to go back the same way. What each stage
// returns is cut from its graph; so every process communicates in the order of its calls, forward
// and back, whatever its graphs are. An autograd::Function for each communication would leave the
// order, and with it whether processes wait for each other forever, to the engine of autograd.
class Tape {
 public:
  explicit Tape(Communication &communication) : communication(communication) {}

  // Evaluate a stage.
  torch::IValue run(const torch::jit::Method &method, std::vector<torch::IValue> inputs)
  {
    const auto name = method.name();
    const Clock clock(name);
    return cut(method(std::move(inputs)), name);
  }

  // Replace all tensors with derivatives, in tuples and lists too, by leaves.
  torch::IValue cut(const torch::IValue &results, const std::string &name = "system")
  {
    torch::autograd::variable_list values, leaves;
    const auto replaced = replace(results, values, leaves);
    steps.push_back([values, leaves, name] {
      const Clock clock(name + " back");
      torch::autograd::variable_list reached, gradients;
      for (size_t i = 0; i < leaves.size(); i++) {
        if (!leaves[i].grad().defined()) continue;
        reached.push_back(values[i]);
        gradients.push_back(leaves[i].grad());
      }
      if (!reached.empty()) torch::autograd::backward(reached, gradients);
    });
    return replaced;
  }

  torch::Tensor sum(const torch::Tensor &values)
  {
    return communicate(values, communication.sum(values),
                       [this](const torch::Tensor &g) { return communication.sum(g); });
  }

  torch::Tensor scatter(const torch::Tensor &values)
  {
    const auto rows = values.size(0);
    return communicate(values, communication.scatter(values),
                       [this, rows](const torch::Tensor &g) { return communication.gather(g, rows); });
  }

  torch::Tensor gather(const torch::Tensor &values, int64_t rows)
  {
    return communicate(values, communication.gather(values, rows),
                       [this](const torch::Tensor &g) { return communication.scatter(g); }, true);
  }

  torch::Tensor exchange(const torch::Tensor &own)
  {
    return communicate(own, communication.exchange(own),
                       [this](const torch::Tensor &g) { return communication.collect(g); });
  }

  // Derivatives from the leaves of the last steps to those before the given one.
  void backward(size_t first = 0)
  {
    while (steps.size() > first) {
      steps.back()();
      steps.pop_back();
    }
  }

  size_t size() const { return steps.size(); }

  static void accumulate(const torch::Tensor &leaf, const torch::Tensor &gradient)
  {
    TORCH_INTERNAL_ASSERT(leaf.is_leaf());
    auto &grad = leaf.mutable_grad();
    grad = grad.defined() ? grad + gradient : gradient;
  }

 private:
  // What a process without atoms evaluates has no derivatives, unless it does so for all.
  torch::Tensor communicate(const torch::Tensor &from, torch::Tensor to,
                            std::function<torch::Tensor(const torch::Tensor &)> transposed,
                            bool for_all = false)
  {
    // on every process, whatever its own derivatives are
    to.requires_grad_(true);
    const bool used = from.requires_grad() && (for_all || communication.counts());
    steps.push_back([from, to, transposed, used] {
      const auto gradient = transposed(to.grad().defined() ? to.grad() : torch::zeros_like(to));
      if (used) accumulate(from, gradient);
    });
    return to;
  }

  static torch::IValue replace(const torch::IValue &value, torch::autograd::variable_list &values,
                               torch::autograd::variable_list &leaves)
  {
    if (value.isTensor()) {
      const auto tensor = value.toTensor();
      if (!tensor.requires_grad() || tensor.is_leaf()) return value;
      values.push_back(tensor);
      leaves.push_back(tensor.detach().requires_grad_(true));
      return leaves.back();
    }
    if (value.isTuple()) {
      const auto tuple = value.toTuple();
      std::vector<torch::IValue> elements;
      for (const auto &element : tuple->elements())
        elements.push_back(replace(element, values, leaves));
      return c10::ivalue::Tuple::createNamed(std::move(elements), tuple->type());
    }
    if (value.isList() && !value.isIntList() && !value.isDoubleList()) {
      auto list = value.toList().copy();
      for (size_t i = 0; i < list.size(); i++) list.set(i, replace(list.get(i), values, leaves));
      return list;
    }
    return value;
  }

  Communication &communication;
  std::vector<std::function<void()>> steps;
};

#endif
