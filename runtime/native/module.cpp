// echoc._native: the step loop, thread team, pager, sampler and weight packing; everything long releases the GIL.
#include "runtime/native/bindings.h"

NB_MODULE(_native, m) {
  m.doc() = "Native parts of echoc's runtime.";
  echoc::bind_team(m);
  echoc::bind_executor(m);
  echoc::bind_checksum(m);
  echoc::bind_pager(m);
  echoc::bind_sampler(m);
  echoc::bind_pack(m);
  echoc::bind_runs(m);
  echoc::bind_population(m);
  echoc::bind_gpu(m);
  echoc::bind_placement(m);
}
