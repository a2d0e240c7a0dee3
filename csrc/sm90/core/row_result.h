// What becomes of a row whose maximum and sum are known: lse, the largest logit, the sink.
#pragma once
#include "sm90/core/softmax.h"
#include "sm90/core/tile.h"

namespace fmh {

// Lists report the largest logit, so maximum and sum are brought from the running maximum to it.
// What is multiplied by weights relative to the old maximum is multiplied by `moved`.
FMH_DEVICE void to_peak(float peak, float& maximum, float& sum, float& moved) {
  moved = exp2_approx(maximum - peak);
  maximum = peak;
  sum *= moved;
}

// The factor that makes a row of O its result. A sink is one more key whose value is zero.
FMH_DEVICE float row_weight(const MlaParams& p, const RowPlace& place, float maximum, float sum,
                            bool live) {
  if constexpr (kLists) {
    if (p.lists.attn_sink != nullptr && live && sum > 0) {
      sum += exp2_approx(p.lists.attn_sink[place.head] * kLog2E - maximum);
    }
  }
  return sum > 0 ? 1.f / sum : 0.f;
}

FMH_DEVICE void store_row_facts(const MlaParams& p, const RowPlace& place, int request,
                                float maximum, float sum) {
  const bool keys = sum > 0;
  *place.lse(p, request) = keys ? kLn2 * (maximum + log2_approx(sum)) : infinity();
  if constexpr (kLists) {
    if (p.lists.max_logits != nullptr) {
      p.lists.max_logits[place.row_of_lse(p, request)] = keys ? kLn2 * maximum : -infinity();
    }
  }
}

}  // namespace fmh
