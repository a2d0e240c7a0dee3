// What every kernel of this architecture agrees on, whatever the head dim and wherever K comes from.
#pragma once
#include "sm90/ptx/common.h"

namespace fmh {

constexpr int kDimV = 512;
constexpr int kBlockTokens = 64;
constexpr int kTileRows = 64;
constexpr int kMaxParts = 144;  // all SMs a die of this architecture can have

constexpr int kGroupThreads = 128;
constexpr int kThreads = 3 * kGroupThreads;  // group 0, group 1, producer

// FMH_LISTS 1: a request is one query token with its own list of slots (sparse decode and prefill),
// 0: a row of the batch whose keys are the first `length` of its block table (dense decode).
constexpr bool kLists = FMH_LISTS == 1;

}  // namespace fmh
