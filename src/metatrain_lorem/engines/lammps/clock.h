// SPDX-License-Identifier: BSD-3-Clause
//
// Times of stages and communication, for benchmarks/lammps_ranks.py: only where the plugin is
// compiled with STAGE_TIMES (CXX="g++ -DSTAGE_TIMES").

#ifndef METATRAIN_LOREM_CLOCK_H
#define METATRAIN_LOREM_CLOCK_H

#include <chrono>
#include <iostream>
#include <map>
#include <string>

class Clock {
 public:
#ifdef STAGE_TIMES
  explicit Clock(std::string name) : name(std::move(name)), start(now()) {}
  ~Clock() { totals()[name] += now() - start; }

  // What passed since the last report.
  static void report(int process)
  {
    std::string text;
    for (const auto &[name, seconds] : totals())
      text += "time of process " + std::to_string(process) + ": " + name + " " +
              std::to_string(seconds) + "\n";
    std::cout << text << std::flush;
    totals().clear();
  }

 private:
  static double now()
  {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  static std::map<std::string, double> &totals()
  {
    static std::map<std::string, double> result;
    return result;
  }

  std::string name;
  double start;
#else
  explicit Clock(const char *) {}
  explicit Clock(const std::string &) {}
  static void report(int) {}
#endif
};

#endif
