// A shared library of generated kernels.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace echoc {

/// A shared library that is closed with the object. Its names stay out of the process's global ones.
class Library {
 public:
  explicit Library(const std::string& path) : handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (!handle_) throw std::runtime_error(dlerror());
  }
  ~Library() { dlclose(handle_); }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  void* find(const std::string& name) const {
    void* symbol = dlsym(handle_, name.c_str());
    if (!symbol) throw std::runtime_error("the kernel library has no kernel named " + name);
    return symbol;
  }

  /// Raises unless the kernel was built for the calling convention of this runtime: `name`_abi says which one.
  void check_abi(const std::string& name, int64_t wanted) const {
    using Abi = int64_t (*)();
    void* symbol = dlsym(handle_, (name + "_abi").c_str());
    if (!symbol || reinterpret_cast<Abi>(symbol)() != wanted) {
      throw std::runtime_error("the kernels were compiled for another version of echoc");
    }
  }

 private:
  void* handle_;
};

}  // namespace echoc
