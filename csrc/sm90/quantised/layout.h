// Shared memory and barriers where tokens are the rows of the products.
//
//   bytes (v32, 64 rows a tile)   what
//          73,728   Q: d_qk/64 column tiles of [rows][128 B], fp16, 128-byte swizzle
//          16,384   P: softmax weights of the two blocks of a pair, [rows][64 tokens], swizzled
//     up to 4,096   barriers, scales and maxima of the rows, schedule
//         136,448   ring: 13 slots of 16 tokens as they lie in the cache
//
// A slot holds the tokens that one warp multiplies with Q, and those of one step of P V.
#pragma once
#include "sm90/quantised/format.h"

namespace fmh {

constexpr int kRows = FMH_ROWS;  // query rows of a tile
static_assert(kRows == 16 || kRows == 32 || kRows == 64, "n of the products");
constexpr int kAccumulators = kRows / 2;  // of a thread, for 64 tokens (or 64 columns of V)
constexpr int kOwnRows = kRows / 4;       // query rows of which a thread holds scores

constexpr u32 kSharedBase = 1024;  // as in core/layout.h: checked at entry, folds descriptors
constexpr u32 kSharedLimit = 232448;
constexpr int kSlotTokens = 16;
constexpr int kPairTokens = 2 * kBlockTokens;
constexpr int kPairSlots = kPairTokens / kSlotTokens;
constexpr int kMathThreads = 2 * kGroupThreads;
constexpr int kMathWarps = kMathThreads / 32;

constexpr u32 kTileBytes = kRows * 128;
constexpr u32 kOffsetQ = 0;
constexpr u32 kOffsetP = kOffsetQ + kColumnTiles * kTileBytes;
constexpr u32 kOffsetMisc = kOffsetP + 2 * kTileBytes;
constexpr int kMaxSlots = 24;
constexpr u32 kOffsetBarriers = kOffsetMisc;                     // full and empty of every slot
constexpr u32 kOffsetValid = kOffsetBarriers + 16 * kMaxSlots;   // u32[kMaxSlots]
constexpr u32 kOffsetStates = kOffsetValid + 128;                // RowState[kRows]
constexpr u32 kOffsetTokens = kOffsetStates + 8 * kRows;         // int[kRows]
constexpr u32 kOffsetResults = kOffsetTokens + 4 * kRows;        // RowResult[kRows]
constexpr u32 kOffsetWarps = kOffsetResults + 16 * kRows;        // float[kMathWarps][kRows]
constexpr u32 kOffsetPartLoad = kOffsetWarps;                    // int[kMaxParts], while scheduling
constexpr u32 kWarpsBytes = 4 * kMathWarps * kRows;
constexpr u32 kOffsetSchedule =
    kOffsetWarps + (kWarpsBytes > 4 * kMaxParts ? kWarpsBytes : 4 * kMaxParts);
constexpr u32 kOffsetScan = kOffsetSchedule + 64;
constexpr u32 kOffsetRing = (kOffsetScan + 64 + 127) / 128 * 128;

constexpr u32 kSlotBytes = kSlotTokens * kRowPitch;
constexpr int kSlotsThatFit = (kSharedLimit - kOffsetRing) / kSlotBytes;
constexpr int kSlots = kSlotsThatFit < kMaxSlots ? kSlotsThatFit : kMaxSlots;
static_assert(kSlots >= kPairSlots + 4, "a pair and something on its way");
constexpr u32 kSharedBytes = kOffsetRing + kSlots * kSlotBytes;
#ifdef FMH_SHARED_BYTES
static_assert(kSharedBytes == FMH_SHARED_BYTES, "what the host asks for");
#endif

FMH_DEVICE u32 full_barrier(int slot) { return kSharedBase + kOffsetBarriers + 16 * slot; }
FMH_DEVICE u32 empty_barrier(int slot) { return full_barrier(slot) + 8; }
FMH_DEVICE u32 slot_address(int slot) { return kSharedBase + kOffsetRing + slot * kSlotBytes; }

// Named barriers of the math threads; 0 is __syncthreads.
constexpr int kMathBarrier = 1;
constexpr int kMaximaBarrier = 2;

// What the scores of a query row are multiplied by (log2 units), and the row's running maximum.
struct RowState {
  float scale, maximum;
};

// Where a query row of O goes, and what it is multiplied by.
struct RowResult {
  char* to;
  float factor;
  int live;
};

template <typename T>
FMH_DEVICE T* shared_at(char* smem, u32 offset) {
  return (T*)(smem + offset);
}

// A place in the ring, and how often it has been passed.
struct RingPlace {
  int slot;
  u32 parity;

  FMH_DEVICE void advance(int n) {
    slot += n;
    if (slot >= kSlots) slot -= kSlots, parity ^= 1;
  }
  FMH_DEVICE RingPlace after(int n) const {
    RingPlace r = *this;
    r.advance(n);
    return r;
  }
};

}  // namespace fmh
