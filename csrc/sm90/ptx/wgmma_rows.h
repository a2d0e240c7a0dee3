// wgmma with 64 tokens (or columns of V) from registers, query rows from shared memory.
#pragma once
#include "sm90/ptx/wgmma.h"

namespace fmh {

template <int kPending>
FMH_DEVICE void wgmma_wait_for_all_but() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// D (64 x n) = or += A (64 x 16, registers) * B (n x 16, shared, K-major) transposed.
#define FMH_ROWS_PRODUCT(NAME, TYPES)                                                              \
  FMH_DEVICE void NAME(float (&d)[8], const u32 (&a)[4], u64 b, bool accumulate) {                 \
    asm volatile(                                                                                  \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"                                               \
        "wgmma.mma_async.sync.aligned.m64n16k16.f32." TYPES " {"                                   \
        "%0, %1, %2, %3, %4, %5, %6, %7"                                                           \
        "}, {%8, %9, %10, %11}, %12, p, 1, 1, 0;\n}\n"                                             \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),                                          \
          "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])                                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));               \
  }                                                                                                \
  FMH_DEVICE void NAME(float (&d)[16], const u32 (&a)[4], u64 b, bool accumulate) {                \
    asm volatile(                                                                                  \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"                                               \
        "wgmma.mma_async.sync.aligned.m64n32k16.f32." TYPES " {"                                   \
        "%0, %1, %2, %3, %4, %5, %6, %7, "                                                         \
        "%8, %9, %10, %11, %12, %13, %14, %15"                                                     \
        "}, {%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}\n"                                           \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),                                          \
          "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),                                          \
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),                                        \
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])                                       \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));               \
  }                                                                                                \
  FMH_DEVICE void NAME(float (&d)[32], const u32 (&a)[4], u64 b, bool accumulate) {                \
    asm volatile(                                                                                  \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                               \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPES " {"                                   \
        "%0, %1, %2, %3, %4, %5, %6, %7, "                                                         \
        "%8, %9, %10, %11, %12, %13, %14, %15, "                                                   \
        "%16, %17, %18, %19, %20, %21, %22, %23, "                                                 \
        "%24, %25, %26, %27, %28, %29, %30, %31"                                                   \
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"                                           \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),                                          \
          "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),                                          \
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),                                        \
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),                                      \
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),                                      \
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),                                      \
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),                                      \
          "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])                                       \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));               \
  }

FMH_ROWS_PRODUCT(multiply_fp16, "f16.f16")
FMH_ROWS_PRODUCT(multiply_bf16, "bf16.bf16")

}  // namespace fmh
