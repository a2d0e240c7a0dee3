// Division by a number that only the launch knows.
#pragma once
#include "sm90/ptx/common.h"

namespace fmh {

// t / d for t < 2^31: a shift, or a multiplication by ceil(2^(31 + bits) / d), which is exact
// there.
struct Divisor {
  u32 divisor, multiplier;
  int bits;  // 2^(bits - 1) < divisor <= 2^bits

  FMH_DEVICE explicit Divisor(u32 d) : divisor(d), multiplier(0) {
    bits = 32 - __clz(d - 1);
    if ((d & (d - 1)) == 0) return;
    u32 rest = 1u << (bits - 1);
#pragma unroll 1
    for (int i = 0; i < 32; i++) {
      rest <<= 1;
      multiplier <<= 1;
      if (rest >= d) rest -= d, multiplier |= 1;
    }
    multiplier += rest != 0;
  }
  FMH_DEVICE u32 quotient(u32 t) const {
    return multiplier ? __umulhi(t, multiplier) >> (bits - 1) : t >> bits;
  }
  FMH_DEVICE u32 remainder(u32 t) const { return t - quotient(t) * divisor; }
};

}  // namespace fmh
