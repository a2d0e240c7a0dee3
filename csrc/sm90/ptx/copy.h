// Asynchronous copies global -> shared: tensor maps (TMA) and 16-byte cp.async.
#pragma once
#include "sm90/ptx/common.h"
#include "sm90/ptx/priority.h"

namespace fmh {

FMH_DEVICE void prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map));
}

FMH_DEVICE u64 l2_policy(EvictFirst evict) {
  u64 none, half, all;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(none));
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 0.5;" : "=l"(half));
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(all));
  return evict == kEvictAll ? all : evict == kEvictHalf ? half : none;
}

// One box of a rank-4 map into `destination`; its bytes count towards `barrier`.
FMH_DEVICE void tma_load(u32 destination, const TensorMap* map, int c0, int c1, int c2, int c3,
                         u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(destination),
      "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(barrier)
      : "memory");
}

// The same with a policy.
FMH_DEVICE void tma_load(u32 destination, const TensorMap* map, int c0, int c1, int c2, int c3,
                         u32 barrier, u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(destination),
      "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(barrier), "l"(policy)
      : "memory");
}

// One box of a rank-5 map.
FMH_DEVICE void tma_load(u32 destination, const TensorMap* map, int c0, int c1, int c2, int c3,
                         int c4, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(destination),
      "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "r"(barrier)
      : "memory");
}

// Pulls one box of a rank-4 map into L2.
FMH_DEVICE void tma_prefetch(const TensorMap* map, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global.tile [%0, {%1, %2, %3, %4}];" ::"l"(map),
               "r"(c0), "r"(c1), "r"(c2), "r"(c3)
               : "memory");
}

// Pulls the line at `address` into L2.
FMH_DEVICE void line_prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// 16 bytes, of which the first `bytes` (0 or 16) are read and the rest is zeros.
FMH_DEVICE void copy_16_or_zero(u32 destination, const void* source, int bytes, u64 policy) {
  asm volatile(
      "cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(destination),
      "l"(source), "r"(bytes), "l"(policy)
      : "memory");
}

// The same without a policy.
FMH_DEVICE void copy_16_or_zero(u32 destination, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source),
               "r"(bytes)
               : "memory");
}

// Eight bytes to global memory, without the branch that a compiler makes of an `if` around a store.
FMH_DEVICE void store_8_if(bool condition, void* to, u32 low, u32 high) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.v2.b32 [%1], {%2, %3};}" ::"r"(
                   (int)condition),
               "l"(to), "r"(low), "r"(high));
}

// The same with sixteen.
FMH_DEVICE void store_16_if(bool condition, void* to, const uint4& v) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.v4.b32 [%1], {%2, %3, %4, %5};}" ::"r"(
          (int)condition),
      "l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w));
}

FMH_DEVICE uint4 load_shared_16(u32 address) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

}  // namespace fmh
